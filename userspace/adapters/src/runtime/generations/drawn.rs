//! A request in the generation that it drew.

use std::{
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use http::{HeaderMap, request, response};

use super::Set;
use crate::stream::{FilterFactory, Lent, Step, StreamEnd, StreamFilter, StreamInfo};

/// The filter of one generation; of another one, where it fails before anything has passed.
pub(super) struct Drawn {
    set: Arc<Set>,
    info: Rc<StreamInfo>,
    at: usize,
    /// Bits of those that it was given to.
    tried: u32,
    filter: Box<dyn StreamFilter>,
    /// The request's head as it came, while another generation could still take it; whether that is all.
    head: Option<(Box<request::Parts>, bool)>,
    /// The failure was told.
    told: bool,
}

/// Stands in for a filter that cannot be made and whose failure policy is `open`.
struct Passes;

// === impl Drawn ===

impl Drawn {
    /// `None`: none runs.
    pub fn new(set: &Arc<Set>, info: &Rc<StreamInfo>) -> Option<Self> {
        let at = set.draw(info.id, 0)?;
        Some(Self {
            set: Arc::clone(set),
            info: Rc::clone(info),
            at,
            tried: 1 << at,
            filter: filter(set, info, at),
            head: None,
            told: false,
        })
    }

    /// After a call about the request's head: as long as the filter has failed on it, gives it to another generation.
    fn settle(&mut self, head: &mut request::Parts, mut step: Step) -> Step {
        while self.tell() {
            let (Some((copy, end)), Some(next)) = (&self.head, self.set.draw(self.info.id, self.tried)) else {
                break;
            };
            head.clone_from(copy);
            let end = *end;
            self.at = next;
            self.tried |= 1 << next;
            self.told = false;
            self.filter = filter(&self.set, &self.info, next);
            step = self.filter.on_request_headers(head, end);
        }
        if !matches!(step, Step::Pause) {
            self.head = None;
        }
        step
    }

    /// Tells of a failure, once. Whether there is a new one.
    fn tell(&mut self) -> bool {
        if self.told || !self.filter.has_failed() {
            return false;
        }
        self.told = true;
        self.set.failed(self.at);
        true
    }

    fn told(&mut self, step: Step) -> Step {
        self.tell();
        step
    }
}

impl StreamFilter for Drawn {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        if self.set.draw(self.info.id, self.tried).is_some() {
            self.head = Some((Box::new(head.clone()), end));
        }
        let step = self.filter.on_request_headers(head, end);
        self.settle(head, step)
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let step = self.filter.on_request_body(body, end);
        self.told(step)
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap) -> Step {
        let step = self.filter.on_request_trailers(trailers);
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

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap) -> Step {
        let step = self.filter.on_response_trailers(trailers);
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

fn filter(set: &Set, info: &Rc<StreamInfo>, at: usize) -> Box<dyn StreamFilter> {
    let made = set.made(at).and_then(|made| made.plugin.stream(info));
    made.unwrap_or_else(|| Box::new(Passes))
}
