//! The filters of one request, and the calls for its heads.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Response, request, response};
use weft_adapters::{FilterFactory, Lent, Step, StreamEnd, StreamFilter, StreamInfo};

use super::FilterTable;
use crate::{limits::FILTER_BODY_BUFFER, pick::Picked};

/// One request's filters. Called from the task that forwards and from both bodies, all on one thread.
pub(crate) struct Chain {
    filters: RefCell<Vec<Running>>,
    /// So many of them saw the request's head: only these see the answer.
    seen: Cell<usize>,
    /// They see an answer's head now, or have.
    answering: Cell<bool>,
    /// What the request's body ended in, for whoever answers.
    stopped: RefCell<Option<Stop>>,
    /// Of whoever answers.
    answerer: RefCell<Option<Waker>>,
}

struct Running {
    factory: Arc<dyn FilterFactory>,
    filter: Box<dyn StreamFilter>,
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
}

/// What a filter answers.
#[derive(Debug)]
pub(crate) struct FilterAnswer {
    /// The adapter.
    pub(crate) by: String,
    pub(crate) response: Response<Bytes>,
}

// === impl Chain ===

impl Chain {
    /// Makes the filters that look at a request to `picked`; `None`: there are none.
    pub(crate) fn new(table: &FilterTable, picked: &Picked, info: impl FnOnce() -> StreamInfo) -> Option<Self> {
        let adapters = picked.chain.iter().flat_map(|chain| &chain.filters);
        let table = table.of(picked.called.as_deref(), picked.backend.as_deref());
        let mut factories = table.chain(adapters).peekable();
        factories.peek()?;
        let info = Rc::new(info());
        let filters: Vec<Running> = factories
            .filter_map(|factory| {
                Some(Running {
                    filter: factory.stream(&info)?,
                    factory: Arc::clone(factory),
                })
            })
            .collect();
        (!filters.is_empty()).then(|| Self {
            filters: RefCell::new(filters),
            seen: Cell::new(0),
            answering: Cell::new(false),
            stopped: RefCell::default(),
            answerer: RefCell::default(),
        })
    }

    /// How many filters see the body that follows a head.
    pub(super) fn seen(&self) -> usize {
        self.seen.get()
    }

    /// Shows the request's head to all filters, first to last.
    ///
    /// # Cancel safety
    /// The rest is not shown; [`Chain::end`] is still due.
    pub(crate) async fn request_headers(&self, head: &mut request::Parts, end: bool) -> Result<(), Stop> {
        let count = self.filters.borrow().len();
        for index in 0..count {
            self.seen.set(index + 1);
            let mut step = self.call(index, Lent::RequestHeaders(head), end);
            if let Step::Pause = step {
                step = poll_fn(|cx| self.poll_resume(index, cx, Lent::RequestHeaders(head))).await;
            }
            self.passes(index, step)?;
        }
        Ok(())
    }

    /// Shows an answer's head to the filters that saw the request, last to first.
    pub(crate) async fn response_headers(&self, head: &mut response::Parts, end: bool) -> Result<(), Stop> {
        self.answering.set(true);
        for index in (0..self.seen.get()).rev() {
            let mut step = self.call(index, Lent::ResponseHeaders(head), end);
            if let Step::Pause = step {
                step = poll_fn(|cx| self.poll_resume(index, cx, Lent::ResponseHeaders(head))).await;
            }
            self.passes(index, step)?;
        }
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

    pub(super) fn call(&self, index: usize, lent: Lent<'_>, end: bool) -> Step {
        let filter = &mut self.filters.borrow_mut()[index].filter;
        match lent {
            Lent::RequestHeaders(head) => filter.on_request_headers(head, end),
            Lent::RequestBody(body) => filter.on_request_body(body, end),
            Lent::RequestTrailers(trailers) => filter.on_request_trailers(trailers),
            Lent::ResponseHeaders(head) => filter.on_response_headers(head, end),
            Lent::ResponseBody(body) => filter.on_response_body(body, end),
            Lent::ResponseTrailers(trailers) => filter.on_response_trailers(trailers),
        }
    }

    pub(super) fn poll_resume(&self, index: usize, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        match self.filters.borrow_mut()[index].filter.poll_resume(cx, lent) {
            Poll::Ready(Step::Pause) => Poll::Pending,
            other => other,
        }
    }

    /// Whether the stream goes on after `step`, which is no pause.
    pub(super) fn passes(&self, index: usize, step: Step) -> Result<(), Stop> {
        match step {
            Step::Continue | Step::Pause => Ok(()),
            Step::Respond(response) => Err(Stop::Answer(Box::new(FilterAnswer {
                by: self.name(index),
                response: *response,
            }))),
            Step::Reset => Err(Stop::Reset { by: self.name(index) }),
        }
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.filters.borrow()[index].factory.name().to_owned()
    }
}

// === impl Stop ===

impl Stop {
    /// The adapter.
    pub(crate) fn by(&self) -> &str {
        match self {
            Self::Answer(answer) => &answer.by,
            Self::Reset { by } | Self::Full { by } => by,
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
            Self::Full { by } => {
                format!("reset: adapter {by} held back a body of more than {FILTER_BODY_BUFFER} bytes")
            }
        }
    }
}
