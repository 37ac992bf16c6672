//! TrafficSplit: the traffic of a root service, shared among backend services of its namespace by weight.
//!
//! Weights of v1alpha1 are Kubernetes quantities (`500m`), later whole numbers; `matches` came with v1alpha3.

use std::collections::BTreeSet;

use crate::{
    decode::{Located, Value, shorten},
    names,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    yaml::{Data, Kind},
};

pub(crate) static TRAFFIC_SPLIT: KindInfo = KindInfo {
    group: super::SPLIT,
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    kind: "TrafficSplit",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

/// Largest weight: the sum of [`MAX_BACKENDS`] of them fits into 32 bits, which is what the kernel adds in.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Backends of one split.
pub const MAX_BACKENDS: usize = 64;

#[derive(Debug)]
pub struct TrafficSplitSpec {
    /// The root service.
    pub service: Located<String>,
    /// At least one, each named once, none the root.
    pub backends: Vec<SplitBackendSpec>,
    /// Names of HTTPRouteGroups; empty: all requests are split.
    pub matches: Vec<Located<String>>,
}

#[derive(Debug)]
pub struct SplitBackendSpec {
    pub service: Located<String>,
    /// Relative; at most [`MAX_WEIGHT`].
    pub weight: u32,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let namespace = body.namespace().to_owned();
    let mut spec = body.spec()?;
    let service = spec
        .required("service")
        .and_then(|value| service_name(&value, &namespace));
    let backends = spec.required("backends");
    let matches = match if body.is_version(&["v1alpha1", "v1alpha2"]) {
        None
    } else {
        spec.optional("matches")
    } {
        Some(list) => list
            .items()
            .and_then(|items| items.into_iter().map(decode_match).collect()),
        None => Some(Vec::new()),
    };
    spec.finish();
    let quantities = body.is_version(&["v1alpha1"]);
    let backends = backends.and_then(|list| decode_backends(&list, &namespace, service.as_ref(), quantities));
    Some(Spec::TrafficSplit(Box::new(TrafficSplitSpec {
        service: service?,
        backends: backends?,
        matches: matches?,
    })))
}

fn decode_backends(
    list: &Value<'_>,
    namespace: &str,
    root: Option<&Located<String>>,
    quantities: bool,
) -> Option<Vec<SplitBackendSpec>> {
    let items = list.items()?;
    if items.is_empty() {
        list.error("a split without backends", "add `- {service: NAME, weight: 1}`");
    }
    if items.len() > MAX_BACKENDS {
        list.error(
            format!("{} backends, more than {MAX_BACKENDS}", items.len()),
            "use fewer",
        );
        return None;
    }
    let count = items.len();
    let mut seen = BTreeSet::new();
    let mut backends = Vec::new();
    for item in items {
        let Some(backend) = decode_backend(item, namespace, quantities) else {
            continue;
        };
        let at = &backend.service;
        let error = |reason: String, instead: &str| {
            let position = crate::yaml::Position {
                line: at.line,
                column: at.column,
            };
            let severity = crate::diagnostic::Severity::Error;
            list.cx
                .push(severity, position, &at.field, reason, Some(instead.to_owned()));
        };
        if root.is_some_and(|root| root.value == at.value) {
            error(
                format!("the root service `{}` is among its own backends", at.value),
                "give the present version a service of its own, and name that",
            );
        }
        if !seen.insert(at.value.clone()) {
            error(
                format!("the backend `{}` is listed twice", at.value),
                "add up the weights",
            );
        }
        backends.push(backend);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        list.warn(
            "all weights are zero: no backend, every call fails",
            "give at least one backend a weight",
        );
    }
    (backends.len() == count).then_some(backends)
}

fn decode_backend(item: Value<'_>, namespace: &str, quantities: bool) -> Option<SplitBackendSpec> {
    let mut fields = item.fields()?;
    let service = fields
        .required("service")
        .and_then(|value| service_name(&value, namespace));
    let weight = fields.required("weight").and_then(|value| {
        if quantities {
            quantity(&value)
        } else {
            value.integer(0..=MAX_WEIGHT.into()).map(|n| n as u32)
        }
    });
    fields.finish();
    Some(SplitBackendSpec {
        service: service?,
        weight: weight?,
    })
}

fn decode_match(item: Value<'_>) -> Option<Located<String>> {
    let mut fields = item.fields()?;
    fields.tolerate(&["apiGroup"]);
    let kind = fields
        .required("kind")
        .and_then(|value| value.choice(&[("HTTPRouteGroup", ())]));
    let name = fields
        .required("name")
        .and_then(|value| Some(value.locate(value.dns_subdomain()?.to_owned())));
    fields.finish();
    kind?;
    name
}

/// The name of a service of this namespace; long forms (`web.shop`, `web.shop.svc.cluster.local`) are cut.
fn service_name(value: &Value<'_>, namespace: &str) -> Option<Located<String>> {
    let written = value.text()?;
    let (name, rest) = written
        .split_once('.')
        .map_or((written, None), |(name, rest)| (name, Some(rest)));
    let own = match rest {
        None => true,
        Some(rest) => rest.split_once('.').map_or(rest, |(ns, _)| ns) == namespace,
    };
    let suffix = rest.and_then(|rest| rest.split_once('.')).map(|(_, suffix)| suffix);
    if !names::is_dns_label(name) || suffix.is_some_and(|s| !matches!(s, "svc" | "svc.cluster.local" | "mesh")) {
        value.error(
            format!("`{}` is no name of a service", shorten(written)),
            "write the service's metadata.name",
        );
        return None;
    }
    if !own {
        let instead = format!("name services of namespace `{namespace}`, or move the split");
        value.error("root and backends must be in the split's namespace", instead);
        return None;
    }
    Some(value.locate(name.to_owned()))
}

/// A quantity in thousandths: `1`, `0.5`, `500m`.
fn quantity(value: &Value<'_>) -> Option<u32> {
    let Data::Scalar { text, .. } = &value.node.data else {
        value.error("expected a quantity", "write `500m` or `1`");
        return None;
    };
    let thousandths = match text.strip_suffix('m') {
        Some(number) => number.parse::<u32>().ok(),
        None if matches!(value.node.kind(), Kind::Integer | Kind::Float | Kind::Text) => {
            let (whole, part) = text.split_once('.').unwrap_or((text, ""));
            let digits = !part.is_empty() || !text.contains('.');
            let part = (digits && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| format!("{part:0<3}").parse::<u32>().ok())
                .flatten();
            whole
                .parse::<u32>()
                .ok()
                .and_then(|n| n.checked_mul(1000))
                .zip(part)
                .and_then(|(a, b)| a.checked_add(b))
        }
        None => None,
    };
    match thousandths.filter(|n| *n <= MAX_WEIGHT) {
        Some(weight) => Some(weight),
        None => {
            let reason = format!("`{}` is no quantity up to {}", shorten(text), MAX_WEIGHT / 1000);
            value.error(
                reason,
                "write `500m` or `1`; whole numbers need split.smi-spec.io/v1alpha2 or later",
            );
            None
        }
    }
}
