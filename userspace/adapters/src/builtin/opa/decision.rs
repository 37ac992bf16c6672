//! What a policy says: true or false, or an object with the fields of OPA's plugin for Envoy.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
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
        false => deny(decision, check_method, rule),
    }
}

fn allow(decision: Decision) -> Result<CheckResult, String> {
    let mut directives = Directives::default();
    for (name, value) in pairs(decision.headers)? {
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
    for (name, value) in pairs(decision.response_headers_to_add)? {
        directives.response.push(HeaderOperation::Append(name, value));
    }
    Ok(match directives.is_empty() {
        true => CheckResult::Allow,
        false => CheckResult::AllowWith(Box::new(directives)),
    })
}

fn deny(decision: Decision, check_method: &str, rule: Option<&ObjectRef>) -> Result<CheckResult, String> {
    let status = decision.http_status.unwrap_or(DEFAULT_DENY_STATUS);
    if !(300..600).contains(&status) {
        return Err(format!("it refuses with HTTP status {status}, expected 300 to 599"));
    }
    let reason = decision
        .reason
        .unwrap_or_else(|| format!("policy `{check_method}` refuses"));
    let mut deny = Deny::new(status, reason).by(rule.cloned());
    deny.headers = pairs(decision.headers)?;
    deny.body = decision.body.map(Into::into);
    Ok(CheckResult::Deny(Box::new(deny)))
}

fn pairs(headers: BTreeMap<String, Values>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut pairs = Vec::new();
    for (name, values) in headers {
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        for value in values {
            let value =
                HeaderValue::try_from(value).map_err(|_| format!("header `{name}` gets a value that is none"))?;
            pairs.push((checked(&name)?, value));
        }
    }
    Ok(pairs)
}

fn checked(name: &str) -> Result<HeaderName, String> {
    framing::changeable(name).ok_or_else(|| format!("it changes header `{name}`, which it may not"))
}
