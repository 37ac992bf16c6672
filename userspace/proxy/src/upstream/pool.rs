//! Upstream connections of one worker, by endpoint, namespace it is reached from, client's address where the endpoint sees
//! that, and wire protocol.
//!
//! hyper-util's legacy client races a new connection against the pool and shares one across threads; here a request
//! takes an idle connection if there is one, and opens one only otherwise, without a lock.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, request};
use hyper::body::{Body, Frame};
use tokio::time::Instant;

use super::{
    SendError, Upstream, UpstreamBody,
    connect::connect_for_requests,
    http1::{self, Http1Lease, Http1Sending},
    http2::{self, Http2Lease, Http2Sending},
    plain::{self, Home, Plain},
};
use crate::{context::Origin, error::BoxError, io::Socket, metrics::ProxyMetrics, netns::Netns, wire::WireBody};

/// What is spoken on an upstream connection: what the client speaks, so that the endpoint meets what it was called with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

/// The pool.
pub(crate) struct Pool {
    http1: http1::Connections,
    http2: Rc<http2::Connections>,
    plain: plain::Connections,
    origin: Arc<dyn Origin>,
    metrics: Arc<ProxyMetrics>,
}

/// A connection about to be used for one request.
pub(crate) enum Sending {
    Http1(Box<Http1Sending>),
    Http2(Http2Sending),
}

/// Keeps a connection busy for one exchange. [`Lease::finish`] gives it back; dropping it does not, so what breaks
/// off is never used again (HTTP/1) or just ends its stream (HTTP/2).
pub(crate) enum Lease {
    Http1(Http1Lease),
    Http2(#[expect(dead_code, reason = "held for its Drop, which ends the stream's count")] Http2Lease),
}

// === impl Pool ===

impl Pool {
    pub(crate) fn new(origin: Arc<dyn Origin>, metrics: Arc<ProxyMetrics>) -> Self {
        Self {
            http1: http1::Connections::default(),
            http2: Rc::default(),
            plain: plain::Connections::default(),
            origin,
            metrics,
        }
    }

    /// An idle connection to the endpoint, or a new one.
    ///
    /// # Errors
    /// The connect's.
    pub(crate) async fn take(&self, upstream: &Upstream, wire: Wire) -> io::Result<Sending> {
        let reused = match wire {
            Wire::Http1 => match self.http1.idle(upstream) {
                Some(sending) => Some(Sending::Http1(Box::new(sending))),
                None => match self.plain.home(upstream).take() {
                    Some(socket) => {
                        // In a box, as what opens one: most requests find a connection as it is to be.
                        let sending = Box::pin(self.http1.on(socket, upstream, true)).await?;
                        Some(Sending::Http1(Box::new(sending)))
                    }
                    None => None,
                },
            },
            Wire::Http2 => self.http2.existing(upstream).map(Sending::Http2),
        };
        match reused {
            Some(sending) => {
                self.metrics.upstream_reused.inc();
                Ok(sending)
            }
            None => Box::pin(self.open(upstream, wire)).await,
        }
    }

    /// A connection that no request was sent on before.
    ///
    /// # Errors
    /// The connect's.
    pub(crate) async fn open(&self, upstream: &Upstream, wire: Wire) -> io::Result<Sending> {
        let opened = match wire {
            Wire::Http1 => {
                let opened = self.http1.open(upstream, &*self.origin).await;
                opened.map(|sending| Sending::Http1(Box::new(sending)))
            }
            Wire::Http2 => {
                let opened = self.http2.open(upstream, &*self.origin, &self.metrics).await;
                opened.map(Sending::Http2)
            }
        };
        match &opened {
            // Another request was opening it just then.
            Ok(sending) if sending.is_reused() => _ = self.metrics.upstream_reused.inc(),
            Ok(_) if wire == Wire::Http1 => _ = self.metrics.upstream_opened.inc(),
            Ok(_) => {}
            Err(_) => _ = self.metrics.upstream_connect_failed.inc(),
        }
        opened
    }

    /// Where idle connections without codec are.
    pub(crate) fn home(&self, upstream: &Upstream) -> Home {
        self.plain.home(upstream)
    }

    /// One of those of `home`, if there is any.
    pub(crate) fn idle_plain(&self, home: Home) -> Option<Plain> {
        let socket = home.take()?;
        self.metrics.upstream_reused.inc();
        Some(Plain {
            socket,
            reused: true,
            home,
        })
    }

    /// An idle connection without codec, or a new one.
    ///
    /// # Errors
    /// The connect's.
    pub(crate) async fn take_plain(&self, upstream: &Upstream) -> io::Result<Plain> {
        let home = self.plain.home(upstream);
        let (socket, reused) = match home.take().or_else(|| self.http1.bare(upstream)) {
            Some(socket) => {
                self.metrics.upstream_reused.inc();
                (socket, true)
            }
            // In a box: most find one.
            None => (Box::pin(self.open_plain(upstream)).await?, false),
        };
        Ok(Plain { socket, reused, home })
    }

    /// One that no request was sent on before.
    ///
    /// # Errors
    /// The connect's.
    pub(crate) async fn open_plain(&self, upstream: &Upstream) -> io::Result<Socket> {
        let opened = connect_for_requests(upstream, &*self.origin).await;
        match &opened {
            Ok(_) => self.metrics.upstream_opened.inc(),
            Err(_) => self.metrics.upstream_connect_failed.inc(),
        };
        opened
    }

    /// Closes what is idle and was opened in a namespace that is left: it would keep the namespace alive.
    pub(crate) fn forget(&self, netns: &Netns) {
        self.http1.forget(netns);
        self.http2.forget(netns);
        self.plain.forget(netns);
    }

    /// Closes what has been idle too long at `now`. To be called every [`POOL_TICK`](crate::limits::POOL_TICK).
    pub(crate) fn reap(&self, now: Instant) {
        self.http1.reap(now);
        self.http2.reap(now);
        self.plain.reap();
    }
}

// === impl Sending ===

impl Sending {
    /// Whether an earlier request used it: the endpoint may be closing it just now.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(sending) => sending.is_reused(),
            Self::Http2(sending) => sending.is_reused(),
        }
    }

    /// Sends a request and returns with the head of the answer. (A head is held in a box wherever it waits: a future keeps what it
    /// is given beside what it hands on, and is moved as a whole.)
    ///
    /// # Errors
    /// With the request, if nothing of it was sent.
    pub(crate) async fn send(
        self,
        head: Box<request::Parts>,
        body: UpstreamBody,
    ) -> Result<(Response<WireBody>, Lease), SendError> {
        match self {
            Self::Http1(sending) => match sending.send(head, body).await {
                Ok((response, lease)) => Ok((response.map(WireBody::Http1), Lease::Http1(lease))),
                Err(error) => Err(SendError::of_http1(error)),
            },
            Self::Http2(sending) => {
                let (response, lease) = sending.send(head, body).await?;
                Ok((response.map(WireBody::Http2), Lease::Http2(lease)))
            }
        }
    }
}

// === impl Lease ===

impl Lease {
    /// The next frame of the answer's body, which comes with the lease.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut WireBody,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match (self, body) {
            (Self::Http1(lease), WireBody::Http1(body)) => lease
                .poll_frame(body, cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            (_, body) => Pin::new(body).poll_frame(cx),
        }
    }

    /// The response has come to its end.
    pub(crate) fn finish(self) {
        match self {
            Self::Http1(lease) => lease.finish(),
            Self::Http2(_) => {}
        }
    }
}
