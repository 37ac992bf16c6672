//! A request in the generation that it drew; and how it is drawn, of requests and connections.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use http::{HeaderMap, request, response};

use super::{Made, Set};
use crate::stream::{FilterFactory, Lent, Step, StreamEnd, StreamFilter, StreamInfo};

/// The generation that a stream is in.
pub(super) struct Draw {
    set: Arc<Set>,
    pub info: Arc<StreamInfo>,
    at: usize,
    /// Bits of those that it was given to.
    tried: u32,
    /// The failure was told.
    told: bool,
}

/// The filter of one generation; of another one, where it fails before anything has passed.
pub(super) struct Drawn {
    draw: Draw,
    filter: Box<dyn StreamFilter>,
    /// The request's head as it came, while another generation could still take it; whether that is all.
    head: Option<(Box<request::Parts>, bool)>,
}

/// Stands in for a filter that cannot be made and whose failure policy is `open`.
pub(super) struct Passes;

// === impl Draw ===

impl Draw {
    /// `None`: none runs.
    pub fn new(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Option<Self> {
        let at = set.draw(info.id, 0)?;
        Some(Self {
            set: Arc::clone(set),
            info: Arc::clone(info),
            at,
            tried: 1 << at,
            told: false,
        })
    }

    pub fn made(&self) -> Option<&Arc<Made>> {
        self.set.made(self.at)
    }

    /// One that it was not given to.
    fn other(&self) -> Option<usize> {
        self.set.draw(self.info.id, self.tried)
    }

    /// Gives it to another one; `false`: there is none.
    pub fn again(&mut self) -> bool {
        let Some(next) = self.other() else { return false };
        self.at = next;
        self.tried |= 1 << next;
        self.told = false;
        true
    }

    /// Tells of a failure of the one at hand, once. Whether there is a new one.
    pub fn tell(&mut self, failed: bool) -> bool {
        if self.told || !failed {
            return false;
        }
        self.told = true;
        self.set.failed(self.at);
        true
    }
}

// === impl Drawn ===

impl Drawn {
    /// `None`: none runs.
    pub fn new(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Option<Self> {
        let draw = Draw::new(set, info)?;
        Some(Self {
            filter: filter(&draw),
            draw,
            head: None,
        })
    }

    /// After a call about the request's head: as long as the filter has failed on it, gives it to another generation.
    fn settle(&mut self, head: &mut request::Parts, mut step: Step) -> Step {
        while self.tell() {
            let Some((copy, end)) = &self.head else { break };
            if !self.draw.again() {
                break;
            }
            head.clone_from(copy);
            self.filter = filter(&self.draw);
            step = self.filter.on_request_headers(head, *end);
        }
        if !matches!(step, Step::Pause) {
            self.head = None;
        }
        step
    }

    /// Whether there is a new failure.
    fn tell(&mut self) -> bool {
        self.draw.tell(self.filter.has_failed())
    }

    fn told(&mut self, step: Step) -> Step {
        self.tell();
        step
    }
}

impl StreamFilter for Drawn {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        if self.draw.other().is_some() {
            self.head = Some((Box::new(head.clone()), end));
        }
        let step = self.filter.on_request_headers(head, end);
        self.settle(head, step)
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let step = self.filter.on_request_body(body, end);
        self.told(step)
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let step = self.filter.on_request_trailers(trailers, body);
        self.told(step)
    }

    fn on_response_headers(&mut self, head: &mut response::Parts, end: bool) -> Step {
        let step = self.filter.on_response_headers(head, end);
        self.told(step)
    }

    fn on_response_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let step = self.filter.on_response_body(body, end);
        self.told(step)
    }

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let step = self.filter.on_response_trailers(trailers, body);
        self.told(step)
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let Lent::RequestHeaders(head) = lent else {
            let polled = self.filter.poll_resume(cx, lent);
            self.tell();
            return polled;
        };
        loop {
            let step = std::task::ready!(self.filter.poll_resume(cx, Lent::RequestHeaders(head)));
            match self.settle(head, step) {
                // Of the next generation, which must be asked too.
                Step::Pause => {}
                step => return Poll::Ready(step),
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.filter.has_failed()
    }

    fn on_end(&mut self, end: &StreamEnd) {
        self.filter.on_end(end);
        self.tell();
    }
}

impl StreamFilter for Passes {
    fn has_failed(&self) -> bool {
        true
    }
}

fn filter(draw: &Draw) -> Box<dyn StreamFilter> {
    let made = draw.made().and_then(|made| made.plugin.stream(&draw.info));
    made.unwrap_or_else(|| Box::new(Passes))
}
