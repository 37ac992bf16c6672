//! Filters that see a whole stream: heads, bodies and trailers of a request, or the bytes of a connection.
//!
//! ```text
//!  client --> request head --> request body ... --> request trailers --> endpoint
//!         <-- response trailers <-- ... response body <-- response head <--      then: end
//! ```
//! A [`FilterFactory`] makes one [`StreamFilter`] a request, on the worker's thread, which it never leaves. The proxy
//! calls the points in this order and lends what passes; a filter may change it. One that has to wait (for an answer
//! from elsewhere) says [`Step::Pause`]; the proxy then holds the stream there and polls [`StreamFilter::poll_resume`],
//! with the same thing lent again. Where no filter is configured, nothing is called and nothing is kept.

use std::{
    mem,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, request};

use crate::record::{Destination, FlowProtocol, Peer};

mod head;
mod state;

pub(crate) use head::pairs;
pub use head::{HeaderLines, HeaderSection, RequestHead, ResponseHead};
pub use state::FilterState;
pub(crate) use state::{Room, Saved};

/// Makes the filters of one adapter. One value serves all workers.
pub trait FilterFactory: Send + Sync {
    /// Name of the adapter, as the operator wrote it.
    fn name(&self) -> &str;

    /// It is in force. Called on each worker, before the requests that it is to look at or among the first of them, and again
    /// when it stays in force: what it does beside requests, as ticks, begins here.
    fn warm(&self) {}

    /// A filter for one request; `None`: it does not look at this one.
    fn stream(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>>;

    /// Whether it refuses connections whose bytes nobody can read as HTTP, unless their port is declared so: it has not seen
    /// what they carry.
    fn requires_http(&self) -> bool {
        false
    }

    /// A filter for one connection whose bytes nobody reads as HTTP; `None`: it does not look at this one.
    fn tcp(&self, _info: &Arc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
        None
    }
}

/// What is known of a stream beside what it carries. Its filters share one.
#[derive(Debug)]
pub struct StreamInfo {
    /// Unique in this process.
    pub id: u64,
    /// Of the client's connection, which all its requests have. Unique in this process.
    pub connection: u64,
    pub direction: TrafficDirection,
    pub began: SystemTime,
    pub source: Arc<Peer>,
    pub source_address: SocketAddr,
    pub destination: Arc<Destination>,
    /// What the client dialled.
    pub original: SocketAddr,
    pub protocol: FlowProtocol,
    /// What its filters tell each other.
    pub state: FilterState,
}

/// For whom the proxy took a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficDirection {
    /// For whom it was opened to: it came in where that is.
    Inbound,
    /// For the client.
    Outbound,
}

/// What becomes of a stream after a filter was called.
#[derive(Debug)]
pub enum Step {
    /// On to the next filter, with what was lent.
    Continue,
    /// Hold what was lent (a body goes on gathering) until [`StreamFilter::poll_resume`] says otherwise.
    Pause,
    /// Answer this. Once the response's head has gone to the client, this resets the stream.
    Respond(Box<Response<Bytes>>),
    /// End the stream without an answer.
    Reset,
}

/// What a paused filter may look at and change.
pub enum Lent<'a> {
    RequestHeaders(&'a mut request::Parts),
    RequestBody(&'a mut BytesMut),
    /// And what is held of the body before them.
    RequestTrailers(&'a mut HeaderMap, &'a mut BytesMut),
    ResponseHeaders(&'a mut ResponseHead),
    ResponseBody(&'a mut BytesMut),
    /// And what is held of the body before them.
    ResponseTrailers(&'a mut HeaderMap, &'a mut BytesMut),
}

/// One filter on one request. All points have an empty default.
pub trait StreamFilter {
    /// The request is about to be forwarded. `end`: it has neither body nor trailers.
    fn on_request_headers(&mut self, _head: &mut request::Parts, _end: bool) -> Step {
        Step::Continue
    }

    /// The same of a head that may be a text. [`StreamFilter::poll_resume`] is lent it in a map all the same.
    fn on_request_head(&mut self, head: &mut RequestHead, end: bool) -> Step {
        let mut parts = mem::take(head).into_parts();
        let step = self.on_request_headers(&mut parts, end);
        *head = RequestHead::take(&mut parts);
        step
    }

    /// All of the body that was not passed on yet; with [`Step::Pause`] it stays and grows.
    fn on_request_body(&mut self, _body: &mut BytesMut, _end: bool) -> Step {
        Step::Continue
    }

    /// `body`: what the filter holds of it, which passes on before the trailers.
    fn on_request_trailers(&mut self, _trailers: &mut HeaderMap, _body: &mut BytesMut) -> Step {
        Step::Continue
    }

    /// The endpoint has answered. `end`: its answer has neither body nor trailers. Where nobody changes a header, none is put into a
    /// map.
    fn on_response_headers(&mut self, _head: &mut ResponseHead, _end: bool) -> Step {
        Step::Continue
    }

    /// All of the body that was not passed on yet; with [`Step::Pause`] it stays and grows.
    fn on_response_body(&mut self, _body: &mut BytesMut, _end: bool) -> Step {
        Step::Continue
    }

    /// `body`: what the filter holds of it, which passes on before the trailers.
    fn on_response_trailers(&mut self, _trailers: &mut HeaderMap, _body: &mut BytesMut) -> Step {
        Step::Continue
    }

    /// Called while paused, whenever something may have happened: whatever the filter waits for must wake `cx`.
    /// Ready with [`Step::Pause`] is a mistake and treated as pending.
    fn poll_resume(&mut self, _cx: &mut Context<'_>, _lent: Lent<'_>) -> Poll<Step> {
        Poll::Ready(Step::Continue)
    }

    /// Whether it could not do its work, so that a failure policy decided.
    fn has_failed(&self) -> bool {
        false
    }

    /// The request is over, in whatever way; called once.
    fn on_end(&mut self, _end: &StreamEnd) {}
}

/// How a stream ended.
#[derive(Debug, Clone, Copy)]
pub struct StreamEnd {
    /// HTTP status that the client got; 0: none.
    pub status: u16,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// `None`: the client got all of the answer, an endpoint's or a filter's.
    pub failure: Option<StreamFailure>,
}

/// What a stream failed for, as far as Envoy's response flags tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFailure {
    /// No connection to an endpoint came about.
    Connect,
    /// The endpoint's connection ended before its answer did.
    Upstream,
    /// What the endpoint sent was no answer.
    UpstreamProtocol,
    /// The client's connection ended before the answer did.
    Downstream,
    /// A filter held it for too long.
    Held,
    Other,
}

/// Which way bytes of a connection go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Downstream,
    /// From the endpoint.
    Upstream,
}

/// One filter on one connection whose bytes nobody reads as HTTP.
pub trait TcpFilter {
    fn on_connection(&mut self) -> TcpStep {
        TcpStep::Continue
    }

    /// All bytes of this direction that were not passed on yet; with [`TcpStep::Pause`] they stay and gather.
    fn on_data(&mut self, _from: Direction, _data: &mut BytesMut, _end: bool) -> TcpStep {
        TcpStep::Continue
    }

    /// Called while paused, as [`StreamFilter::poll_resume`] is.
    fn poll_resume(&mut self, _cx: &mut Context<'_>, _from: Direction, _data: &mut BytesMut) -> Poll<TcpStep> {
        Poll::Ready(TcpStep::Continue)
    }

    /// As [`StreamFilter::has_failed`].
    fn has_failed(&self) -> bool {
        false
    }

    /// This side has closed.
    fn on_close(&mut self, _by: Direction) {}

    /// The connection is over; called once.
    fn on_end(&mut self) {}
}

/// What becomes of a connection after a filter was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpStep {
    Continue,
    Pause,
    Reset,
}

// === impl StreamInfo ===

impl StreamInfo {
    /// The same stream, for a filter that must not change it: what that one sets, the others do not see.
    pub(crate) fn apart(self: &Arc<Self>) -> Arc<Self> {
        self.with(FilterState::over(self))
    }

    /// The same stream, for whoever goes on after its end, with room of its own for what filters have set: theirs is free again.
    pub(crate) fn outlived(&self, room: impl Fn(usize) -> Option<Room>) -> Arc<Self> {
        self.with(self.state.copy(room))
    }

    fn with(&self, state: FilterState) -> Arc<Self> {
        Arc::new(Self {
            id: self.id,
            connection: self.connection,
            direction: self.direction,
            began: self.began,
            source: Arc::clone(&self.source),
            source_address: self.source_address,
            destination: Arc::clone(&self.destination),
            original: self.original,
            protocol: self.protocol,
            state,
        })
    }
}
