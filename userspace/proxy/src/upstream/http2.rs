//! HTTP/2 connections: many exchanges at a time on few of them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Mutex, time::Instant};

use super::{LocalExec, Upstream, UpstreamBody, connect};
use crate::{
    context::Origin,
    limits::{
        H2_CONNECTION_WINDOW, H2_SEND_BUFFER, H2_STREAM_WINDOW, H2_UPSTREAM_STREAMS, MAX_HEADER_BYTES,
        POOL_IDLE_TIMEOUT,
    },
    metrics::ProxyMetrics,
    netns::Netns,
};

type Sender = SendRequest<UpstreamBody>;

/// Connections by endpoint.
#[derive(Default)]
pub(super) struct Connections(RefCell<HashMap<Upstream, Rc<Endpoint>>>);

#[derive(Default)]
struct Endpoint {
    connections: RefCell<Vec<Connection>>,
    /// Held while connecting, so that a burst of requests opens one connection and not one each.
    connecting: Mutex<()>,
}

#[derive(Clone)]
struct Connection {
    sender: Sender,
    streams: Rc<Streams>,
}

struct Streams {
    open: Cell<usize>,
    idle_since: Cell<Instant>,
    /// It refused a request unsent (GOAWAY, dying): no more go there.
    leaving: Cell<bool>,
}

/// See [`super::Sending`].
pub(crate) struct Http2Sending {
    sender: Sender,
    reused: bool,
    lease: Http2Lease,
}

/// Counts as a stream of its connection until it is dropped.
pub(crate) struct Http2Lease(Rc<Streams>);

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
        let _alone = endpoint.connecting.lock().await;
        // Whoever held the lock before may have opened what we wait for.
        if let Some(sending) = endpoint.with_room() {
            return Ok(sending);
        }
        let stream = connect(upstream, origin).await?;
        let (sender, connection) = Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let address = upstream.address;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        metrics.upstream_opened.inc();
        let streams = Rc::new(Streams {
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            leaving: Cell::new(false),
        });
        let connection = Connection { sender, streams };
        endpoint.connections.borrow_mut().push(connection.clone());
        Ok(connection.sending(false))
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
            connections.retain(|connection| !connection.sender.is_closed() && !connection.idled_out(now));
            !connections.is_empty() || Rc::strong_count(endpoint) > 1
        });
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn with_room(&self) -> Option<Http2Sending> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.sender.is_closed() && !connection.streams.leaving.get());
        connections
            .iter()
            .find(|connection| connection.sender.is_ready() && connection.streams.open.get() < H2_UPSTREAM_STREAMS)
            .map(|connection| connection.clone().sending(true))
    }
}

// === impl Connection ===

impl Connection {
    fn sending(self, reused: bool) -> Http2Sending {
        self.streams.open.set(self.streams.open.get() + 1);
        Http2Sending {
            sender: self.sender,
            reused,
            lease: Http2Lease(self.streams),
        }
    }

    fn idled_out(&self, now: Instant) -> bool {
        self.streams.open.get() == 0 && now.duration_since(self.streams.idle_since.get()) >= POOL_IDLE_TIMEOUT
    }
}

// === impl Http2Sending ===

impl Http2Sending {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) async fn send(
        mut self,
        request: Request<UpstreamBody>,
    ) -> Result<(Response<Incoming>, Http2Lease), TrySendError<Request<UpstreamBody>>> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Ok((response, self.lease)),
            Err(error) => {
                self.lease.0.leaving.set(error.message().is_some());
                Err(error)
            }
        }
    }
}

// === impl Http2Lease ===

impl Drop for Http2Lease {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}
