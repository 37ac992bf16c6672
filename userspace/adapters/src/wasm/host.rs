//! What the host knows while a module runs: the data of its store.
//!
//! What a callback is about (a head, a body) is moved into its [`Stream`] before the call and back after it, so that host
//! calls work on the proxy's own values without copying them. Of heads a copy stays, as text, because filters ask for the
//! request's path when the response comes, and at the end.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use wasmtime::{Memory, ResourceLimiter, TypedFunc};

use super::{
    abi::{BufferKind, MapKind},
    callout::{Call, Event, HttpAnswer, Order},
    counters::Counters,
    headers::{MapMut, MapRef},
    inbox::Inbox,
    kept::Kept,
    metric::Metric,
    plugin::Inner,
};
use crate::stream::{RequestHead, ResponseHead, StreamEnd, StreamInfo};

/// Context of the plugin itself; streams count on from here.
pub(super) const ROOT: u32 = 1;

/// Contexts of an instance that wait for `proxy_done`. Of more the oldest ends: a module that never says it would have the proxy
/// keep every request for ever.
const MAX_CLOSING: usize = 1024;

/// Longest text of a module that is kept to explain a failure, bytes.
const MAX_WORDS: usize = 512;

/// Of one instance.
pub(super) struct Host {
    pub plugin: Arc<Inner>,
    pub counters: Arc<Counters>,
    pub inbox: Arc<Inbox>,
    pub memory: Option<Memory>,
    /// Taken out for each call, which needs the whole store: a `TypedFunc` itself counts its type and the engine, which all
    /// workers share.
    pub allocate: Option<Arc<TypedFunc<u32, u32>>>,
    pub deadline: Deadline,
    /// When the first callback began that is not counted yet.
    pub calling_since: Option<Instant>,
    pub limiter: MemoryLimit,
    /// Context that host calls are about.
    pub effective: u32,
    pub streams: Streams,
    /// Contexts that wait for `proxy_done`, the oldest first; and the number of the last one.
    pub(super) closing: (BTreeMap<u64, u32>, u64),
    /// What the callback at hand is about, if it is an answer from elsewhere.
    pub answer: Answer,
    pub metrics: Vec<Arc<Metric>>,
    /// Time between ticks, and whether that was just changed.
    pub tick: Option<Duration>,
    pub tick_changed: bool,
    /// Calls to be started when the callback is over.
    pub outbox: Vec<Order>,
    /// Beside its memory.
    pub kept: Kept,
    /// Calls under way, by token.
    pub calls: HashMap<u32, Call>,
    /// Calls that the module wants ended.
    pub cancelled: Vec<u32>,
    /// Contexts that `proxy_done` was called for.
    pub done: Vec<u32>,
    /// Whether the plugin's own context is done, once it was asked.
    pub root_done: Option<bool>,
    /// Number of the last call-out.
    pub last_token: u32,
    /// Last warning or error that the module logged.
    pub words: Option<String>,
    /// Kept for its capacity.
    pub scratch: Vec<u8>,
}

/// Streams by context.
pub(super) type Streams = HashMap<u32, Box<Stream>, BuildHasherDefault<SerialHasher>>;

/// Of numbers that count up, as contexts and plugins do: they need no mixing beyond this.
#[derive(Debug, Default)]
pub(super) struct SerialHasher(u64);

/// Until when the callback may run.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    pub limit: Duration,
    /// CPU time of the thread when the clock first found the callback running.
    pub first_tick: Option<Duration>,
}

/// How much memory the instance may have.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    pub bytes: usize,
    pub counters: Arc<Counters>,
}

/// What a callback about an answer may read.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub head: Option<ResponseHead>,
    pub body: Bytes,
    pub trailers: HeaderMap,
    pub grpc_initial: HeaderMap,
    pub grpc_message: Bytes,
    pub grpc_trailing: HeaderMap,
    pub grpc_status: u32,
    pub grpc_text: String,
    pub foreign: Bytes,
}

/// A point at which a stream is held, or that a callback is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    RequestHeaders,
    RequestBody,
    RequestTrailers,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
    Downstream,
    Upstream,
}

/// How the module wants a stream to end.
pub(super) enum Wish {
    Respond(Box<Response<Bytes>>),
    Reset,
}

/// One request or connection.
pub(super) struct Stream {
    pub info: Arc<StreamInfo>,
    pub request: RequestHead,
    pub response: ResponseHead,
    /// By [`Point::side`]; few streams have any.
    pub trailers: [Option<Box<HeaderMap>>; 2],
    /// What the callback at hand may read and change: the body, or bytes of a connection.
    pub body: BytesMut,
    /// What of the above is there by now.
    pub has_request: bool,
    pub has_response: bool,
    /// What the callback at hand lent.
    pub lent: Option<Point>,
    /// Where the stream is held, by [`Point::side`].
    pub held: [Option<Point>; 2],
    /// A copy was changed while that was held: the lent one takes that over.
    pub changed: [bool; 2],
    /// The module wants what is held to go on.
    pub resume: [bool; 2],
    pub reply: Option<Box<Response<Bytes>>>,
    pub reset: bool,
    /// The module answered or reset the stream: its further wishes are ignored.
    pub settled: bool,
    pub waker: [Option<Waker>; 2],
    /// Answers to call-outs that wait for the stream to lend what it holds.
    pub events: VecDeque<Event>,
    /// So many properties it has added to those of the stream.
    pub properties: usize,
    pub end: Option<StreamEnd>,
    /// `proxy_done` may be said.
    pub closing: bool,
    /// `proxy_on_done` asked to wait for it: the place among those that do.
    waits: Option<u64>,
}

// === impl Host ===

impl Host {
    /// The stream that host calls are about, if it is none of the plugin's own.
    pub fn stream(&self) -> Option<&Stream> {
        self.streams.get(&self.effective).map(|stream| &**stream)
    }

    pub fn stream_mut(&mut self) -> Option<&mut Stream> {
        self.streams.get_mut(&self.effective).map(|stream| &mut **stream)
    }

    /// No callback runs any more: counts the time since the first one. Two looks at the clock for all of them, not for each.
    pub fn count_time(&mut self) {
        if let Some(since) = self.calling_since.take() {
            let spent = u64::try_from(since.elapsed().as_nanos());
            self.counters.callback_nanoseconds.add(spent.unwrap_or(u64::MAX));
        }
    }

    /// There is one stream more.
    pub fn add_stream(&mut self, context: u32, info: &Arc<StreamInfo>) {
        self.counters.streams.add(1);
        self.streams.insert(context, Box::new(Stream::new(Arc::clone(info))));
    }

    /// The context waits for `proxy_done`. Says which one has waited for too long, if they are too many.
    pub fn wait_for_done(&mut self, context: u32) -> Option<u32> {
        let (closing, last) = &mut self.closing;
        *last += 1;
        let stream = self.streams.get_mut(&context)?;
        stream.waits = Some(*last);
        // What the other filters' instances have given room for must not be up to this one.
        stream.info = stream
            .info
            .outlived(|bytes| Some(Box::new(self.kept.hold(bytes).ok()?)));
        closing.insert(*last, context);
        let (_, oldest) = closing.first_key_value()?;
        (closing.len() > MAX_CLOSING).then_some(*oldest)
    }

    /// The next context that waits for `proxy_done`.
    pub fn waiting(&self) -> Option<u32> {
        self.closing.0.first_key_value().map(|(_, context)| *context)
    }

    /// Whether all requests in here are over.
    pub fn is_drained(&self) -> bool {
        self.streams.len() == self.closing.0.len()
    }

    /// Forgets a context.
    pub fn remove_stream(&mut self, context: u32) {
        let stream = self.streams.remove(&context);
        if let Some(waits) = stream.and_then(|stream| stream.waits) {
            self.closing.0.remove(&waits);
        }
    }

    /// The map, if the context at hand has it.
    pub fn map(&self, kind: MapKind) -> Option<MapRef<'_>> {
        match kind {
            MapKind::CallHeaders => return self.answer.head.as_ref().map(MapRef::Response),
            MapKind::CallTrailers => return Some(MapRef::Plain(&self.answer.trailers)),
            MapKind::GrpcInitial => return Some(MapRef::Plain(&self.answer.grpc_initial)),
            MapKind::GrpcTrailing => return Some(MapRef::Plain(&self.answer.grpc_trailing)),
            _ => {}
        }
        let stream = self.stream()?;
        match kind {
            MapKind::RequestHeaders if stream.has_request => Some(MapRef::Request(&stream.request)),
            MapKind::RequestTrailers => stream.trailers[0].as_deref().map(MapRef::Plain),
            MapKind::ResponseHeaders if stream.has_response => Some(MapRef::Response(&stream.response)),
            MapKind::ResponseTrailers => stream.trailers[1].as_deref().map(MapRef::Plain),
            _ => None,
        }
    }

    /// The map to be changed, if the context at hand has it. What is changed out of its time is not sent, as in Envoy.
    pub fn map_mut(&mut self, kind: MapKind) -> Option<MapMut<'_>> {
        let stream = self.stream_mut()?;
        let (point, map) = match kind {
            MapKind::RequestHeaders if stream.has_request => {
                (Point::RequestHeaders, MapMut::Request(&mut stream.request))
            }
            MapKind::RequestTrailers => (
                Point::RequestTrailers,
                MapMut::Plain(stream.trailers[0].as_deref_mut()?),
            ),
            MapKind::ResponseHeaders if stream.has_response => {
                (Point::ResponseHeaders, MapMut::Response(&mut stream.response))
            }
            MapKind::ResponseTrailers => (
                Point::ResponseTrailers,
                MapMut::Plain(stream.trailers[1].as_deref_mut()?),
            ),
            _ => return None,
        };
        let side = point.side();
        stream.changed[side] |= stream.held[side] == Some(point) && stream.lent != Some(point);
        Some(map)
    }

    /// The buffer, if the callback at hand is about it.
    pub fn buffer(&self, kind: BufferKind) -> Option<&[u8]> {
        let config = &self.plugin.config;
        match kind {
            BufferKind::VmConfiguration => Some(&config.vm_configuration),
            BufferKind::PluginConfiguration => Some(&config.configuration),
            BufferKind::CallBody => Some(&self.answer.body),
            BufferKind::GrpcMessage => Some(&self.answer.grpc_message),
            BufferKind::ForeignArguments => Some(&self.answer.foreign),
            _ => {
                let stream = self.stream()?;
                kind.is_lent_at(stream.lent?).then_some(&stream.body[..])
            }
        }
    }

    /// The buffer to be changed, if the callback at hand is about it.
    pub fn buffer_mut(&mut self, kind: BufferKind) -> Option<&mut BytesMut> {
        let stream = self.stream_mut()?;
        kind.is_lent_at(stream.lent?).then_some(&mut stream.body)
    }

    pub fn next_token(&mut self) -> u32 {
        self.last_token = self.last_token.checked_add(1).unwrap_or(1);
        self.last_token
    }

    /// Keeps what the module said, for whoever has to explain its failure.
    pub fn keep_words(&mut self, words: &str) {
        let mut end = words.len().min(MAX_WORDS);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        self.words = Some(words[..end].to_owned());
    }
}

// === impl BufferKind ===

impl BufferKind {
    /// Whether a stream lends it there.
    fn is_lent_at(self, point: Point) -> bool {
        match self {
            Self::RequestBody => matches!(point, Point::RequestBody | Point::RequestTrailers),
            Self::ResponseBody => matches!(point, Point::ResponseBody | Point::ResponseTrailers),
            Self::Downstream => point == Point::Downstream,
            Self::Upstream => point == Point::Upstream,
            _ => false,
        }
    }
}

// === impl Answer ===

impl Answer {
    pub fn http(answer: Option<HttpAnswer>) -> Self {
        let Some(answer) = answer else { return Self::default() };
        Self {
            head: Some(answer.head),
            body: answer.body,
            trailers: answer.trailers,
            ..Self::default()
        }
    }
}

// === impl Point ===

impl Point {
    /// 0: it goes to the endpoint; 1: to the client. Each is held and resumed for itself.
    pub fn side(self) -> usize {
        match self {
            Self::RequestHeaders | Self::RequestBody | Self::RequestTrailers | Self::Downstream => 0,
            Self::ResponseHeaders | Self::ResponseBody | Self::ResponseTrailers | Self::Upstream => 1,
        }
    }
}

// === impl Stream ===

impl Stream {
    pub fn new(info: Arc<StreamInfo>) -> Self {
        Self {
            info,
            request: RequestHead::default(),
            response: ResponseHead::default(),
            trailers: [None, None],
            body: BytesMut::new(),
            has_request: false,
            has_response: false,
            lent: None,
            held: [None; 2],
            changed: [false; 2],
            resume: [false; 2],
            reply: None,
            reset: false,
            settled: false,
            waker: [None, None],
            events: VecDeque::new(),
            properties: 0,
            end: None,
            closing: false,
            waits: None,
        }
    }

    /// What is held on this side goes on.
    pub fn resume(&mut self, side: usize) {
        self.resume[side] = true;
        self.wake();
    }

    /// Answers in the service's place. Only the first answer counts.
    pub fn respond(&mut self, response: Response<Bytes>) {
        if !self.settled {
            self.settled = true;
            self.reply = Some(Box::new(response));
            self.wake();
        }
    }

    /// Ends the stream without an answer.
    pub fn close(&mut self) {
        if !self.settled {
            self.settled = true;
            self.reset = true;
            self.wake();
        }
    }

    /// How it is to end, said once.
    pub fn wish(&mut self) -> Option<Wish> {
        let reply = self.reply.take().map(Wish::Respond);
        reply.or_else(|| mem::take(&mut self.reset).then_some(Wish::Reset))
    }

    pub fn wake(&mut self) {
        self.waker.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }

    /// Whom to wake when something happens that may let this side go on.
    pub fn listen(&mut self, side: usize, waker: &Waker) {
        match &mut self.waker[side] {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Whether nothing is held on this side.
    pub fn flows_on(&self, side: usize) -> bool {
        self.held[side].is_none()
    }

    /// Whether nothing is held.
    pub fn flows(&self) -> bool {
        self.held == [None; 2]
    }
}

// === impl SerialHasher ===

impl Hasher for SerialHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Spreads over the upper bits, which the table uses too.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

// === impl MemoryLimit ===

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = desired <= self.bytes;
        if allowed {
            self.counters
                .memory
                .store(desired, std::sync::atomic::Ordering::Relaxed);
        } else {
            self.counters.memory_refusals.add(1);
        }
        Ok(allowed)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        /// Functions that a table may name: modules of many megabytes have some ten thousand.
        const MAX_ELEMENTS: usize = 1 << 20;
        Ok(desired <= MAX_ELEMENTS)
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        /// Modules have one; some that use exceptions or several languages, a few.
        const MAX_TABLES: usize = 8;
        MAX_TABLES
    }
}
