//! Bodies on their way through: counted, and led through filters where there are any.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{sync::Notify, time::timeout};

use super::{exchange::Exchange, lean::LeanAnswer};
use crate::{
    balance::InFlight,
    error::BoxError,
    filter::{
        Passage, Stop, Way,
        passage::{Broke, Input},
    },
    limits::{CONTINUE_TIMEOUT, LINGER_TIMEOUT},
    upstream::Lease,
    wire::WireBody,
};

/// The request body, as the upstream connection reads it.
pub(crate) struct RequestBody {
    /// `None`: there is none (a request that is sent a second time).
    incoming: Option<WireBody>,
    exchange: Rc<Exchange>,
    /// The client waits for `100 Continue` before it sends; so do we, until the endpoint said so.
    gate: Option<Pin<Box<dyn Future<Output = ()>>>>,
    passage: Option<Box<Passage>>,
}

/// The response body, as the client's connection reads it.
pub(crate) struct ResponseBody {
    content: Content,
    exchange: Rc<Exchange>,
    passage: Option<Box<Passage>>,
    /// It has broken off. Whoever writes it gives up at once when it hears that, so it gets a turn to write what came before.
    broken: Option<BodyError>,
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the sender broke off")]
    Sender(#[source] BoxError),
    #[error("{0}")]
    Filter(String),
}

enum Content {
    /// Of the endpoint.
    Forwarded {
        incoming: WireBody,
        lease: Option<Lease>,
        _load: InFlight,
    },
    /// Of the endpoint, on the short way.
    Lean { answer: Box<LeanAnswer>, _load: InFlight },
    /// Ours. `None` where it is empty or was read.
    Text(Option<Bytes>),
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn new(incoming: WireBody, exchange: Rc<Exchange>) -> Self {
        if !incoming.is_end_stream() {
            exchange.request_body_began();
        }
        Self {
            incoming: Some(incoming),
            exchange,
            gate: None,
            passage: None,
        }
    }

    pub(crate) fn empty(exchange: Rc<Exchange>) -> Self {
        Self {
            incoming: None,
            exchange,
            gate: None,
            passage: None,
        }
    }

    /// Leads it through the filters that saw the head, and were not told that it is the end.
    pub(crate) fn filtered(mut self) -> Self {
        if let Some(chain) = self.exchange.chain() {
            self.passage = Some(Box::new(chain.passage(Way::Request)));
        }
        self
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
        let clock = self.exchange.leave_request_body();
        let rest = async move {
            // hyper tells the end of a body of known length by this alone.
            while !incoming.is_end_stream() {
                match incoming.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(_broke)) => return,
                    None => break,
                }
            }
            if let Some(clock) = clock {
                clock.body_ended();
            }
        };
        self.exchange.conn.worker.spawn_chore(async move {
            let _too_much = timeout(LINGER_TIMEOUT, rest).await;
        });
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self {
            incoming,
            exchange,
            gate,
            passage,
        } = &mut *self;
        if let Some(waiting) = gate {
            ready!(waiting.as_mut().poll(cx));
            *gate = None;
        }
        let Some(incoming) = incoming else {
            return Poll::Ready(None);
        };
        let read = |cx: &mut Context<'_>| poll_incoming(incoming, exchange, cx);
        let (Some(passage), Some(chain)) = (passage, exchange.chain()) else {
            let frame = ready!(poll_incoming(incoming, exchange, cx));
            return Poll::Ready(
                frame
                    .map(|input| input.map(|(frame, _)| frame))
                    .map_err(BodyError::Sender)
                    .transpose(),
            );
        };
        let frame = ready!(passage.poll_frame(&chain.bodies(Way::Request), cx, read));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|broke| match broke {
                Broke::Input(error) => BodyError::Sender(error),
                Broke::Filter(stop) => {
                    let words = stop.cut_words();
                    chain.stop(stop);
                    BodyError::Filter(words)
                }
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.passage {
            Some(passage) => passage.is_over(),
            None => self.incoming.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.passage, &self.incoming) {
            // Filters may change its length.
            (Some(_), _) => SizeHint::default(),
            (None, Some(incoming)) => incoming.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

/// What the client sends next.
fn poll_incoming(incoming: &mut WireBody, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<Result<Input, BoxError>> {
    let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx)).transpose();
    if frame.is_err() {
        exchange.request_broke();
    }
    let end = incoming.is_end_stream();
    if end || matches!(frame, Ok(None)) {
        exchange.request_body_ended();
    }
    Poll::Ready(frame.map(|frame| frame.map(|frame| (exchange.request_frame(frame), end))))
}

// === impl ResponseBody ===

impl ResponseBody {
    /// `lease` goes back to the pool when the last byte was read, `load` counts until the client has it all.
    pub(crate) fn forwarded(incoming: WireBody, exchange: Rc<Exchange>, lease: Lease, load: InFlight) -> Self {
        let mut content = Content::Forwarded {
            incoming,
            lease: Some(lease),
            _load: load,
        };
        content.settle();
        Self {
            content,
            exchange,
            passage: None,
            broken: None,
        }
    }

    /// The same on the short way, where `answer` gives its connection back.
    pub(crate) fn lean(answer: LeanAnswer, exchange: Rc<Exchange>, load: InFlight) -> Self {
        Self {
            content: Content::Lean {
                answer: Box::new(answer),
                _load: load,
            },
            exchange,
            passage: None,
            broken: None,
        }
    }

    pub(crate) fn text(text: impl Into<Bytes>, exchange: Rc<Exchange>) -> Self {
        // hyper drops the body of an answer to HEAD on HTTP/1 only.
        let takes_body = exchange.is_http1 || exchange.method != Method::HEAD;
        Self {
            content: Content::Text(Some(text.into()).filter(|text| takes_body && !text.is_empty())),
            exchange,
            passage: None,
            broken: None,
        }
    }

    /// What follows the head. `end`: nothing does, as filters were told; else it is led through those that saw the head.
    pub(crate) fn after_head(mut self, end: bool) -> Self {
        if end {
            self.exchange.response_ended();
        } else if let Some(chain) = self.exchange.chain() {
            self.passage = Some(Box::new(chain.passage(Way::Response)));
        }
        self
    }
}

impl Content {
    fn poll_frame(
        &mut self,
        exchange: &Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, BoxError>> {
        match self {
            Self::Lean { answer, .. } => {
                let frame = ready!(answer.poll_frame(cx));
                if let Err(error) = &frame {
                    exchange.response_broke(error);
                }
                Poll::Ready(frame.map_err(Into::into))
            }
            Self::Forwarded { incoming, lease, .. } => {
                let frame = match lease {
                    Some(lease) => lease.poll_frame(incoming, cx),
                    None => Pin::new(incoming).poll_frame(cx),
                };
                let frame = ready!(frame).transpose();
                match &frame {
                    Ok(Some(_)) => self.settle(),
                    Ok(None) => {
                        if let Some(lease) = lease.take() {
                            lease.finish();
                        }
                    }
                    Err(error) => exchange.response_broke(&**error),
                }
                Poll::Ready(frame)
            }
            Self::Text(text) => Poll::Ready(Ok(text.take().map(Frame::data))),
        }
    }

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

    fn is_over(&self) -> bool {
        match self {
            Self::Forwarded { incoming, .. } => incoming.is_end_stream(),
            Self::Lean { answer, .. } => answer.is_over(),
            Self::Text(text) => text.is_none(),
        }
    }
}

impl ResponseBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self {
            content,
            exchange,
            passage,
            ..
        } = self;
        let Some(chain) = exchange.chain() else {
            let frame = ready!(content.poll_frame(exchange, cx));
            let frame = frame.map_err(BodyError::Sender).transpose();
            return Poll::Ready(frame.map(|frame| frame.map(|frame| exchange.response_frame(frame))));
        };
        let cut = |stop: &Stop| {
            exchange.cut_by(stop);
            Some(Err(BodyError::Filter(stop.cut_words())))
        };
        // The request's body may still be under way, and a filter of it end the stream.
        if let Poll::Ready(stop) = chain.poll_stopped(cx) {
            return Poll::Ready(cut(&stop));
        }
        let frame = match passage {
            Some(passage) => ready!(passage.poll_frame(&chain.bodies(Way::Response), cx, |cx| {
                let frame = ready!(content.poll_frame(exchange, cx));
                let end = content.is_over();
                Poll::Ready(frame.map(|frame| frame.map(|frame| (frame, end))))
            })),
            None => ready!(content.poll_frame(exchange, cx))
                .map_err(Broke::Input)
                .transpose(),
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(exchange.response_frame(frame))),
            Some(Err(Broke::Input(error))) => Some(Err(BodyError::Sender(error))),
            Some(Err(Broke::Filter(stop))) => cut(&stop),
            None => None,
        })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(self.poll_next(cx)) {
            Some(Err(error)) => {
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => {
                if frame.is_none() || self.is_end_stream() {
                    self.exchange.response_ended();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.passage {
            Some(passage) => passage.is_over(),
            None => self.content.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.passage, &self.content) {
            // Filters may change its length.
            (Some(_), _) => SizeHint::default(),
            (None, Content::Forwarded { incoming, .. }) => incoming.size_hint(),
            // Nobody asks: the short way says the length itself.
            (None, Content::Lean { .. }) => SizeHint::default(),
            (None, Content::Text(text)) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
