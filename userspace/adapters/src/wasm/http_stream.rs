//! A filter on one request.

use std::{
    mem,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use http::{HeaderMap, request};

use super::{
    failed,
    headers::MapRef,
    host::{Point, Stream, Wish},
    vm::{Vm, length, optional},
    worker::Worker,
};
use crate::stream::{Lent, RequestHead, ResponseHead, Step, StreamEnd, StreamFilter, StreamInfo};

/// Action of the ABI: go on.
const CONTINUE: u32 = 0;

/// Action of the ABI: hold what was lent.
const PAUSE: u32 = 1;

/// Action that Envoy adds for headers: go on. That the stream ends there is not supported.
const CONTINUE_AND_END: u32 = 2;

/// One request in an instance.
pub(super) struct HttpStream {
    worker: Rc<Worker>,
    context: u32,
    /// The module knows the context.
    created: bool,
    /// The failure policy has decided over it.
    failed: bool,
    ended: bool,
}

// === impl HttpStream ===

impl HttpStream {
    /// `None`: the instance has failed. The module learns of the stream when that has something to show, as in Envoy: of one that
    /// another filter answers before, it hears nothing.
    pub fn begin(worker: Rc<Worker>, info: &Arc<StreamInfo>) -> Option<Self> {
        let context = worker.next_context();
        worker.with_host(|host| host.add_stream(context, info))?;
        Some(Self {
            worker,
            context,
            created: false,
            failed: false,
            ended: false,
        })
    }

    /// Lends something to the module while `callback` runs, and says what becomes of the stream.
    fn run<'a>(
        &mut self,
        lent: impl Into<Loan<'a>>,
        callback: impl FnOnce(&mut Vm, u32) -> wasmtime::Result<u32>,
    ) -> Step {
        let mut lent = lent.into();
        let context = self.context;
        let created = mem::replace(&mut self.created, true);
        let step = self.worker.enter(|vm| {
            if !created {
                vm.create_context(context)?;
            }
            let Some(stream) = vm.host().streams.get_mut(&context) else {
                return Ok(Step::Continue);
            };
            let point = lent.point();
            lend(stream, &mut lent);
            let action = callback(vm, context).and_then(|action| deliver_waiting(vm, context).map(|()| action));
            // Back in any case: the stream may go on without the filter.
            let stream = vm.host().streams.get_mut(&context);
            let step = stream.map(|stream| {
                // After a failure that is for whoever answers in the instance's place.
                let step = action
                    .as_ref()
                    .map_or(Step::Continue, |action| decide(stream, point, *action));
                take_back(stream, &mut lent, matches!(step, Step::Pause));
                step
            });
            action.map(|_| step.unwrap_or(Step::Continue))
        });
        step.unwrap_or_else(|| self.fail())
    }

    /// What the module said before it failed, else what the failure policy says; asked again, the stream goes on.
    fn fail(&mut self) -> Step {
        if mem::replace(&mut self.failed, true) {
            return Step::Continue;
        }
        let failed = self.worker.plugin.failed();
        match (self.worker.last_wish(self.context), failed) {
            (Some(Wish::Respond(reply)), _) => Step::Respond(reply),
            (Some(Wish::Reset), _) => Step::Reset,
            (None, None) => Step::Continue,
            (None, Some(_)) => Step::Respond(failed::response(&self.worker.plugin.config.name)),
        }
    }

    fn end(&mut self, end: Option<&StreamEnd>) {
        if mem::replace(&mut self.ended, true) {
            return;
        }
        let (context, created) = (self.context, self.created);
        self.worker.cancel_calls(context);
        let ran = self.worker.runs();
        self.worker.enter(|vm| {
            if created {
                return finish(vm, context, end);
            }
            vm.host().remove_stream(context);
            Ok(())
        });
        self.failed |= ran && !self.worker.runs();
    }
}

impl StreamFilter for HttpStream {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        self.run(Lent::RequestHeaders(head), |vm, context| {
            request_headers(vm, context, end)
        })
    }

    fn on_request_head(&mut self, head: &mut RequestHead, end: bool) -> Step {
        self.run(Loan::Head(head), |vm, context| request_headers(vm, context, end))
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let about = (self.context, length(body.len()), u32::from(end));
        self.run(Lent::RequestBody(body), |vm, context| {
            let action = optional(&mut vm.store, &vm.exports.request_body, context, about)?;
            Ok(action.unwrap_or(CONTINUE))
        })
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let about = (self.context, length(trailers.len()));
        self.run(Lent::RequestTrailers(trailers, body), |vm, context| {
            let action = optional(&mut vm.store, &vm.exports.request_trailers, context, about)?;
            Ok(action.unwrap_or(CONTINUE))
        })
    }

    fn on_response_headers(&mut self, head: &mut ResponseHead, end: bool) -> Step {
        self.run(Lent::ResponseHeaders(head), |vm, context| {
            let stream = vm.host().streams.get(&context);
            let count = stream.map_or(0, |stream| MapRef::Response(&stream.response).len());
            vm.on_headers(false, context, count, end)
        })
    }

    fn on_response_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        let about = (self.context, length(body.len()), u32::from(end));
        self.run(Lent::ResponseBody(body), |vm, context| {
            let action = optional(&mut vm.store, &vm.exports.response_body, context, about)?;
            Ok(action.unwrap_or(CONTINUE))
        })
    }

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        let about = (self.context, length(trailers.len()));
        self.run(Lent::ResponseTrailers(trailers, body), |vm, context| {
            let action = optional(&mut vm.store, &vm.exports.response_trailers, context, about)?;
            Ok(action.unwrap_or(CONTINUE))
        })
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let (context, side) = (self.context, lent.point().side());
        let waiting = self.worker.enter(|vm| {
            let Some(stream) = vm.host().streams.get_mut(&context) else {
                return Ok(false);
            };
            let waiting = stream.events.is_empty() && !stream.settled && !stream.resume[side];
            if waiting {
                stream.listen(side, cx.waker());
            }
            Ok(waiting)
        });
        if waiting == Some(true) {
            return Poll::Pending;
        }
        // Nothing is called beyond the answers that wait; unless these let it go, it stays held.
        match self.run(lent, |_, _| Ok(PAUSE)) {
            Step::Pause => {
                self.worker.enter(|vm| {
                    if let Some(stream) = vm.host().streams.get_mut(&context) {
                        stream.listen(side, cx.waker());
                    }
                    Ok(())
                });
                Poll::Pending
            }
            step => Poll::Ready(step),
        }
    }

    fn has_failed(&self) -> bool {
        self.failed
    }

    fn on_end(&mut self, end: &StreamEnd) {
        self.end(Some(end));
    }
}

impl Drop for HttpStream {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// The last callbacks of a context, unless the module wants to say itself when it is done.
pub(super) fn finish(vm: &mut Vm, context: u32, end: Option<&StreamEnd>) -> wasmtime::Result<()> {
    let Some(stream) = vm.host().streams.get_mut(&context) else {
        return Ok(());
    };
    stream.end = end.copied();
    stream.held = [None; 2];
    stream.closing = true;
    stream.settled = true;
    if vm.on_done(context)? {
        return vm.end_context(context);
    }
    match vm.host().wait_for_done(context) {
        Some(oldest) => vm.end_context(oldest),
        None => Ok(()),
    }
}

/// Tells the module of the answers that came while its stream was held.
pub(super) fn deliver_waiting(vm: &mut Vm, context: u32) -> wasmtime::Result<()> {
    loop {
        let stream = vm.host().streams.get_mut(&context);
        let Some(event) = stream.and_then(|stream| stream.events.pop_front()) else {
            return Ok(());
        };
        vm.deliver(context, event)?;
    }
}

/// What becomes of a stream after a callback at `point`.
fn decide(stream: &mut Stream, point: Point, action: u32) -> Step {
    let side = point.side();
    let resumed = mem::take(&mut stream.resume[side]);
    stream.held[side] = None;
    match stream.wish() {
        Some(Wish::Respond(reply)) => return Step::Respond(reply),
        Some(Wish::Reset) => return Step::Reset,
        None => {}
    }
    let heads = matches!(point, Point::RequestHeaders | Point::ResponseHeaders);
    if action == CONTINUE || resumed || (heads && action == CONTINUE_AND_END) {
        return Step::Continue;
    }
    stream.held[side] = Some(point);
    Step::Pause
}

fn request_headers(vm: &mut Vm, context: u32, end: bool) -> wasmtime::Result<u32> {
    let stream = vm.host().streams.get(&context);
    let count = stream.map_or(0, |stream| MapRef::Request(&stream.request).len());
    vm.on_headers(true, context, count, end)
}

/// What a callback is about.
enum Loan<'a> {
    /// A request's head that may be a text.
    Head(&'a mut RequestHead),
    Lent(Lent<'a>),
}

// === impl Loan ===

impl Loan<'_> {
    fn point(&self) -> Point {
        match self {
            Self::Head(_) => Point::RequestHeaders,
            Self::Lent(lent) => lent.point(),
        }
    }

    fn body(&mut self) -> Option<&mut BytesMut> {
        match self {
            Self::Head(_) => None,
            Self::Lent(lent) => lent.body(),
        }
    }
}

impl<'a> From<Lent<'a>> for Loan<'a> {
    fn from(lent: Lent<'a>) -> Self {
        Self::Lent(lent)
    }
}

// === impl Lent ===

impl Lent<'_> {
    fn point(&self) -> Point {
        match self {
            Self::RequestHeaders(_) => Point::RequestHeaders,
            Self::RequestBody(_) => Point::RequestBody,
            Self::RequestTrailers(..) => Point::RequestTrailers,
            Self::ResponseHeaders(_) => Point::ResponseHeaders,
            Self::ResponseBody(_) => Point::ResponseBody,
            Self::ResponseTrailers(..) => Point::ResponseTrailers,
        }
    }

    fn body(&mut self) -> Option<&mut BytesMut> {
        match self {
            Self::RequestHeaders(_) | Self::ResponseHeaders(_) => None,
            Self::RequestBody(body) | Self::RequestTrailers(_, body) => Some(body),
            Self::ResponseBody(body) | Self::ResponseTrailers(_, body) => Some(body),
        }
    }
}

/// Moves what is lent into the stream. What was changed while it was held is in there already.
fn lend(stream: &mut Stream, lent: &mut Loan<'_>) {
    let point = lent.point();
    stream.lent = Some(point);
    if stream.flows_on(point.side()) {
        // Said when nothing was held: it was about nothing.
        stream.resume[point.side()] = false;
    }
    let changed = mem::take(&mut stream.changed[point.side()]) && stream.held[point.side()] == Some(point);
    if let Some(body) = lent.body() {
        mem::swap(&mut stream.body, body);
    }
    match lent {
        _ if changed => {}
        Loan::Head(head) => {
            stream.has_request = true;
            stream.request = mem::take::<RequestHead>(head);
        }
        Loan::Lent(Lent::RequestHeaders(head)) => {
            stream.has_request = true;
            stream.request = RequestHead::take(head);
        }
        Loan::Lent(Lent::ResponseHeaders(head)) => {
            stream.has_response = true;
            stream.response = mem::take::<ResponseHead>(head);
        }
        Loan::Lent(Lent::RequestBody(_) | Lent::ResponseBody(_)) => {}
        Loan::Lent(Lent::RequestTrailers(trailers, _) | Lent::ResponseTrailers(trailers, _)) => {
            stream.trailers[point.side()] = Some(Box::new(mem::take::<HeaderMap>(trailers)));
        }
    }
}

/// Moves what was lent back, and keeps a copy of heads and trailers for later callbacks. `held`: the stream is held there.
fn take_back(stream: &mut Stream, lent: &mut Loan<'_>, held: bool) {
    stream.lent = None;
    if let Some(body) = lent.body() {
        mem::swap(&mut stream.body, body);
    }
    let side = lent.point().side();
    match lent {
        Loan::Head(head) => **head = take_request(stream, held),
        Loan::Lent(Lent::RequestHeaders(head)) => take_request(stream, held).put(head),
        Loan::Lent(Lent::ResponseHeaders(head)) => {
            let kept = ResponseHead {
                status: stream.response.status,
                headers: stream.response.headers.kept(held),
            };
            **head = mem::replace(&mut stream.response, kept);
        }
        Loan::Lent(Lent::RequestTrailers(trailers, _) | Lent::ResponseTrailers(trailers, _)) => {
            if let Some(kept) = &stream.trailers[side] {
                trailers.clone_from(kept);
            }
        }
        Loan::Lent(Lent::RequestBody(_) | Lent::ResponseBody(_)) => {}
    }
}

fn take_request(stream: &mut Stream, held: bool) -> RequestHead {
    let kept = stream.request.kept(held);
    mem::replace(&mut stream.request, kept)
}
