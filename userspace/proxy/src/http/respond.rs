//! What a client gets when nothing was forwarded: one place, so that every refusal says what, by whom and why.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Body;
use weft_adapters::StreamFailure;
use weft_policy::ObjectRef;

use super::{
    body::ResponseBody,
    exchange::{Exchange, outcome_of},
    failure, head,
};
use crate::{
    error::{DataError, chain},
    filter::{FilterAnswer, Stop},
    limits::FILTER_BODY_BUFFER,
    metrics::RequestOutcome,
};

/// Why nothing was forwarded.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It could not be.
    Failed(DataError),
    /// It must not be. No error: a rule of the operator's.
    Denied(Box<DenyReason>),
    /// A filter answers.
    Answer(Box<FilterAnswer>),
    /// A filter wants no answer at all.
    Reset(Stop),
}

/// Why a client gets no answer: the connection (HTTP/1) or the stream (HTTP/2) is reset.
#[derive(Debug, thiserror::Error)]
#[error("reset by a filter")]
pub(crate) struct Unanswered;

/// Who denied, and the line that says so.
#[derive(Debug)]
pub(crate) struct DenyReason {
    pub(crate) status: StatusCode,
    pub(crate) rule: Option<Arc<ObjectRef>>,
    /// One line, without `weft:`.
    pub(crate) text: String,
    /// What the adapter that denied wants the client to have, beside ours.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// In place of the line, where the client does not speak gRPC.
    pub(crate) body: Option<Bytes>,
}

/// gRPC's status codes, as far as we give them.
const GRPC_UNKNOWN: u16 = 2;
const GRPC_PERMISSION_DENIED: u16 = 7;
const GRPC_UNIMPLEMENTED: u16 = 12;
const GRPC_INTERNAL: u16 = 13;
const GRPC_UNAVAILABLE: u16 = 14;
const GRPC_UNAUTHENTICATED: u16 = 16;

// === impl Refusal ===

impl From<DataError> for Refusal {
    fn from(error: DataError) -> Self {
        Self::Failed(error)
    }
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Answer(answer) => Self::Answer(answer),
            Stop::Reset { .. } => Self::Reset(stop),
            Stop::Full { by } => Self::Failed(DataError::FilterBuffer {
                adapter: by,
                limit: FILTER_BODY_BUFFER,
            }),
            Stop::Late { by, limit } => Self::Failed(DataError::FilterPause { adapter: by, limit }),
        }
    }
}

/// The status a failure is answered with.
fn status_of(error: &DataError) -> StatusCode {
    match error {
        DataError::ServiceUnknown { .. }
        | DataError::PortUnknown { .. }
        | DataError::NoEndpoint { .. }
        | DataError::Connect { .. } => StatusCode::SERVICE_UNAVAILABLE,
        DataError::NoBackend { .. } | DataError::BackendMissing { .. } | DataError::Changed { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        DataError::Upstream { .. } | DataError::UnaskedUpgrade { .. } => StatusCode::BAD_GATEWAY,
        DataError::Malformed { .. } | DataError::RequestBody => StatusCode::BAD_REQUEST,
        DataError::FilterBuffer { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        DataError::FilterPause { .. } => StatusCode::GATEWAY_TIMEOUT,
        DataError::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        DataError::ConnectMethod => StatusCode::METHOD_NOT_ALLOWED,
    }
}

/// The answer, shown to the filters that saw the request, and noted in `exchange`.
///
/// # Errors
/// A filter wants none.
pub(crate) async fn refuse(exchange: &Rc<Exchange>, refusal: Refusal) -> Result<Response<ResponseBody>, Unanswered> {
    let response = answer(exchange, refusal)?;
    // What is answered in place of an answer that filters have seen goes past them.
    let Some(chain) = exchange.chain().filter(|chain| !chain.is_answering()) else {
        return Ok(response);
    };
    let (mut head, body) = response.into_parts();
    let end = body.is_end_stream() || exchange.method == Method::HEAD;
    if let Some(length) = body.size_hint().exact().filter(|_| !end) {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    match chain.response_parts(&mut head, end).await {
        Ok(()) => {
            exchange.set_status(head.status);
            Ok(Response::from_parts(head, body.after_head(end)))
        }
        Err(stop) => answer(exchange, stop.into()),
    }
}

/// A gRPC client gets it as gRPC says errors: status 200 and trailers only.
fn answer(exchange: &Rc<Exchange>, refusal: Refusal) -> Result<Response<ResponseBody>, Unanswered> {
    Ok(match refusal {
        Refusal::Failed(error) => {
            tracing::debug!(reason = error.reason(), %error, original = %exchange.conn.context.original, "request failed");
            let mut response = words(exchange, status_of(&error), &chain(&error), outcome_of(error.side()));
            exchange.failed(failure::of(&error));
            let headers = response.headers_mut();
            headers.insert("x-weft-reason", HeaderValue::from_static(error.reason()));
            match error {
                // How much of the body is still to come is not known: the connection cannot go on.
                DataError::Malformed { .. } | DataError::RequestBody | DataError::TransferCoding
                    if exchange.is_http1 =>
                {
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                DataError::ConnectMethod => _ = headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED)),
                _ => {}
            }
            response
        }
        Refusal::Denied(reason) => {
            let DenyReason {
                status,
                rule,
                text,
                headers: more,
                body,
            } = *reason;
            let mut response = words(exchange, status, &text, RequestOutcome::Denied);
            exchange.failed(StreamFailure::Other);
            if let (Some(body), false) = (body, exchange.grpc) {
                *response.body_mut() = ResponseBody::text(body, Rc::clone(exchange));
            }
            let headers = response.headers_mut();
            let mut seen = Vec::with_capacity(more.len());
            for (name, value) in more {
                // Of the body that a gRPC client does not get.
                if exchange.grpc && name == header::CONTENT_TYPE {
                    continue;
                }
                if seen.contains(&name) {
                    headers.append(name, value);
                } else {
                    headers.insert(&name, value);
                    seen.push(name);
                }
            }
            headers.insert("x-weft-reason", HeaderValue::from_static("denied"));
            if let Some(rule) = rule {
                if let Ok(value) = HeaderValue::from_str(&rule.to_string()) {
                    headers.insert("x-weft-denied-by", value);
                }
                exchange.set_rule(Some(rule));
            }
            response
        }
        Refusal::Answer(answer) => filters_answer(exchange, *answer),
        Refusal::Reset(stop) => {
            exchange.cut_by(&stop);
            return Err(Unanswered);
        }
    })
}

/// What a filter answers, made fit for the client.
fn filters_answer(exchange: &Rc<Exchange>, answer: FilterAnswer) -> Response<ResponseBody> {
    let (mut head, mut body) = answer.response.into_parts();
    head::prepare_response(&mut head, false);
    head.headers.remove(header::CONTENT_LENGTH);
    // Interim answers and changes of the protocol are not a filter's to give.
    if head.status.is_informational() {
        head.status = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let status = head.status;
    let mut grpc = None;
    if exchange.grpc {
        let given = head
            .headers
            .get("grpc-status")
            .and_then(|code| code.to_str().ok()?.parse().ok());
        let code = given.unwrap_or_else(|| grpc_status(status));
        grpc = Some(code);
        head.status = StatusCode::OK;
        head.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert("grpc-status", HeaderValue::from(code));
        let message = grpc_message(&String::from_utf8_lossy(&body));
        if let (false, Ok(message)) = (message.is_empty(), HeaderValue::from_str(&message)) {
            head.headers.insert("grpc-message", message);
        }
        body.clear();
    } else if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        body.clear();
    } else if !body.is_empty() {
        let headers = head.headers.entry(header::CONTENT_TYPE);
        headers.or_insert(HeaderValue::from_static("text/plain"));
    }
    exchange.answered_by(&answer.by, status, head.status, grpc);
    Response::from_parts(head, ResponseBody::text(body, Rc::clone(exchange)))
}

/// Methods that a CONNECT is told to use instead.
const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

fn words(exchange: &Rc<Exchange>, status: StatusCode, text: &str, outcome: RequestOutcome) -> Response<ResponseBody> {
    let grpc = exchange.grpc.then(|| grpc_status(status));
    let told = if grpc.is_some() { StatusCode::OK } else { status };
    exchange.refused(told, grpc, outcome, text);
    let mut response = match grpc {
        None => Response::new(ResponseBody::text(format!("weft: {text}\n"), Rc::clone(exchange))),
        Some(_) => Response::new(ResponseBody::text("", Rc::clone(exchange))),
    };
    *response.status_mut() = told;
    let headers = response.headers_mut();
    match grpc {
        None => _ = headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        Some(code) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(code));
            if let Ok(message) = HeaderValue::from_str(&grpc_message(&format!("weft: {text}"))) {
                headers.insert("grpc-message", message);
            }
        }
    }
    response
}

/// gRPC's code for an HTTP status, by its `http-grpc-status-mapping.md`, as in Envoy.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => GRPC_INTERNAL,
        401 => GRPC_UNAUTHENTICATED,
        403 => GRPC_PERMISSION_DENIED,
        404 => GRPC_UNIMPLEMENTED,
        429 | 502 | 503 | 504 => GRPC_UNAVAILABLE,
        _ => GRPC_UNKNOWN,
    }
}

//= gRPC over HTTP/2, Responses
//# Percent-Byte-Unencoded -> 1*( %x20-%x24 / %x26-%x7E ) ; space and VCHAR, except %
fn grpc_message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        assert_eq!(grpc_message("100% für\n"), "100%25 f%C3%BCr%0A");
    }

    #[test]
    fn a_status_is_what_grpc_makes_of_it() {
        for (status, code) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (413, 2),
            (429, 14),
            (500, 2),
            (502, 14),
            (503, 14),
            (504, 14),
        ] {
            assert_eq!(grpc_status(StatusCode::from_u16(status).unwrap()), code, "{status}");
        }
    }
}
