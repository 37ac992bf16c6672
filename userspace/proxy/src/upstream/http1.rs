//! HTTP/1.1 connections: one exchange at a time, kept for the next.
//!
//! A connection runs in the task that has the exchange. Only one on which a body goes out, or which may become something
//! else, gets a task of its own and keeps it: the endpoint may answer before the body is there, and the body must go on
//! however slowly the client takes the answer.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, Version, header::UPGRADE, request};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::{
        TrySendError,
        http1::{self, Builder, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{
    Upstream, UpstreamBody,
    connect::connect_for_requests,
    driven::Driven,
    home::{Home, Homes},
};
use crate::{
    context::Origin,
    io::Socket,
    limits::{HTTP1_BUFFER, MAX_HEADERS, POOL_IDLE_TIMEOUT},
    netns::Netns,
};

type Sender = SendRequest<UpstreamBody>;
type Connection = http1::Connection<TokioIo<Socket>, UpstreamBody>;

/// Idle connections by endpoint.
#[derive(Default)]
pub(super) struct Connections(Homes<Idle>);

struct Idle {
    link: Link,
    since: Instant,
}

/// A connection as its user has it.
struct Link {
    sender: Sender,
    /// `None`: a task runs it.
    here: Option<Driven<Connection>>,
}

/// Whether an idle connection can take a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fitness {
    Ready,
    /// Not yet: the body of an earlier request is still on its way, or its task has not run since.
    Busy,
    Closed,
}

/// See [`super::Sending`].
pub(crate) struct Http1Sending {
    link: Link,
    reused: bool,
    address: SocketAddr,
    home: Home<Idle>,
}

/// See [`super::Lease`].
pub(crate) struct Http1Lease {
    link: Link,
    home: Home<Idle>,
    /// It can take another request. After an answer in HTTP/1.0 hyper would send that in HTTP/1.0 too, and a chunked body not
    /// at all.
    keep: bool,
}

// === impl Connections ===

impl Connections {
    /// The last used idle connection that is ready. Those that have closed meanwhile are let go.
    pub(super) fn idle(&self, upstream: &Upstream) -> Option<Http1Sending> {
        let home = self.0.find(upstream)?;
        let mut idle = home.idle();
        for at in (0..idle.len()).rev() {
            match idle[at].link.fitness() {
                Fitness::Ready => {
                    let link = idle.remove(at).link;
                    drop(idle);
                    return Some(Http1Sending {
                        link,
                        reused: true,
                        address: upstream.address,
                        home,
                    });
                }
                Fitness::Busy => {}
                Fitness::Closed => _ = idle.remove(at),
            }
        }
        None
    }

    pub(super) async fn open(&self, upstream: &Upstream, origin: &dyn Origin) -> io::Result<Http1Sending> {
        let stream = connect_for_requests(upstream, origin).await?;
        self.on(stream, upstream, false).await
    }

    /// A connection on a socket on which nothing is under way.
    pub(super) async fn on(&self, stream: Socket, upstream: &Upstream, reused: bool) -> io::Result<Http1Sending> {
        let (sender, connection) = Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(HTTP1_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Http1Sending {
            link: Link {
                sender,
                here: Some(Driven::new(connection)),
            },
            reused,
            address: upstream.address,
            home: self.0.of(upstream),
        })
    }

    /// The socket of an idle connection, for one without codec.
    pub(super) fn bare(&self, upstream: &Upstream) -> Option<Socket> {
        let home = self.0.find(upstream)?;
        let mut idle = home.idle();
        let at = idle
            .iter_mut()
            .rposition(|idle| idle.link.here.is_some() && idle.link.fitness() == Fitness::Ready)?;
        let connection = idle.remove(at).link.here.and_then(Driven::into_connection)?;
        let parts = connection.into_parts();
        // What came meanwhile belongs to nobody.
        parts.read_buf.is_empty().then(|| parts.io.into_inner())
    }

    pub(super) fn forget(&self, netns: &Netns) {
        self.0.forget(netns);
    }

    pub(super) fn reap(&self, now: Instant) {
        self.0.retain(|idle| {
            now.duration_since(idle.since) < POOL_IDLE_TIMEOUT && idle.link.fitness() != Fitness::Closed
        });
    }
}

// === impl Link ===

impl Link {
    /// Gives the connection a task of its own.
    fn detach(&mut self, address: SocketAddr) {
        let Some(connection) = self.here.take().and_then(Driven::into_connection) else {
            return;
        };
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
    }

    /// Polls what waits for the connection, and the connection, where no task does.
    fn poll_with<T>(&mut self, cx: &mut Context<'_>, mut user: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        match &mut self.here {
            Some(driven) => driven.poll_with(cx, user),
            None => user(cx),
        }
    }

    fn fitness(&mut self) -> Fitness {
        if let Some(driven) = &mut self.here {
            driven.look();
        }
        match (self.sender.is_closed(), self.sender.is_ready()) {
            (true, _) => Fitness::Closed,
            (false, true) => Fitness::Ready,
            (false, false) => Fitness::Busy,
        }
    }
}

// === impl Http1Sending ===

impl Http1Sending {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) async fn send(
        mut self: Box<Self>,
        head: Box<request::Parts>,
        body: UpstreamBody,
    ) -> Result<(Response<Incoming>, Http1Lease), TrySendError<Request<UpstreamBody>>> {
        if !body.is_end_stream() || head.headers.contains_key(UPGRADE) {
            self.link.detach(self.address);
        }
        let mut response = pin!(self.link.sender.try_send_request(Request::from_parts(*head, body)));
        let response = poll_fn(|cx| self.link.poll_with(cx, |cx| response.as_mut().poll(cx))).await?;
        let keep = response.version() >= Version::HTTP_11;
        Ok((
            response,
            Http1Lease {
                link: self.link,
                home: self.home,
                keep,
            },
        ))
    }
}

// === impl Http1Lease ===

impl Http1Lease {
    /// The next frame of the answer's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.link.poll_with(cx, |cx| Pin::new(&mut *body).poll_frame(cx))
    }

    pub(super) fn finish(self) {
        if !self.keep || self.link.sender.is_closed() {
            return;
        }
        if let Some(driven) = &self.link.here {
            driven.rest();
        }
        self.home.put(Idle {
            link: self.link,
            since: Instant::now(),
        });
    }
}
