//! A request in the generation that it drew; and how it is drawn, of requests and connections.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use http::{HeaderMap, request};

use super::{Made, Set, waits::Hold};
use crate::stream::{FilterFactory, Lent, ResponseHead, Saved, Step, StreamEnd, StreamFilter, StreamInfo};

/// Ways of [`Draw::hold`].
const REQUEST: usize = 0;
const ANSWER: usize = 1;

/// The generation that a stream is in.
pub(super) struct Draw {
    set: Arc<Set>,
    pub info: Arc<StreamInfo>,
    at: usize,
    /// Bits of those that it was given to.
    tried: u32,
    /// The failure was told.
    told: bool,
    /// How long the one at hand keeps it waiting.
    hold: Hold,
}

/// The filter of one generation; of another one, where it fails before anything has passed.
pub(super) struct Drawn {
    draw: Draw,
    filter: Box<dyn StreamFilter>,
    /// What another generation begins with, while one could still take the request.
    before: Option<Before>,
}

/// A request as it came.
struct Before {
    head: Box<request::Parts>,
    /// That is all.
    end: bool,
    state: Saved,
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
            hold: Hold::default(),
        })
    }

    pub fn made(&self) -> Option<&Arc<Made>> {
        self.set.made(self.at)
    }

    /// One that it was not given to.
    fn other(&self) -> Option<usize> {
        self.set.draw(self.info.id, self.tried)
    }

    /// Gives it to another one, with what filters had set when it came; `false`: there is none.
    pub fn again(&mut self, before: &Saved) -> bool {
        let Some(next) = self.other() else { return false };
        self.leave();
        self.info.state.restore(before);
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

    /// The one at hand holds something on this way that is whole; or nothing such any more.
    pub fn hold(&mut self, way: usize, holds: bool) {
        if let Some(made) = self.set.made(self.at) {
            self.hold.set(way, holds, self.info.id, &made.waits);
        }
    }

    /// The stream is the one's at hand no more.
    fn leave(&mut self) {
        if let Some(made) = self.set.made(self.at) {
            self.hold.leave(self.info.id, &made.waits);
        }
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        self.leave();
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
            before: None,
        })
    }

    /// After a call about the request's head: as long as the filter has failed on it, gives it to another generation.
    fn settle(&mut self, head: &mut request::Parts, mut step: Step) -> Step {
        while self.tell() {
            let Some(before) = &self.before else { break };
            if !self.draw.again(&before.state) {
                break;
            }
            head.clone_from(&before.head);
            self.filter = filter(&self.draw);
            step = self.filter.on_request_headers(head, before.end);
        }
        let holds = matches!(step, Step::Pause);
        self.draw.hold(REQUEST, holds);
        if !holds {
            self.before = None;
        }
        step
    }

    /// Whether there is a new failure.
    fn tell(&mut self) -> bool {
        self.draw.tell(self.filter.has_failed())
    }

    /// After a call about something else. `whole`: nothing more of it is to come.
    fn told(&mut self, way: usize, whole: bool, step: Step) -> Step {
        self.tell();
        self.draw.hold(way, whole && matches!(step, Step::Pause));
        step
    }
}

impl StreamFilter for Drawn {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        if self.draw.other().is_some() {
            self.before = Some(Before {
                head: Box::new(head.clone()),
                end,
                state: self.draw.info.state.save(),
            });
        }
        let step = self.filter.on_request_headers(head, end);
        self.settle(head, step)
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let step = self.filter.on_request_body(body, end);
        self.told(REQUEST, end, step)
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let step = self.filter.on_request_trailers(trailers, body);
        self.told(REQUEST, true, step)
    }

    fn on_response_headers(&mut self, head: &mut ResponseHead, end: bool) -> Step {
        let step = self.filter.on_response_headers(head, end);
        self.told(ANSWER, true, step)
    }

    fn on_response_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let step = self.filter.on_response_body(body, end);
        self.told(ANSWER, end, step)
    }

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let step = self.filter.on_response_trailers(trailers, body);
        self.told(ANSWER, true, step)
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let Lent::RequestHeaders(head) = lent else {
            let way = way(&lent);
            let polled = self.filter.poll_resume(cx, lent);
            self.tell();
            let step = ready!(polled);
            if !matches!(step, Step::Pause) {
                self.draw.hold(way, false);
            }
            return Poll::Ready(step);
        };
        loop {
            let step = ready!(self.filter.poll_resume(cx, Lent::RequestHeaders(head)));
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

fn way(lent: &Lent<'_>) -> usize {
    match lent {
        Lent::RequestHeaders(_) | Lent::RequestBody(_) | Lent::RequestTrailers(..) => REQUEST,
        Lent::ResponseHeaders(_) | Lent::ResponseBody(_) | Lent::ResponseTrailers(..) => ANSWER,
    }
}

fn filter(draw: &Draw) -> Box<dyn StreamFilter> {
    let made = draw.made().and_then(|made| made.plugin.stream(&draw.info));
    made.unwrap_or_else(|| Box::new(Passes))
}
