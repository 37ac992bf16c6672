//! HTTP/2 connections: many exchanges at a time on few of them.
//!
//! On h2 itself: hyper's client has a task that hands requests on, and another one for each answer, which cost more than what they do.

mod slots;
mod stream;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{Response, request};
use tokio::{sync::Mutex, time::Instant};

use self::slots::Slots;
use super::{SendError, Upstream, UpstreamBody, connect::connect_for_requests};
use crate::{
    context::Origin,
    io::{Sifted, gather},
    limits::{
        H2_MAX_LOCAL_RESETS, H2_SEND_BUFFER, H2_STREAM_WINDOW, H2_UPSTREAM_FRAMES, H2_UPSTREAM_STREAMS,
        H2_UPSTREAM_WINDOW, MAX_HEADER_BYTES, POOL_IDLE_TIMEOUT,
    },
    metrics::ProxyMetrics,
    netns::Netns,
    wire::Http2Body,
};

/// Connections by endpoint.
#[derive(Default)]
pub(super) struct Connections(RefCell<HashMap<Upstream, Rc<Endpoint>>>);

#[derive(Default)]
struct Endpoint {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Held while connecting, so that a burst of requests opens one connection and not one each.
    connecting: Mutex<()>,
    /// How often that has failed, and how it did last.
    failures: Cell<u64>,
    failure: RefCell<Option<(io::ErrorKind, String)>>,
    /// Streams that it takes at a time, as its last connection said: what the next one says comes behind its first requests.
    limit: Rc<Cell<Option<usize>>>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    /// Exchanges under way, and those that wait.
    open: Cell<usize>,
    idle_since: Cell<Instant>,
    /// Those of exchanges that h2 has. Closed once the endpoint takes no more (GOAWAY), or is gone: no more go there.
    slots: Slots,
    /// See [`Endpoint`].
    limit: Rc<Cell<Option<usize>>>,
}

/// See [`super::Sending`].
pub(crate) struct Http2Sending {
    reused: bool,
    lease: Http2Lease,
}

/// Keeps its place on a connection until it is dropped.
pub(crate) struct Http2Lease(Rc<Place>);

/// Of one exchange on a connection, until all that has to do with it has ended.
struct Place {
    connection: Rc<Connection>,
    has_slot: Cell<bool>,
}

// === impl Connections ===

impl Connections {
    /// A connection with room for one more stream.
    pub(super) fn existing(&self, upstream: &Upstream) -> Option<Http2Sending> {
        self.0.borrow().get(upstream)?.with_room()
    }

    pub(super) async fn open(
        &self,
        upstream: &Upstream,
        origin: &dyn Origin,
        metrics: &ProxyMetrics,
    ) -> io::Result<Http2Sending> {
        let endpoint = Rc::clone(self.0.borrow_mut().entry(upstream.clone()).or_default());
        let failures = endpoint.failures.get();
        let _alone = endpoint.connecting.lock().await;
        // Whoever held the lock before may have opened what we wait for; or waited in vain, and each of us would after the other.
        if let Some(sending) = endpoint.with_room() {
            return Ok(sending);
        }
        if let Some(failure) = endpoint.failed_since(failures) {
            return Err(failure);
        }
        let opened = Self::connect(&endpoint, upstream, origin).await;
        match &opened {
            Ok(_) => _ = metrics.upstream_opened.inc(),
            Err(error) => endpoint.fail(error),
        }
        opened
    }

    async fn connect(endpoint: &Endpoint, upstream: &Upstream, origin: &dyn Origin) -> io::Result<Http2Sending> {
        let (stream, outlet) = gather(Sifted::of_server(connect_for_requests(upstream, origin).await?));
        let limit = endpoint.limit.get().unwrap_or(H2_UPSTREAM_STREAMS);
        let (sender, mut driven) = Builder::new()
            .initial_max_send_streams(limit)
            .initial_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_UPSTREAM_WINDOW)
            .data_frame_budget(H2_UPSTREAM_FRAMES)
            .max_send_buffer_size(H2_SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .max_local_error_reset_streams(Some(H2_MAX_LOCAL_RESETS))
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let connection = Rc::new(Connection {
            sender,
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            slots: Slots::new(limit),
            limit: Rc::clone(&endpoint.limit),
        });
        // It ends when nobody else has use for it.
        let (address, users) = (upstream.address, Rc::downgrade(&connection));
        let ending = users.clone();
        tokio::task::spawn_local(async move {
            let turns = poll_fn(move |cx| {
                let polled = Pin::new(&mut driven).poll(cx);
                if let Some(connection) = users.upgrade() {
                    connection.after_turn();
                }
                polled
            });
            if let Err(error) = outlet.drive(turns).await {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
            if let Some(connection) = ending.upgrade() {
                connection.slots.close();
            }
        });
        let sending = connection.sending(false);
        endpoint.connections.borrow_mut().push(connection);
        Ok(sending)
    }

    /// Keeps no idle connection from that namespace.
    pub(super) fn forget(&self, netns: &Netns) {
        self.0
            .borrow_mut()
            .retain(|upstream, _| upstream.netns.as_deref() != Some(netns));
    }

    pub(super) fn reap(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, endpoint| {
            let mut connections = endpoint.connections.borrow_mut();
            connections.retain(|connection| !connection.slots.is_closed() && !connection.idled_out(now));
            !connections.is_empty() || Rc::strong_count(endpoint) > 1
        });
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn with_room(&self) -> Option<Http2Sending> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.slots.is_closed());
        connections
            .iter()
            .find(|connection| connection.open.get() < H2_UPSTREAM_STREAMS)
            .map(|connection| connection.sending(true))
    }

    fn fail(&self, error: &io::Error) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(Some((error.kind(), error.to_string())));
    }

    /// The last failure, if there was one since there were so many.
    fn failed_since(&self, failures: u64) -> Option<io::Error> {
        let failure = self.failure.borrow();
        let (kind, words) = failure.as_ref().filter(|_| self.failures.get() != failures)?;
        Some(io::Error::new(*kind, words.clone()))
    }
}

// === impl Connection ===

impl Connection {
    fn sending(self: &Rc<Self>, reused: bool) -> Http2Sending {
        self.open.set(self.open.get() + 1);
        let place = Rc::new(Place {
            connection: Rc::clone(self),
            has_slot: Cell::new(false),
        });
        Http2Sending {
            reused,
            lease: Http2Lease(place),
        }
    }

    /// As many streams as the endpoint takes at a time, as far as is known.
    fn resize(&self) {
        let limit = self.sender.current_max_send_streams().min(H2_UPSTREAM_STREAMS);
        self.slots.resize(limit);
        self.limit.set(Some(limit));
    }

    /// Whoever waits is to hear at once what the endpoint said: that it leaves, or takes more. Others ask when they send.
    fn after_turn(&self) {
        if self.slots.are_taken() && !self.slots.is_closed() {
            self.close_if_leaving();
            self.resize();
        }
    }

    /// h2 tells of a GOAWAY only those that are about to send.
    fn close_if_leaving(&self) {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        if matches!(ready, Poll::Ready(Err(_))) {
            self.slots.close();
        }
    }

    fn idled_out(&self, now: Instant) -> bool {
        self.open.get() == 0 && now.duration_since(self.idle_since.get()) >= POOL_IDLE_TIMEOUT
    }
}

// === impl Http2Sending ===

impl Http2Sending {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) async fn send(
        self,
        head: Box<request::Parts>,
        body: UpstreamBody,
    ) -> Result<(Response<Http2Body>, Http2Lease), SendError> {
        let Self { lease, .. } = self;
        match stream::send(&lease.0, head, body).await {
            Ok(response) => Ok((response, lease)),
            Err(error) => {
                // Before it is sent again.
                lease.0.connection.close_if_leaving();
                Err(error)
            }
        }
    }
}

// === impl Place ===

impl Place {
    /// Waits until the endpoint takes one more stream. Returns whether it does: the connection may leave.
    async fn take_slot(&self) -> bool {
        self.connection.resize();
        let taken = self.connection.slots.take().await;
        self.has_slot.set(taken);
        taken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let connection = &self.connection;
        if self.has_slot.get() {
            connection.slots.give_back();
        }
        connection.open.set(connection.open.get().saturating_sub(1));
        connection.idle_since.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, TcpStream},
        time::Duration,
    };

    use super::*;
    use crate::{context::tests::Nobody, limits::CONNECT_TIMEOUT};

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_connect_in_vain_does_not_wait_for_another() {
        // Nobody accepts: with its queue full a listener takes no more connections, and says nothing of it.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
            assert!(queued.len() < 16, "it takes all");
        }
        let (connections, metrics) = (Connections::default(), ProxyMetrics::default());
        let upstream = Upstream::at_home(address);
        let began = Instant::now();
        let open = || connections.open(&upstream, &Nobody, &metrics);
        let (one, two, three) = tokio::join!(open(), open(), open());
        for opened in [one, two, three] {
            let kind = opened.map(drop).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::TimedOut);
        }
        assert!(began.elapsed() < 2 * CONNECT_TIMEOUT, "{:?}", began.elapsed());
        // Who comes later tries again.
        let began = Instant::now();
        assert!(open().await.is_err());
        assert!(began.elapsed() >= CONNECT_TIMEOUT);
    }
}
