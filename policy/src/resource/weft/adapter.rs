//! Adapter: something that looks at the requests of services of the object's namespace, or is told about them.
//!
//! Which adapters there are and what their parameters mean, the store's [`AdapterCatalog`](crate::AdapterCatalog) knows.

mod remote;
mod wasm;

use std::sync::Arc;

use crate::{
    decode::{Fields, Located, Value, one_of, shorten},
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::{AdapterBackend, AdapterConfig, AdapterFailure, AdapterRole},
};

pub(crate) static ADAPTER: KindInfo = KindInfo {
    group: super::GROUP,
    versions: &["v1alpha1"],
    kind: "Adapter",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

/// Larger ones first.
const PRIORITIES: std::ops::RangeInclusive<i64> = -1000..=1000;

/// `reload` is Envoy's word for what `closed` does: the request that meets a failure fails, and the next one meets a new instance
/// of the module. Under `open` it does, too.
const FAILURE_POLICIES: [(&str, AdapterFailure); 3] = [
    ("open", AdapterFailure::Open),
    ("closed", AdapterFailure::Closed),
    ("reload", AdapterFailure::Closed),
];

#[derive(Debug)]
pub struct AdapterSpec {
    pub target: Target,
    /// Order among adapters of one role: larger first; among equals those that ask a server come last.
    pub priority: i64,
    pub config: Arc<AdapterConfig>,
}

/// Who carries it out.
#[derive(Clone, Copy)]
enum Backend {
    Native,
    Remote,
    Wasm,
}

/// Whose requests.
#[derive(Debug)]
pub enum Target {
    /// Of every service of the mesh.
    All,
    /// Of every service of the object's namespace.
    Namespace,
    /// Of these, of the object's namespace.
    Services(Vec<Located<String>>),
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let object = body.id.clone();
    let mut spec = body.spec()?;
    let target = spec.required("target").and_then(target);
    let phase = spec.optional("phase").and_then(|value| {
        let phase = value.choice(&[
            ("check", AdapterRole::Check),
            ("filter", AdapterRole::Filter),
            ("report", AdapterRole::Report),
        ])?;
        Some((phase, value))
    });
    let priority = match spec.optional("priority") {
        Some(value) => value.signed(PRIORITIES),
        None => Some(0),
    };
    let failure = spec.optional("failurePolicy");
    let failure_policy = match &failure {
        Some(value) => value.choice(&FAILURE_POLICIES),
        None => Some(AdapterFailure::Closed),
    };
    let params = spec.optional("params");
    let json = match &params {
        Some(value) => value.json(),
        None => Some(serde_json::Value::Null),
    };
    let backend = spec.required("backend").and_then(|value| {
        value.choice(&[
            ("native", Backend::Native),
            ("remote", Backend::Remote),
            ("wasm", Backend::Wasm),
        ])
    });
    let made = backend.and_then(|backend| match backend {
        Backend::Native => {
            let phase = phase.as_ref().map(|(phase, _)| *phase);
            native(&mut spec, phase, json.as_ref(), params.as_ref())
        }
        Backend::Remote => remote::decode(&mut spec, json.as_ref(), params.as_ref()),
        Backend::Wasm => {
            let wasm = wasm::decode(spec.required("wasm")?)?;
            Some((AdapterBackend::Wasm(wasm), AdapterRole::Filter))
        }
    });
    let whole = spec.value.clone();
    // Those of other backends may stay: the object moves by one word.
    spec.tolerate(&["native", "remote", "wasm"]);
    spec.finish();
    let (backend, role) = made?;
    if let Some((phase, value)) = phase
        && phase != phase_of(role)
    {
        let right = phase_of(role);
        value.error(
            format!("{backend} is a {role} adapter"),
            format!("write `phase: {right}`, or leave it out"),
        );
    }
    if let (Some(value), AdapterRole::Report) = (failure, role) {
        value.error(
            "a report adapter fails no request",
            "remove it: what cannot be told is dropped and counted",
        );
    }
    if object.namespace.is_none() {
        whole.error("an Adapter belongs to a namespace", "add `metadata.namespace`");
    }
    Some(Spec::Adapter(AdapterSpec {
        target: target?,
        priority: priority?,
        config: Arc::new(AdapterConfig {
            object,
            role,
            backend,
            params: json?,
            failure_policy: failure_policy?,
        }),
    }))
}

fn target(value: Value<'_>) -> Option<Target> {
    if value.node.as_text().is_some() {
        return match value.choice(&[("all", true), ("namespace", false)])? {
            true => Some(Target::All),
            false => Some(Target::Namespace),
        };
    }
    let whole = value.clone();
    let mut fields = value.fields()?;
    let services = fields.optional("services");
    fields.finish();
    let Some(services) = services else {
        whole.error(
            "nothing says which services",
            "write `target: {services: [NAME]}`, `target: namespace` or `target: all`",
        );
        return None;
    };
    let items = services.items()?;
    if items.is_empty() {
        services.error("an empty list", "name a service, or write `target: namespace`");
        return None;
    }
    let names = items
        .iter()
        .map(|item| Some(item.locate(item.dns_label()?.to_owned())))
        .collect::<Option<Vec<_>>>()?;
    Some(Target::Services(names))
}

/// `native: NAME` with its parameters. `params` is where they are written, `json` what they are.
fn native(
    spec: &mut Fields<'_>,
    phase: Option<AdapterRole>,
    json: Option<&serde_json::Value>,
    params: Option<&Value<'_>>,
) -> Option<(AdapterBackend, AdapterRole)> {
    let whole = spec.value.clone();
    let named = spec.required("native")?;
    let name = named.text()?;
    let Some(catalog) = named.cx.adapters else {
        // Nobody knows which there are: every name may be one, and is what it says.
        let name = name.to_owned();
        return Some((AdapterBackend::Native { name }, phase.unwrap_or(AdapterRole::Check)));
    };
    let known = catalog.natives();
    let Some((_, role)) = known.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        named.error(
            format!("there is no native adapter `{}`", shorten(name)),
            one_of(&names, name),
        );
        return None;
    };
    if let Err(refusal) = catalog.check(name, json?) {
        let at = match params {
            Some(params) => params.inside(&refusal.path),
            None => whole,
        };
        at.error(refusal.reason, refusal.instead);
        return None;
    }
    let name = name.to_owned();
    Some((AdapterBackend::Native { name }, *role))
}

/// The word that users have for it.
fn phase_of(role: AdapterRole) -> AdapterRole {
    match role {
        AdapterRole::Quota => AdapterRole::Check,
        other => other,
    }
}
