//! Bodies on their way through: counted, shown to filters, never collected.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{sync::Notify, time::timeout};

use super::exchange::Exchange;
use crate::{
    balance::InFlight,
    limits::{CONTINUE_TIMEOUT, LINGER_TIMEOUT},
    upstream::Lease,
};

/// The request body, as the upstream connection reads it.
pub(crate) struct RequestBody {
    /// `None`: there is none (a request that is sent a second time).
    incoming: Option<Incoming>,
    exchange: Rc<Exchange>,
    /// The client waits for `100 Continue` before it sends; so do we, until the endpoint said so.
    gate: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// The response body, as the client's connection reads it.
pub(crate) struct ResponseBody(Content);

enum Content {
    /// Of the endpoint.
    Forwarded {
        incoming: Incoming,
        exchange: Rc<Exchange>,
        lease: Option<Lease>,
        _load: InFlight,
    },
    /// Ours.
    Text {
        text: Option<Bytes>,
        _exchange: Rc<Exchange>,
    },
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, exchange: Rc<Exchange>) -> Self {
        Self {
            incoming: Some(incoming),
            exchange,
            gate: None,
        }
    }

    pub(crate) fn empty(exchange: Rc<Exchange>) -> Self {
        Self {
            incoming: None,
            exchange,
            gate: None,
        }
    }

    /// Nothing is read before the returned notice was given, or time is up.
    pub(crate) fn wait_for_continue(&mut self) -> Arc<Notify> {
        let go = Arc::new(Notify::new());
        let given = Arc::clone(&go);
        self.gate = Some(Box::pin(async move {
            let _given_or_late = timeout(CONTINUE_TIMEOUT, given.notified()).await;
        }));
        go
    }
}

/// Nobody wants the rest of it. HTTP/2 says so on the stream; an HTTP/1 client that is still sending would lose the
/// answer to a reset (see [`LINGER_TIMEOUT`]), so the rest is read, unless the client has not begun to send.
impl Drop for RequestBody {
    fn drop(&mut self) {
        let waits = self.gate.is_some();
        let Some(mut incoming) = self.incoming.take() else {
            return;
        };
        if waits || !self.exchange.is_http1 || incoming.is_end_stream() || self.exchange.has_request_broken() {
            return;
        }
        let rest = async move { while let Some(Ok(_)) = incoming.frame().await {} };
        self.exchange.conn.worker.spawn_chore(async move {
            let _too_much = timeout(LINGER_TIMEOUT, rest).await;
        });
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            std::task::ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(incoming).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(self.exchange.request_frame(frame))),
            Some(Err(error)) => {
                self.exchange.request_broke();
                Some(Err(error))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    /// `lease` goes back to the pool when the last byte was read, `load` counts until the client has it all.
    pub(crate) fn forwarded(incoming: Incoming, exchange: Rc<Exchange>, lease: Lease, load: InFlight) -> Self {
        let mut body = Content::Forwarded {
            incoming,
            exchange,
            lease: Some(lease),
            _load: load,
        };
        body.settle();
        Self(body)
    }

    pub(crate) fn text(text: impl Into<Bytes>, exchange: Rc<Exchange>) -> Self {
        Self(Content::Text {
            text: Some(text.into()).filter(|text| !text.is_empty()),
            _exchange: exchange,
        })
    }
}

impl Content {
    /// Gives the connection back once nothing more comes on it. hyper stops asking at the last byte of a body of known
    /// length, and never asks for one that is empty.
    fn settle(&mut self) {
        if let Self::Forwarded { incoming, lease, .. } = self
            && incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.finish();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.0 {
            Content::Forwarded {
                incoming,
                exchange,
                lease,
                ..
            } => match std::task::ready!(Pin::new(incoming).poll_frame(cx)) {
                Some(Ok(frame)) => Some(Ok(exchange.response_frame(frame))),
                Some(Err(error)) => {
                    exchange.response_broke(&error);
                    Some(Err(error))
                }
                None => {
                    if let Some(lease) = lease.take() {
                        lease.finish();
                    }
                    None
                }
            },
            Content::Text { text, .. } => text.take().map(|text| Ok(Frame::data(text))),
        };
        self.0.settle();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Forwarded { incoming, .. } => incoming.is_end_stream(),
            Content::Text { text, .. } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Forwarded { incoming, .. } => incoming.size_hint(),
            Content::Text { text, .. } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
