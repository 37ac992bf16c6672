//! What the service says, as a check's result.

use http::{HeaderName, HeaderValue};
use weft_policy::ObjectRef;

use super::proto::{
    AppendAction, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpResponse, OkHttpResponse, Status,
};
use crate::{
    framing,
    pipeline::{CheckResult, DEFAULT_DENY_STATUS, Deny, Directives, HeaderOperation},
};

/// Said of a request that is refused without a word.
const REFUSED: &str = "the authorization service refused";

/// # Errors
/// It is no verdict: why.
pub(super) fn result(response: CheckResponse, rule: Option<&ObjectRef>) -> Result<CheckResult, String> {
    let Status { code, message } = response.status.unwrap_or_default();
    match response.http_response {
        Some(HttpResponse::Error(_)) => Err(format!("the service could not judge: {message}")),
        Some(HttpResponse::Ok(ok)) if code == 0 => allow(ok),
        None if code == 0 => Ok(CheckResult::Allow),
        Some(HttpResponse::Denied(denied)) if code != 0 => Ok(deny(denied, message, rule)),
        // Envoy goes by the status, too.
        None | Some(HttpResponse::Ok(_)) => Ok(deny(DeniedHttpResponse::default(), message, rule)),
        Some(HttpResponse::Denied(_)) => Err("the service allows, with the answer of a denial".to_owned()),
    }
}

fn allow(ok: OkHttpResponse) -> Result<CheckResult, String> {
    let mut directives = Directives::default();
    for option in ok.headers {
        let append = option.append.is_some_and(|append| append.value);
        let (name, value) = named(option)?;
        directives.request.push(match append {
            true => HeaderOperation::Append(name, value),
            false => HeaderOperation::Replace(name, value),
        });
    }
    for name in ok.headers_to_remove {
        directives.request.push(HeaderOperation::Remove(checked(&name)?));
    }
    for option in ok.response_headers_to_add {
        directives.response.push(operation(option)?);
    }
    Ok(match directives.is_empty() {
        true => CheckResult::Allow,
        false => CheckResult::AllowWith(Box::new(directives)),
    })
}

/// What is refused stays refused: what is unfit about the answer is left out.
fn deny(denied: DeniedHttpResponse, message: String, rule: Option<&ObjectRef>) -> CheckResult {
    // 0: the service leaves it to us.
    let status = denied
        .status
        .and_then(|status| u16::try_from(status.code).ok())
        .filter(|code| (300..600).contains(code))
        .unwrap_or(DEFAULT_DENY_STATUS);
    let message = match message.is_empty() {
        true => REFUSED.to_owned(),
        false => message,
    };
    let mut deny = Deny::new(status, message).by(rule.cloned());
    let headers = denied.headers.into_iter();
    deny.headers = headers.filter_map(|option| named(option).ok()).collect();
    if !denied.body.is_empty() {
        deny.body = Some(denied.body.into());
    }
    CheckResult::Deny(Box::new(deny))
}

/// For the endpoint's answer. `append` is the older field and wins, as in Envoy.
fn operation(option: HeaderValueOption) -> Result<HeaderOperation, String> {
    let action = match option.append {
        Some(append) if append.value => AppendAction::AppendIfExistsOrAdd,
        Some(_) => AppendAction::OverwriteIfExistsOrAdd,
        None => AppendAction::try_from(option.append_action)
            .map_err(|_| format!("it has append_action {}, which is unknown", option.append_action))?,
    };
    let (name, value) = named(option)?;
    Ok(match action {
        AppendAction::AppendIfExistsOrAdd => HeaderOperation::Append(name, value),
        AppendAction::AddIfAbsent => HeaderOperation::AddIfAbsent(name, value),
        AppendAction::OverwriteIfExistsOrAdd => HeaderOperation::Replace(name, value),
        AppendAction::OverwriteIfExists => HeaderOperation::ReplaceIfPresent(name, value),
    })
}

fn named(option: HeaderValueOption) -> Result<(HeaderName, HeaderValue), String> {
    let header = option.header.unwrap_or_default();
    let bytes = match header.raw_value.is_empty() {
        true => header.value.into_bytes(),
        false => header.raw_value,
    };
    let value =
        HeaderValue::try_from(bytes).map_err(|_| format!("it has a value for header `{}` that is none", header.key))?;
    Ok((checked(&header.key)?, value))
}

fn checked(name: &str) -> Result<HeaderName, String> {
    framing::changeable(name).ok_or_else(|| format!("it changes header `{name}`, which it may not"))
}
