//! Generations that see copies of requests and change nothing.
//!
//! What a shadow would have answered is counted, and compared with what the generation in force did. A shadow that waits (for
//! the answer of a service) holds up nobody: it is shown the request's next part when it is done waiting, and what passes
//! meanwhile it misses, but for the body that it is gathering.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use http::{HeaderMap, request};

use super::{Made, Set, drawn::Drawn};
use crate::stream::{FilterFactory, Lent, ResponseHead, Step, StreamEnd, StreamFilter, StreamInfo};

/// Bytes of a body, or of one direction of a connection, that a shadow may gather; beyond, it is shown nothing more of the stream.
pub(super) const MAX_GATHERED: usize = 1 << 20;

/// The generation that a request drew, and the shadows beside it.
pub(super) struct Shadowed {
    drawn: Option<Drawn>,
    shadows: Vec<Shadow>,
    /// The generation in force answered.
    answered: bool,
    /// Bytes of each body that the generation in force holds and the shadows have seen: request, response.
    seen: [usize; 2],
}

/// One shadow on one request.
pub(super) struct Shadow {
    set: Arc<Set>,
    at: usize,
    made: Arc<Made>,
    filter: Box<dyn StreamFilter>,
    /// It is shown nothing more.
    over: bool,
    /// It would have answered, or reset the stream.
    answered: bool,
    /// What it holds.
    held: Option<Copy>,
    told: bool,
}

/// A copy of what is lent.
enum Copy {
    RequestHeaders(Box<request::Parts>),
    RequestBody(BytesMut),
    /// With what is held of the body.
    RequestTrailers(HeaderMap, BytesMut),
    ResponseHeaders(Box<ResponseHead>),
    ResponseBody(BytesMut),
    /// With what is held of the body.
    ResponseTrailers(HeaderMap, BytesMut),
}

// === impl Shadowed ===

impl Shadowed {
    pub fn new(drawn: Option<Drawn>, shadows: Vec<Shadow>) -> Self {
        Self {
            drawn,
            shadows,
            answered: false,
            seen: [0; 2],
        }
    }

    /// Those that look at this request.
    pub fn shadows(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Vec<Shadow> {
        let shadows = set.shadows().filter_map(|(at, made)| {
            Some(Shadow {
                set: Arc::clone(set),
                at,
                made: Arc::clone(made),
                filter: made.plugin.stream(&info.apart())?,
                over: false,
                answered: false,
                held: None,
                told: false,
            })
        });
        shadows.collect()
    }

    fn show(&mut self, copy: impl Fn() -> Copy, end: bool) {
        let looking = self.shadows.iter_mut().filter(|shadow| !shadow.over);
        looking.for_each(|shadow| shadow.show(copy(), end));
    }

    /// Calls the generation in force.
    fn call(&mut self, call: impl FnOnce(&mut Drawn) -> Step) -> Step {
        let step = self.drawn.as_mut().map_or(Step::Continue, call);
        self.answered |= matches!(step, Step::Respond(_) | Step::Reset);
        step
    }

    /// Shows what is new of a body, then calls the generation in force.
    fn body(
        &mut self,
        body: &mut BytesMut,
        end: bool,
        (way, copy): (usize, fn(BytesMut) -> Copy),
        call: impl FnOnce(&mut Drawn, &mut BytesMut) -> Step,
    ) -> Step {
        let new = body.get(self.seen[way]..).unwrap_or_default();
        self.show(|| copy(BytesMut::from(new)), end);
        let step = self.call(|drawn| call(drawn, body));
        self.seen[way] = match step {
            Step::Pause => body.len(),
            _ => 0,
        };
        step
    }
}

impl StreamFilter for Shadowed {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        self.show(|| Copy::RequestHeaders(Box::new(head.clone())), end);
        self.call(|drawn| drawn.on_request_headers(head, end))
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        self.body(body, end, (0, Copy::RequestBody), |drawn, body| {
            drawn.on_request_body(body, end)
        })
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        self.show(|| Copy::RequestTrailers(trailers.clone(), BytesMut::new()), true);
        self.call(|drawn| drawn.on_request_trailers(trailers, body))
    }

    fn on_response_headers(&mut self, head: &mut ResponseHead, end: bool) -> Step {
        self.show(|| Copy::ResponseHeaders(Box::new(head.clone())), end);
        self.call(|drawn| drawn.on_response_headers(head, end))
    }

    fn on_response_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        self.body(body, end, (1, Copy::ResponseBody), |drawn, body| {
            drawn.on_response_body(body, end)
        })
    }

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        self.show(|| Copy::ResponseTrailers(trailers.clone(), BytesMut::new()), true);
        self.call(|drawn| drawn.on_response_trailers(trailers, body))
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let way = match &lent {
            Lent::RequestBody(_) | Lent::RequestTrailers(..) => Some(0),
            Lent::ResponseBody(_) | Lent::ResponseTrailers(..) => Some(1),
            _ => None,
        };
        let Some(drawn) = &mut self.drawn else {
            return Poll::Ready(Step::Continue);
        };
        let step = std::task::ready!(drawn.poll_resume(cx, lent));
        if let (Some(way), false) = (way, matches!(step, Step::Pause)) {
            // What was held passes on without being shown again.
            self.seen[way] = 0;
        }
        self.answered |= matches!(step, Step::Respond(_) | Step::Reset);
        Poll::Ready(step)
    }

    fn on_end(&mut self, end: &StreamEnd) {
        if let Some(drawn) = &mut self.drawn {
            drawn.on_end(end);
        }
        let answered = self.answered;
        self.shadows.iter_mut().for_each(|shadow| shadow.end(end, answered));
    }
}

// === impl Shadow ===

impl Shadow {
    fn show(&mut self, mut copy: Copy, end: bool) {
        if self.over {
            return;
        }
        match (self.held.take(), &mut copy) {
            (None, _) => {}
            (Some(Copy::RequestBody(mut gathered)), Copy::RequestBody(more) | Copy::RequestTrailers(_, more))
            | (Some(Copy::ResponseBody(mut gathered)), Copy::ResponseBody(more) | Copy::ResponseTrailers(_, more)) => {
                gathered.extend_from_slice(more);
                *more = gathered;
            }
            (Some(held), _) => {
                self.held = Some(held);
                self.resume();
                if self.held.is_some() || self.over {
                    return;
                }
            }
        }
        let filter = &mut self.filter;
        let step = match &mut copy {
            Copy::RequestHeaders(head) => filter.on_request_headers(head, end),
            Copy::RequestBody(body) => filter.on_request_body(body, end),
            Copy::RequestTrailers(trailers, body) => filter.on_request_trailers(trailers, body),
            Copy::ResponseHeaders(head) => filter.on_response_headers(head, end),
            Copy::ResponseBody(body) => filter.on_response_body(body, end),
            Copy::ResponseTrailers(trailers, body) => filter.on_response_trailers(trailers, body),
        };
        self.over |= copy.bytes().len() > MAX_GATHERED;
        self.after(step, copy);
    }

    /// Whether it is done waiting.
    fn resume(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        let cx = &mut Context::from_waker(Waker::noop());
        match self.filter.poll_resume(cx, held.lend()) {
            Poll::Pending => self.held = Some(held),
            Poll::Ready(step) => self.after(step, held),
        }
    }

    fn after(&mut self, step: Step, copy: Copy) {
        if self.filter.has_failed() {
            self.over = true;
            if !std::mem::replace(&mut self.told, true) {
                self.set.failed(self.at);
            }
            return;
        }
        match step {
            Step::Continue => {}
            Step::Pause => self.held = Some(copy),
            Step::Respond(_) | Step::Reset => (self.answered, self.over) = (true, true),
        }
    }

    fn end(&mut self, end: &StreamEnd, answered: bool) {
        self.resume();
        self.filter.on_end(end);
        if self.answered != answered && !self.told {
            self.made.disagreed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Copy ===

impl Copy {
    fn lend(&mut self) -> Lent<'_> {
        match self {
            Self::RequestHeaders(head) => Lent::RequestHeaders(head),
            Self::RequestBody(body) => Lent::RequestBody(body),
            Self::RequestTrailers(trailers, body) => Lent::RequestTrailers(trailers, body),
            Self::ResponseHeaders(head) => Lent::ResponseHeaders(head),
            Self::ResponseBody(body) => Lent::ResponseBody(body),
            Self::ResponseTrailers(trailers, body) => Lent::ResponseTrailers(trailers, body),
        }
    }

    /// Of a body.
    fn bytes(&self) -> &[u8] {
        match self {
            Self::RequestBody(body) | Self::ResponseBody(body) => body,
            Self::RequestTrailers(_, body) | Self::ResponseTrailers(_, body) => body,
            Self::RequestHeaders(_) | Self::ResponseHeaders(_) => &[],
        }
    }
}
