//! The filters of one request, and the calls for its heads.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    mem,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, request, response};
use weft_adapters::{Lent, RequestHead, ResponseHead, Step, StreamEnd, StreamFilter, StreamInfo};

use super::{Passage, Running, passage::Stages, running};
use crate::{limits::FILTER_BODY_BUFFER, pick::Picked};

/// One request's filters. Called from the task that forwards and from both bodies, all on one thread.
pub(crate) struct Chain {
    filters: RefCell<Vec<Running<dyn StreamFilter>>>,
    /// So many of them saw the request's head: only these see the answer.
    seen: Cell<usize>,
    /// They see an answer's head now, or have.
    answering: Cell<bool>,
    /// A body of the request goes through them.
    carries_request: Cell<bool>,
    /// What that ended in, for whoever answers.
    stopped: RefCell<Option<Stop>>,
    /// Of whoever answers.
    answerer: RefCell<Option<Waker>>,
    /// How long a filter may hold something.
    pause: Duration,
}

/// A filter ended the stream.
#[derive(Debug)]
pub(crate) enum Stop {
    Answer(Box<FilterAnswer>),
    Reset {
        by: String,
    },
    /// More of a body gathered than [`FILTER_BODY_BUFFER`].
    Full {
        by: String,
    },
    /// It was held for longer than this.
    Late {
        by: String,
        limit: Duration,
    },
}

/// What a filter answers.
#[derive(Debug)]
pub(crate) struct FilterAnswer {
    /// The adapter.
    pub(crate) by: String,
    pub(crate) response: Response<Bytes>,
}

/// Which body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Request,
    Response,
}

/// A chain as one of the bodies meets it.
pub(crate) struct Bodies<'a> {
    chain: &'a Chain,
    way: Way,
}

// === impl Chain ===

impl Chain {
    /// Makes the filters that look at a request to `picked`; `None`: there are none. `pause`: how long each may hold something.
    pub(crate) fn new(picked: &Picked, pause: Duration, info: impl FnOnce() -> StreamInfo) -> Option<Self> {
        let filters = running(picked, info, |factory, info| factory.stream(info))?;
        Some(Self {
            filters: RefCell::new(filters),
            seen: Cell::new(0),
            answering: Cell::new(false),
            carries_request: Cell::new(false),
            stopped: RefCell::default(),
            answerer: RefCell::default(),
            pause,
        })
    }

    /// The way of a body through the filters that saw the request's head.
    pub(crate) fn passage(&self, way: Way) -> Passage {
        if way == Way::Request {
            self.carries_request.set(true);
        }
        Passage::new(self.seen.get())
    }

    pub(crate) fn bodies(&self, way: Way) -> Bodies<'_> {
        Bodies { chain: self, way }
    }

    /// Shows the request's head to all filters, first to last.
    ///
    /// # Cancel safety
    /// The rest is not shown; [`Chain::end`] is still due.
    pub(crate) async fn request_headers(&self, head: &mut request::Parts, end: bool) -> Result<(), Stop> {
        let count = self.filters.borrow().len();
        for index in 0..count {
            self.seen.set(index + 1);
            let step = self.call(index, Lent::RequestHeaders(head), end);
            if !self.passes(index, step)? {
                poll_fn(|cx| self.poll_resume(index, cx, Lent::RequestHeaders(head))).await?;
            }
        }
        Ok(())
    }

    /// The same of a head that may be a text.
    ///
    /// # Cancel safety
    /// As [`Chain::request_headers`].
    pub(crate) async fn request_head(&self, head: &mut RequestHead, end: bool) -> Result<(), Stop> {
        let count = self.filters.borrow().len();
        for index in 0..count {
            self.seen.set(index + 1);
            let step = {
                let running = &mut self.filters.borrow_mut()[index];
                running.patience[0].renew();
                running.filter.on_request_head(head, end)
            };
            if !self.passes(index, step)? {
                // In a box: few are held.
                Box::pin(self.hold_request(index, head)).await?;
            }
        }
        Ok(())
    }

    async fn hold_request(&self, index: usize, head: &mut RequestHead) -> Result<(), Stop> {
        let mut parts = mem::take(head).into_parts();
        let held = poll_fn(|cx| self.poll_resume(index, cx, Lent::RequestHeaders(&mut parts))).await;
        *head = RequestHead::take(&mut parts);
        held
    }

    /// Shows an answer's head to the filters that saw the request, last to first.
    pub(crate) async fn response_headers(&self, head: &mut ResponseHead, end: bool) -> Result<(), Stop> {
        self.answering.set(true);
        for index in (0..self.seen.get()).rev() {
            let step = self.call(index, Lent::ResponseHeaders(head), end);
            if !self.passes(index, step)? {
                poll_fn(|cx| self.poll_resume(index, cx, Lent::ResponseHeaders(head))).await?;
            }
        }
        Ok(())
    }

    /// The same of a head that is in a map. After an error it is empty.
    pub(crate) async fn response_parts(&self, parts: &mut response::Parts, end: bool) -> Result<(), Stop> {
        let mut head = ResponseHead::new(parts.status, mem::take(&mut parts.headers));
        self.response_headers(&mut head, end).await?;
        (parts.status, parts.headers) = (head.status, head.headers.into_map());
        Ok(())
    }

    /// Whether filters have begun to see an answer: another one in its place passes them by.
    pub(crate) fn is_answering(&self) -> bool {
        self.answering.get()
    }

    /// A body ended in `stop`: whoever answers is to learn it.
    pub(crate) fn stop(&self, stop: Stop) {
        self.stopped.replace(Some(stop));
        if let Some(waker) = self.answerer.take() {
            waker.wake();
        }
    }

    /// What the request's body ended in. `Pending`: nothing yet, `cx` is woken then.
    pub(crate) fn poll_stopped(&self, cx: &Context<'_>) -> Poll<Stop> {
        if !self.carries_request.get() {
            // Should one begin to, whoever answers makes it do so, and asks again.
            return Poll::Pending;
        }
        if let Some(stop) = self.stopped.take() {
            return Poll::Ready(stop);
        }
        let mut answerer = self.answerer.borrow_mut();
        match &mut *answerer {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The request is over: to be called once.
    pub(crate) fn end(&mut self, end: &StreamEnd) {
        for running in self.filters.get_mut() {
            running.filter.on_end(end);
        }
    }

    fn call(&self, index: usize, lent: Lent<'_>, end: bool) -> Step {
        let running = &mut self.filters.borrow_mut()[index];
        running.patience[side(&lent)].renew();
        let filter = &mut running.filter;
        match lent {
            Lent::RequestHeaders(head) => filter.on_request_headers(head, end),
            Lent::RequestBody(body) => filter.on_request_body(body, end),
            Lent::RequestTrailers(trailers, body) => filter.on_request_trailers(trailers, body),
            Lent::ResponseHeaders(head) => filter.on_response_headers(head, end),
            Lent::ResponseBody(body) => filter.on_response_body(body, end),
            Lent::ResponseTrailers(trailers, body) => filter.on_response_trailers(trailers, body),
        }
    }

    /// Ready: what the filter held goes on.
    fn poll_resume(&self, index: usize, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Result<(), Stop>> {
        let polled = {
            let running = &mut self.filters.borrow_mut()[index];
            let patience = &mut running.patience[side(&lent)];
            match running.filter.poll_resume(cx, lent) {
                Poll::Pending | Poll::Ready(Step::Pause) => patience.poll_end(self.pause, cx).map(|()| None),
                Poll::Ready(step) => {
                    patience.renew();
                    Poll::Ready(Some(step))
                }
            }
        };
        Poll::Ready(match ready!(polled) {
            Some(step) => self.passes(index, step).map(|_goes_on| ()),
            None => Err(Stop::Late {
                by: self.name(index),
                limit: self.pause,
            }),
        })
    }

    /// Whether the stream goes on after `step`.
    fn passes(&self, index: usize, step: Step) -> Result<bool, Stop> {
        match step {
            Step::Continue => Ok(true),
            Step::Pause => Ok(false),
            Step::Respond(response) => Err(Stop::Answer(Box::new(FilterAnswer {
                by: self.name(index),
                response: *response,
            }))),
            Step::Reset => Err(Stop::Reset { by: self.name(index) }),
        }
    }

    fn name(&self, index: usize) -> String {
        self.filters.borrow()[index].factory.name().to_owned()
    }
}

/// Of [`Running::patience`].
fn side(lent: &Lent<'_>) -> usize {
    match lent {
        Lent::RequestHeaders(_) | Lent::RequestBody(_) | Lent::RequestTrailers(..) => 0,
        Lent::ResponseHeaders(_) | Lent::ResponseBody(_) | Lent::ResponseTrailers(..) => 1,
    }
}

// === impl Bodies ===

impl Bodies<'_> {
    /// The filter of a stage: an answer meets them in reverse.
    fn filter(&self, at: usize) -> usize {
        match self.way {
            Way::Request => at,
            Way::Response => self.chain.seen.get() - 1 - at,
        }
    }

    fn body<'a>(&self, body: &'a mut BytesMut) -> Lent<'a> {
        match self.way {
            Way::Request => Lent::RequestBody(body),
            Way::Response => Lent::ResponseBody(body),
        }
    }

    fn trailers<'a>(&self, trailers: &'a mut HeaderMap, body: &'a mut BytesMut) -> Lent<'a> {
        match self.way {
            Way::Request => Lent::RequestTrailers(trailers, body),
            Way::Response => Lent::ResponseTrailers(trailers, body),
        }
    }
}

impl Stages for Bodies<'_> {
    type Stop = Stop;

    fn on_data(&self, at: usize, data: &mut BytesMut, end: bool) -> Result<bool, Stop> {
        let filter = self.filter(at);
        self.chain.passes(filter, self.chain.call(filter, self.body(data), end))
    }

    fn on_trailers(&self, at: usize, trailers: &mut HeaderMap, held: &mut BytesMut) -> Result<bool, Stop> {
        let filter = self.filter(at);
        let lent = self.trailers(trailers, held);
        self.chain.passes(filter, self.chain.call(filter, lent, true))
    }

    fn poll_resume(
        &self,
        at: usize,
        cx: &mut Context<'_>,
        data: &mut BytesMut,
        trailers: Option<&mut HeaderMap>,
    ) -> Poll<Result<(), Stop>> {
        let filter = self.filter(at);
        let lent = match trailers {
            Some(trailers) => self.trailers(trailers, data),
            None => self.body(data),
        };
        self.chain.poll_resume(filter, cx, lent)
    }

    fn on_full(&self, at: usize) -> Result<(), Stop> {
        Err(Stop::Full {
            by: self.chain.name(self.filter(at)),
        })
    }
}

// === impl Stop ===

impl Stop {
    /// The adapter.
    pub(crate) fn by(&self) -> &str {
        match self {
            Self::Answer(answer) => &answer.by,
            Self::Reset { by } | Self::Full { by } | Self::Late { by, .. } => by,
        }
    }

    /// Of a stream whose head the client has: it is cut.
    pub(crate) fn cut_words(&self) -> String {
        match self {
            Self::Answer(answer) => format!(
                "reset: adapter {} answered {} after the head had gone to the client",
                answer.by,
                answer.response.status()
            ),
            Self::Reset { by } => format!("reset by adapter {by}"),
            Self::Late { by, limit } => format!("reset: adapter {by} held it for more than {} s", limit.as_secs()),
            Self::Full { by } => {
                format!("reset: adapter {by} held back a body of more than {FILTER_BODY_BUFFER} bytes")
            }
        }
    }
}
