//! TrafficTarget: who may reach the workloads of a service account, on which routes.
//!
//! v1alpha1 has `destination`, `specs` (now `rules`) and `sources` beside `metadata`; up to v1alpha2 the destination may
//! have a `port`, which restricts what the rules allow, as a port of a route does.

use crate::{
    decode::{Located, Value, shorten},
    names,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::Account,
};

pub(crate) static TRAFFIC_TARGET: KindInfo = KindInfo {
    group: super::ACCESS,
    versions: &["v1alpha1", "v1alpha2", "v1alpha3"],
    kind: "TrafficTarget",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

#[derive(Debug)]
pub struct TrafficTargetSpec {
    /// In the namespace of the object itself.
    pub destination: Located<Account>,
    /// Restricts connections and datagrams to this port; up to v1alpha2.
    pub port: Option<u16>,
    /// At least one.
    pub sources: Vec<Located<Account>>,
    /// At least one.
    pub rules: Vec<TargetRule>,
}

/// A reference to a route of the object's namespace.
#[derive(Debug)]
pub struct TargetRule {
    pub kind: RouteKind,
    pub name: Located<String>,
    /// Names of matches; empty: all of the route's.
    pub matches: Vec<Located<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    Http,
    Tcp,
    Udp,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let namespace = body.namespace().to_owned();
    let (destination, sources, rules) = if body.is_version(&["v1alpha1"]) {
        (
            body.root.required("destination"),
            body.root.required("sources"),
            body.root.required("specs"),
        )
    } else {
        let mut spec = body.spec()?;
        let found = (
            spec.required("destination"),
            spec.required("sources"),
            spec.required("rules"),
        );
        spec.finish();
        found
    };
    let with_port = body.is_version(&["v1alpha1", "v1alpha2"]);
    let destination = destination.and_then(|value| decode_destination(value, &namespace, with_port));
    let sources = sources.and_then(|list| at_least_one(&list, |value| decode_account(value, &namespace, false)));
    let rules = rules.and_then(|list| at_least_one(&list, decode_rule));
    let (destination, port) = destination?;
    let sources = sources?.into_iter().map(|(account, _)| account).collect();
    Some(Spec::TrafficTarget(Box::new(TrafficTargetSpec {
        destination,
        port,
        sources,
        rules: rules?,
    })))
}

fn at_least_one<'a, T>(list: &Value<'a>, decode: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
    let items = list.items()?;
    if items.is_empty() {
        list.error(
            "an empty list allows nothing",
            "add at least one entry, or remove the object",
        );
    }
    let count = items.len();
    let decoded: Vec<T> = items.into_iter().filter_map(decode).collect();
    (decoded.len() == count).then_some(decoded)
}

fn decode_destination(value: Value<'_>, namespace: &str, with_port: bool) -> Option<(Located<Account>, Option<u16>)> {
    let (account, port) = decode_account(value.clone(), namespace, with_port)?;
    if account.value.namespace != namespace {
        value.error(
            format!(
                "the destination is in namespace `{}`, the object in `{namespace}`: it would have no effect",
                account.value.namespace
            ),
            format!("write `metadata.namespace: {}`", account.value.namespace),
        );
        return None;
    }
    Some((account, port))
}

fn decode_account(value: Value<'_>, namespace: &str, with_port: bool) -> Option<(Located<Account>, Option<u16>)> {
    let at = value.clone();
    let mut fields = value.fields()?;
    let kind = fields
        .required("kind")
        .and_then(|value| value.choice(&[("ServiceAccount", ())]));
    let name = fields.required("name").and_then(|value| value.dns_subdomain());
    let namespace = match fields.optional("namespace") {
        Some(value) => value.dns_label(),
        None => Some(namespace),
    };
    let port = match if with_port { fields.optional("port") } else { None } {
        Some(value) => value.port().map(Some),
        None => Some(None),
    };
    fields.finish();
    kind?;
    let account = Account {
        namespace: namespace?.to_owned(),
        name: name?.to_owned(),
    };
    Some((at.locate(account), port?))
}

fn decode_rule(value: Value<'_>) -> Option<TargetRule> {
    let mut fields = value.fields()?;
    let kind = fields.required("kind").and_then(|value| {
        value.choice(&[
            ("HTTPRouteGroup", RouteKind::Http),
            ("TCPRoute", RouteKind::Tcp),
            ("UDPRoute", RouteKind::Udp),
        ])
    });
    let name = fields.required("name").and_then(|value| {
        let name = value.text()?;
        if !names::is_dns_subdomain(name) {
            value.error(
                format!("`{}` is no valid name", shorten(name)),
                "write the route's metadata.name",
            );
            return None;
        }
        Some(value.locate(name.to_owned()))
    });
    let matches = match fields.optional("matches") {
        Some(list) => list
            .items()
            .and_then(|items| items.iter().map(|v| Some(v.locate(v.text()?.to_owned()))).collect()),
        None => Some(Vec::new()),
    };
    fields.finish();
    Some(TargetRule {
        kind: kind?,
        name: name?,
        matches: matches?,
    })
}

// === impl RouteKind ===

impl RouteKind {
    /// The kind's name in resources.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRouteGroup",
            Self::Tcp => "TCPRoute",
            Self::Udp => "UDPRoute",
        }
    }
}
