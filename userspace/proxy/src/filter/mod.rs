//! Filters that see whole streams, run in Envoy's order and with its meanings.
//!
//! ```text
//!            request -->   first -> second -> third   --> endpoint
//!            client  <--   first <- second <- third   <-- response
//! ```
//! Which adapters look at a request is said by the `Chains` that are in force with the snapshot. [`chain`] calls them for its
//! heads, [`passage`] moves a body through them; [`tcp`] does the same for the bytes of a connection that nobody reads as HTTP. What a paused filter means:
//!
//! - at a head, everything of that direction stands still: no byte of the body is read, which holds up the sender
//!   (Envoy's `StopAllIterationAndWatermark`, what it does for proxy-wasm);
//! - at a body, the body goes on coming and gathers with the filter, up to [`FILTER_BODY_BUFFER`]; each further piece is
//!   shown with all before it;
//! - at trailers, they wait, and what gathered before them with them: both are lent together;
//! - at a new opaque connection, no endpoint is connected to, and no byte is read or shown: a filter that waits for bytes
//!   there waits for ever (Envoy goes on reading and would show them);
//! - at an opaque connection's bytes, they gather as a body does, but once there are more than that, no more are read.
//!
//! Whoever holds the same for longer than [`FILTER_PAUSE`] has forgotten it: the stream is ended.
//!
//! Filters run after routing, access rules and checks, so none sees a request that policy refuses, and nothing they change
//! is routed or judged anew. An answer of a filter's goes back through the filters that saw the request, as does every
//! answer of ours from then on; one that replaces an endpoint's answer at its head goes to the client directly. After the
//! head has gone nothing can be answered any more: the stream is reset. The bytes of an upgraded connection pass by.
//!
//! Where no filter is configured, nothing is called and nothing is kept.
//!
//! [`FILTER_BODY_BUFFER`]: crate::limits::FILTER_BODY_BUFFER
//! [`FILTER_PAUSE`]: crate::limits::FILTER_PAUSE

pub(crate) mod chain;
pub(crate) mod passage;
mod tcp;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};
use weft_adapters::{FilterFactory, StreamInfo};

pub(crate) use chain::{Chain, FilterAnswer, Stop, Way};
pub(crate) use passage::Passage;
pub(crate) use tcp::{ResetBy, TcpChain};

use crate::pick::Picked;

/// A filter at work, and the adapter that made it.
struct Running<F: ?Sized> {
    factory: Arc<dyn FilterFactory>,
    filter: Box<F>,
    /// With what it holds on its way to the endpoint, and to the client.
    patience: [Patience; 2],
}

/// How long a filter goes on holding something.
#[derive(Default)]
struct Patience(Option<Pin<Box<Sleep>>>);

// === impl Patience ===

impl Patience {
    /// It was shown something, or goes on.
    fn renew(&mut self) {
        self.0 = None;
    }

    /// Ready: it has held the same for `limit`.
    fn poll_end(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx)
    }
}

/// Makes the filters that look at what goes to `picked`; `None`: there are none.
fn running<F: ?Sized>(
    picked: &Picked,
    info: impl FnOnce() -> StreamInfo,
    make: impl Fn(&dyn FilterFactory, &Arc<StreamInfo>) -> Option<Box<F>>,
) -> Option<Vec<Running<F>>> {
    let factories = &picked.chain.as_ref().filter(|chain| !chain.filters.is_empty())?.filters;
    let info = Arc::new(info());
    let made = |factory: &Arc<dyn FilterFactory>| {
        Some(Running {
            filter: make(&**factory, &info)?,
            factory: Arc::clone(factory),
            patience: Default::default(),
        })
    };
    Some(factories.iter().filter_map(made).collect()).filter(|filters: &Vec<_>| !filters.is_empty())
}
