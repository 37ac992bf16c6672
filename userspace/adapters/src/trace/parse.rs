//! The headers of trace contexts. What is malformed counts as absent, as both specifications ask.

use http::{HeaderMap, HeaderName};

use super::{B3, B3_FLAGS, B3_SAMPLED, B3_SPAN, B3_TRACE, SpanId, TRACEPARENT, TraceId};

/// What a request says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Incoming {
    /// Trace, and the caller's span.
    pub ids: Option<(TraceId, SpanId)>,
    /// `None`: the sender leaves it open.
    pub sampled: Option<bool>,
}

pub(super) fn find(headers: &HeaderMap) -> Incoming {
    if let Some((trace, span, sampled)) = traceparent(headers) {
        return Incoming {
            ids: Some((trace, span)),
            sampled: Some(sampled),
        };
    }
    match single(headers, &B3).and_then(b3) {
        Some(incoming) => incoming,
        None => several(headers),
    }
}

/// `00-TRACE-SPAN-FLAGS`; later versions may go on after another dash.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<(TraceId, SpanId, bool)> {
    let text = single(headers, &TRACEPARENT)?;
    let mut fields = text.splitn(5, '-');
    let version = lower_hex(fields.next()?, 2)?;
    let trace = lower_hex(fields.next()?, 32)?;
    let span = lower_hex(fields.next()?, 16)?;
    let flags = lower_hex(fields.next()?, 2)?;
    let more = fields.next().is_some();
    if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
        return None;
    }
    Some((TraceId(trace), SpanId(u64::try_from(span).ok()?), flags & 1 == 1))
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or only `SAMPLED`.
fn b3(text: &str) -> Option<Incoming> {
    if let Some(sampled) = sampled(text) {
        return Some(Incoming {
            ids: None,
            sampled: Some(sampled),
        });
    }
    let mut fields = text.split('-');
    let ids = (trace_id(fields.next()?)?, span_id(fields.next()?)?);
    Some(Incoming {
        ids: Some(ids),
        sampled: fields.next().and_then(sampled),
    })
}

fn several(headers: &HeaderMap) -> Incoming {
    let debug = single(headers, &B3_FLAGS) == Some("1");
    let ids = single(headers, &B3_TRACE)
        .and_then(trace_id)
        .zip(single(headers, &B3_SPAN).and_then(span_id));
    Incoming {
        ids,
        sampled: match debug {
            true => Some(true),
            false => single(headers, &B3_SAMPLED).and_then(sampled),
        },
    }
}

fn sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// 32 digits, or 16 as old Zipkins have it.
pub(super) fn trace_id(text: &str) -> Option<TraceId> {
    let id = hex(text, 32).or_else(|| hex(text, 16))?;
    (id != 0).then_some(TraceId(id))
}

pub(super) fn span_id(text: &str) -> Option<SpanId> {
    let id = u64::try_from(hex(text, 16)?).ok()?;
    (id != 0).then_some(SpanId(id))
}

fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    lower.then(|| hex(text, digits)).flatten()
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let all = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    all.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// A header that is there once: of two nobody knows which is meant.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    match values.next() {
        Some(_) => None,
        None => Some(value.to_str().ok()?.trim()),
    }
}
