//! `spec.remote` of an Adapter: a policy server beside the proxy, and how to ask it.

use serde_json::{Map, Value as Json};

use crate::{
    decode::{Fields, Value},
    snapshot::{AdapterBackend, AdapterRole, REMOTE_PROTOCOLS, RemoteBackend},
};

/// What the adapter's `params` are to a server of `ext_authz`: sent along with every request.
const EXTENSIONS: &str = "context_extensions";

/// `remote: {protocol, ...}`; the rest are the parameters of the native adapter that speaks the protocol. `params` is what
/// `json` was written as.
pub(super) fn decode(
    spec: &mut Fields<'_>,
    json: Option<&Json>,
    params: Option<&Value<'_>>,
) -> Option<(AdapterBackend, AdapterRole)> {
    let value = spec.required("remote")?;
    let protocol = value
        .clone()
        .fields()?
        .required("protocol")
        .and_then(|protocol| protocol.choice(&REMOTE_PROTOCOLS.map(|name| (name, name))))?;
    let Json::Object(mut settings) = value.json()? else {
        return None;
    };
    settings.remove("protocol");
    if settings.contains_key(EXTENSIONS) {
        value.inside(EXTENSIONS).error(
            "what the server is sent along with a request is what the adapter is configured with",
            "write it as `params`",
        );
        return None;
    }
    if let Some(extensions) = extensions(json?, params)? {
        settings.insert(EXTENSIONS.to_owned(), Json::Object(extensions));
    }
    let settings = Json::Object(settings);
    if let Some(catalog) = value.cx.adapters
        && let Err(refusal) = catalog.check(protocol, &settings)
    {
        let at = match params {
            Some(params) if refusal.path.starts_with(EXTENSIONS) => params.clone(),
            _ => value.inside(&refusal.path),
        };
        at.error(refusal.reason, refusal.instead);
        return None;
    }
    let backend = RemoteBackend {
        protocol: protocol.to_owned(),
        settings,
    };
    Some((AdapterBackend::Remote(backend), AdapterRole::Check))
}

/// Texts by name: what is no text is sent as JSON. `Some(None)`: there are none; `None`: they have no names.
fn extensions(json: &Json, params: Option<&Value<'_>>) -> Option<Option<Map<String, Json>>> {
    match json {
        Json::Null => Some(None),
        Json::Object(fields) => {
            let text = |value: &Json| match value {
                Json::String(text) => text.clone(),
                other => other.to_string(),
            };
            let texts = fields
                .iter()
                .map(|(name, value)| (name.clone(), Json::String(text(value))));
            Some(Some(texts.collect()))
        }
        _ => {
            if let Some(params) = params {
                params.error(
                    "a server gets what the adapter is configured with as texts by name",
                    "write `params: {NAME: TEXT}`, or leave it out",
                );
            }
            None
        }
    }
}
