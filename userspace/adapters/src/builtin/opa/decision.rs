//! What a policy says: true or false, or an object with the fields of OPA's plugin for Envoy.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
use weft_policy::ObjectRef;

use crate::{
    framing,
    pipeline::{CheckResult, DEFAULT_DENY_STATUS, Deny, Directives, HeaderOperation},
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    allowed: bool,
    /// For the log and the client, where there is no body.
    #[serde(default)]
    reason: Option<String>,
    /// Allowed: set in the request. Refused: in the answer.
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(default)]
    request_headers_to_remove: Vec<String>,
    #[serde(default)]
    response_headers_to_add: BTreeMap<String, Values>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    http_status: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// `None`: the rule says nothing, which refuses.
///
/// # Errors
/// It is no decision: why.
pub(super) fn result(said: Option<Value>, check_method: &str, rule: Option<&ObjectRef>) -> Result<CheckResult, String> {
    let decision = match said {
        None => Decision::default(),
        Some(Value::Bool(allowed)) => Decision {
            allowed,
            ..Decision::default()
        },
        Some(Value::Object(object)) if object.get("allowed") == Some(&Value::Bool(false)) => refusal(&object),
        Some(object @ Value::Object(_)) => {
            serde_json::from_value(object).map_err(|error| format!("`{check_method}` is no decision: {error}"))?
        }
        Some(other) => {
            return Err(format!(
                "`{check_method}` is {other}, expected true, false, or an object with `allowed`"
            ));
        }
    };
    match decision.allowed {
        true => allow(decision),
        false => Ok(deny(decision, check_method, rule)),
    }
}

/// What is refused stays refused: what is no field of a decision, or of another type, is left out.
fn refusal(object: &Map<String, Value>) -> Decision {
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    let headers = object.get("headers").and_then(Value::as_object);
    let status = object.get("http_status").and_then(Value::as_u64);
    Decision {
        reason: text("reason"),
        headers: headers
            .into_iter()
            .flatten()
            .filter_map(|(name, values)| Some((name.clone(), Values::deserialize(values).ok()?)))
            .collect(),
        body: text("body"),
        http_status: status.and_then(|status| u16::try_from(status).ok()),
        ..Decision::default()
    }
}

fn allow(decision: Decision) -> Result<CheckResult, String> {
    let mut directives = Directives::default();
    for pair in pairs(decision.headers) {
        let (name, value) = pair?;
        let again = directives
            .request
            .iter()
            .any(|operation| matches!(operation, HeaderOperation::Replace(earlier, _) if *earlier == name));
        directives.request.push(match again {
            true => HeaderOperation::Append(name, value),
            false => HeaderOperation::Replace(name, value),
        });
    }
    for name in decision.request_headers_to_remove {
        directives.request.push(HeaderOperation::Remove(checked(&name)?));
    }
    for pair in pairs(decision.response_headers_to_add) {
        let (name, value) = pair?;
        directives.response.push(HeaderOperation::Append(name, value));
    }
    Ok(match directives.is_empty() {
        true => CheckResult::Allow,
        false => CheckResult::AllowWith(Box::new(directives)),
    })
}

/// Headers that are unfit are left out, an unfit status is the usual one.
fn deny(decision: Decision, check_method: &str, rule: Option<&ObjectRef>) -> CheckResult {
    let status = decision.http_status.filter(|status| (300..600).contains(status));
    let reason = decision
        .reason
        .unwrap_or_else(|| format!("policy `{check_method}` refuses"));
    let mut deny = Deny::new(status.unwrap_or(DEFAULT_DENY_STATUS), reason).by(rule.cloned());
    deny.headers = pairs(decision.headers).filter_map(Result::ok).collect();
    deny.body = decision.body.map(Into::into);
    CheckResult::Deny(Box::new(deny))
}

/// Each value with its name; an error: why it is none.
fn pairs(headers: BTreeMap<String, Values>) -> impl Iterator<Item = Result<(HeaderName, HeaderValue), String>> {
    headers.into_iter().flat_map(|(name, values)| {
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        values.into_iter().map(move |value| pair(&name, value))
    })
}

fn pair(name: &str, value: String) -> Result<(HeaderName, HeaderValue), String> {
    let value = HeaderValue::try_from(value).map_err(|_| format!("header `{name}` gets a value that is none"))?;
    Ok((checked(name)?, value))
}

fn checked(name: &str) -> Result<HeaderName, String> {
    framing::changeable(name).ok_or_else(|| format!("it changes header `{name}`, which it may not"))
}
