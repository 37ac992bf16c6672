//! A request's place in a distributed trace, read from its headers and passed on with them.
//!
//! W3C trace context (<https://www.w3.org/TR/trace-context/>) is looked for first, then Zipkin's B3 in one header or in
//! several (<https://github.com/openzipkin/b3-propagation>). Whoever sent a trace has decided whether it is sampled, and that
//! is obeyed; only requests without one, or whose sender left it open, are sampled here.
//!
//! Nothing is read, written or changed unless an adapter that reports spans exists (see [`Demand`]): a span that nobody reports
//! would only break the trace.

use std::{
    cell::Cell,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

mod parse;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// 16 bytes, never all zero; 32 hexadecimal digits in headers and JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceId(pub u128);

/// 8 bytes, never all zero; 16 hexadecimal digits in headers and JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpanId(pub u64);

/// The span that a proxy adds to a trace for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// The caller's span; `None`: the trace begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<SpanId>,
    /// Spans are to be reported.
    pub sampled: bool,
}

/// While it lives, somebody reports spans: requests get one, and of those that come without a trace a share is sampled (the
/// largest that any asks for).
#[derive(Debug)]
pub struct Demand {
    number: u64,
}

/// Number and share of each [`Demand`], in 2^-31.
static DEMANDS: Mutex<Vec<(u64, u32)>> = Mutex::new(Vec::new());

static NEXT_DEMAND: AtomicU64 = AtomicU64::new(0);

/// 0: there is none. Else the largest share, and 1.
static SHARE: AtomicU32 = AtomicU32::new(0);

// === impl Demand ===

impl Demand {
    /// `share` of the requests that come without a trace, 0 to 1.
    pub fn new(share: f64) -> Self {
        let number = NEXT_DEMAND.fetch_add(1, Ordering::Relaxed);
        let share = (share.clamp(0.0, 1.0) * f64::from(1_u32 << 31)) as u32;
        change(|demands| demands.push((number, share)));
        Self { number }
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        change(|demands| demands.retain(|(number, _)| *number != self.number));
    }
}

fn change(how: impl FnOnce(&mut Vec<(u64, u32)>)) {
    let mut demands = DEMANDS.lock().unwrap_or_else(PoisonError::into_inner);
    how(&mut demands);
    let share = demands.iter().map(|(_, share)| share + 1).max();
    SHARE.store(share.unwrap_or(0), Ordering::Relaxed);
}

/// Whether somebody reports spans.
pub fn is_wanted() -> bool {
    SHARE.load(Ordering::Relaxed) != 0
}

// === impl Trace ===

impl Trace {
    /// Of a request that has just come; `None`: nobody reports spans.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        match SHARE.load(Ordering::Relaxed) {
            0 => None,
            share => Some(Self::under(headers, share - 1)),
        }
    }

    fn under(headers: &HeaderMap, share: u32) -> Self {
        let incoming = parse::find(headers);
        let (trace_id, parent_id) = match incoming.ids {
            Some((trace, parent)) => (trace, Some(parent)),
            None => (
                TraceId((u128::from(random()) << 64 | u128::from(random())).max(1)),
                None,
            ),
        };
        Self {
            trace_id,
            span_id: SpanId(random().max(1)),
            parent_id,
            sampled: incoming.sampled.unwrap_or_else(|| (random() >> 33) < u64::from(share)),
        }
    }

    /// Makes this span the parent of what the request causes: in every form that the request has, or as `traceparent` if it
    /// has none.
    pub fn write(&self, headers: &mut HeaderMap) {
        let (w3c, state) = (headers.contains_key(TRACEPARENT), headers.contains_key(TRACESTATE));
        let (single, several) = (
            headers.contains_key(B3),
            headers.contains_key(B3_TRACE) || headers.contains_key(B3_SAMPLED),
        );
        if w3c || !(single || several) {
            // State belongs to the trace that came with it.
            if state && parse::traceparent(headers).is_none_or(|(trace, ..)| trace != self.trace_id) {
                headers.remove(TRACESTATE);
            }
            let text = format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled));
            set(headers, TRACEPARENT, text);
        }
        let sampled = u8::from(self.sampled);
        if single {
            let parent = self.parent_id.map(|parent| format!("-{parent}")).unwrap_or_default();
            set(
                headers,
                B3,
                format!("{}-{}-{sampled}{parent}", self.trace_id, self.span_id),
            );
        }
        if several {
            set(headers, B3_TRACE, self.trace_id.to_string());
            set(headers, B3_SPAN, self.span_id.to_string());
            match self.parent_id {
                Some(parent) => set(headers, B3_PARENT, parent.to_string()),
                None => _ = headers.remove(B3_PARENT),
            }
            // Debug says more than sampled, and implies it.
            if !headers.contains_key(B3_FLAGS) {
                set(headers, B3_SAMPLED, sampled.to_string());
            }
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Digits and dashes always are a value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// SplitMix64: each thread counts through its own sequence, begun at a place nobody knows.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
    }
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

// === impl TraceId, SpanId ===

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<TraceId> for String {
    fn from(id: TraceId) -> Self {
        id.to_string()
    }
}

impl From<SpanId> for String {
    fn from(id: SpanId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for TraceId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse::trace_id(&text).ok_or_else(|| format!("`{text}` is no trace id, expected 32 hexadecimal digits"))
    }
}

impl TryFrom<String> for SpanId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse::span_id(&text).ok_or_else(|| format!("`{text}` is no span id, expected 16 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests;
