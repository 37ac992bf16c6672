//! HTTP/1.1 connections: one exchange at a time, kept for the next.

use std::{cell::RefCell, collections::HashMap, io, rc::Rc};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Builder, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{Upstream, UpstreamBody, connect};
use crate::{
    limits::{HTTP1_BUFFER, MAX_HEADERS, POOL_IDLE_PER_ENDPOINT, POOL_IDLE_TIMEOUT},
    netns::Netns,
};

type Sender = SendRequest<UpstreamBody>;

/// Idle connections by endpoint, the last used one on top.
#[derive(Default)]
pub(super) struct Connections(RefCell<HashMap<Upstream, Vec<Idle>>>);

struct Idle {
    sender: Sender,
    since: Instant,
}

/// See [`super::Sending`].
pub(crate) struct Http1Sending {
    sender: Sender,
    reused: bool,
    home: Home,
}

/// See [`super::Lease`].
pub(crate) struct Http1Lease {
    sender: Sender,
    home: Home,
}

/// Where a connection returns to.
#[derive(Clone)]
struct Home {
    connections: Rc<Connections>,
    upstream: Upstream,
}

// === impl Connections ===

impl Connections {
    /// The last used idle connection.
    ///
    /// One that was just given back may not be ready yet (its task has not run since): it is left for later, as is
    /// one whose request body is still on its way after an early response.
    pub(super) fn idle(self: &Rc<Self>, upstream: &Upstream) -> Option<Http1Sending> {
        let mut all = self.0.borrow_mut();
        let idle = all.get_mut(upstream)?;
        idle.retain(|connection| !connection.sender.is_closed());
        let ready = idle.iter().rposition(|connection| connection.sender.is_ready())?;
        let sender = idle.remove(ready).sender;
        Some(Http1Sending {
            sender,
            reused: true,
            home: self.home(upstream),
        })
    }

    pub(super) async fn open(self: &Rc<Self>, upstream: &Upstream) -> io::Result<Http1Sending> {
        let stream = connect(upstream).await?;
        let (sender, connection) = Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(HTTP1_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let address = upstream.address;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Ok(Http1Sending {
            sender,
            reused: false,
            home: self.home(upstream),
        })
    }

    /// Keeps no idle connection from that namespace.
    pub(super) fn forget(&self, netns: &Netns) {
        self.0
            .borrow_mut()
            .retain(|upstream, _| upstream.netns.as_deref() != Some(netns));
    }

    pub(super) fn reap(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain(|connection| {
                !connection.sender.is_closed() && now.duration_since(connection.since) < POOL_IDLE_TIMEOUT
            });
            !idle.is_empty()
        });
    }

    fn home(self: &Rc<Self>, upstream: &Upstream) -> Home {
        Home {
            connections: Rc::clone(self),
            upstream: upstream.clone(),
        }
    }
}

// === impl Http1Sending ===

impl Http1Sending {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) async fn send(
        mut self,
        request: Request<UpstreamBody>,
    ) -> Result<(Response<Incoming>, Http1Lease), TrySendError<Request<UpstreamBody>>> {
        let response = self.sender.try_send_request(request).await?;
        Ok((
            response,
            Http1Lease {
                sender: self.sender,
                home: self.home,
            },
        ))
    }
}

// === impl Http1Lease ===

impl Http1Lease {
    pub(super) fn finish(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut all = self.home.connections.0.borrow_mut();
        let idle = all.entry(self.home.upstream).or_default();
        if idle.len() < POOL_IDLE_PER_ENDPOINT {
            idle.push(Idle {
                sender: self.sender,
                since: Instant::now(),
            });
        }
    }
}
