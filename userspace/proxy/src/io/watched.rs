//! Slow headers and idle connections, seen at the socket.
//!
//! hyper has one timer for both: its header timeout also runs while a keep-alive connection has nothing to say. Idle
//! clients are welcome for an hour, slow headers are an attack after half a minute; so the socket notes when
//! bytes came and when nothing is left to write, the service notes when requests begin and end, and the connection's task looks
//! at all of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Shared by the socket, the service and the task of one connection. Atomics only because hyper wants sockets `Send`;
/// all three run on one thread.
#[derive(Debug)]
pub(crate) struct ConnClock {
    start: Instant,
    in_flight: AtomicU64,
    /// Milliseconds after `start`: a request ended, or the connection began.
    idle_since: AtomicU64,
    /// Milliseconds after `start`, plus 1: first bytes that no request accounts for yet. 0: none.
    head_since: AtomicU64,
    /// Bodies of requests whose end has not been seen. One that broke off, or that nobody waited for, stays among them.
    bodies: AtomicU64,
    /// All that there was to write after the last request has been written.
    flushed: AtomicBool,
}

/// Notes in a [`ConnClock`] what is read, and that all was written.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    clock: Arc<ConnClock>,
}

// === impl ConnClock ===

impl ConnClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            in_flight: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            bodies: AtomicU64::new(0),
            flushed: AtomicBool::new(false),
        })
    }

    pub(crate) fn request_began(&self) {
        up(&self.in_flight);
        self.flushed.store(false, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(crate) fn request_ended(&self, now: Instant) {
        down(&self.in_flight);
        self.idle_since.store(self.at(now), Ordering::Relaxed);
        self.flushed.store(false, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    /// The request has a body.
    pub(crate) fn body_began(&self) {
        up(&self.bodies);
    }

    /// Its last byte was read: what follows is another request.
    pub(crate) fn body_ended(&self) {
        down(&self.bodies);
    }

    /// Between two requests for longer than `limit`: all of the last one was read, all of its answer is written, and not a byte
    /// of the next has come. Whoever holds the socket then knows all there is to know about the connection.
    pub(crate) fn rests(&self, limit: Duration) -> bool {
        self.flushed.load(Ordering::Relaxed)
            && self.bodies.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == 0
            && self.is_idle(limit)
    }

    /// A request's headers have been arriving for longer than `limit`.
    pub(crate) fn head_is_late(&self, limit: Duration) -> bool {
        let since = self.head_since.load(Ordering::Relaxed);
        !self.busy() && since > 0 && self.passed(since - 1) > limit
    }

    /// Nothing was in flight for longer than `limit`.
    pub(crate) fn is_idle(&self, limit: Duration) -> bool {
        self.idle_for().is_some_and(|idle| idle > limit)
    }

    /// Since the last request ended; `None`: one is under way.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        (!self.busy()).then(|| self.passed(self.idle_since.load(Ordering::Relaxed)))
    }

    /// First bytes of a request are there, or more of the body of one that was answered early.
    pub(crate) fn bytes_came(&self) {
        let body = self.bodies.load(Ordering::Relaxed) > 0;
        if !self.busy() && !body && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// A request is being answered.
    pub(crate) fn busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> u64 {
        now.duration_since(self.start).as_millis() as u64
    }

    fn passed(&self, since: u64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(since))
    }
}

/// No other thread counts, so no bus has to be locked for it.
fn up(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn down(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
}

// === impl Watched ===

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, clock: Arc<ConnClock>) -> Self {
        Self { stream, clock }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.clock.bytes_came();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it when its own buffer is empty, and only then.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.clock.flushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_not_a_slow_header() {
        let clock = ConnClock::new();
        advance(LIMIT * 2).await;
        assert!(!clock.head_is_late(LIMIT));
        assert!(clock.is_idle(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_without_a_request_are_a_slow_header() {
        let clock = ConnClock::new();
        clock.bytes_came();
        advance(LIMIT / 2).await;
        clock.bytes_came();
        assert!(!clock.head_is_late(LIMIT));
        advance(LIMIT).await;
        assert!(clock.head_is_late(LIMIT), "later bytes must not restart the clock");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_is_neither() {
        let clock = ConnClock::new();
        clock.bytes_came();
        clock.request_began();
        clock.bytes_came();
        advance(LIMIT * 2).await;
        assert!(!clock.head_is_late(LIMIT) && !clock.is_idle(LIMIT));
        clock.request_ended(Instant::now());
        assert!(!clock.is_idle(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_after_its_answer_is_not_a_slow_header() {
        let clock = ConnClock::new();
        clock.request_began();
        clock.body_began();
        clock.request_ended(Instant::now());
        clock.bytes_came();
        advance(LIMIT * 2).await;
        assert!(!clock.head_is_late(LIMIT));
        clock.body_ended();
        clock.bytes_came();
        advance(LIMIT * 2).await;
        assert!(clock.head_is_late(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_only_when_nothing_is_under_way() {
        let clock = ConnClock::new();
        let mut stream = Watched::new(tokio::io::sink(), Arc::clone(&clock));
        advance(LIMIT * 2).await;
        assert!(!clock.rests(LIMIT), "before its first request");
        clock.request_began();
        clock.body_began();
        clock.request_ended(Instant::now());
        advance(LIMIT * 2).await;
        assert!(!clock.rests(LIMIT), "its answer may not be written yet");
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        assert!(!clock.rests(LIMIT), "the rest of the body is still to come");
        clock.body_ended();
        assert!(clock.rests(LIMIT));
        clock.bytes_came();
        assert!(!clock.rests(LIMIT), "the next request has begun");
    }
}
