//! Connections to endpoints with no codec on them: for requests that go the short way.

use std::{cell::RefCell, collections::HashMap};

use tokio::time::Instant;

use super::Upstream;
use crate::{
    io::Socket,
    limits::{POOL_IDLE_PER_ENDPOINT, POOL_IDLE_TIMEOUT},
    netns::Netns,
};

/// Idle connections by endpoint, the last used one on top.
#[derive(Default)]
pub(super) struct Connections(RefCell<HashMap<Upstream, Vec<Idle>>>);

struct Idle {
    socket: Socket,
    since: Instant,
}

// === impl Connections ===

impl Connections {
    /// The last used one. Those that closed meanwhile, or on which something came that nobody asked for, are let go.
    pub(super) fn idle(&self, upstream: &Upstream) -> Option<Socket> {
        let mut all = self.0.borrow_mut();
        let idle = all.get_mut(upstream)?;
        while let Some(Idle { socket, .. }) = idle.pop() {
            if socket.is_quiet() {
                return Some(socket);
            }
        }
        None
    }

    pub(super) fn keep(&self, upstream: Upstream, socket: Socket) {
        let mut all = self.0.borrow_mut();
        let idle = all.entry(upstream).or_default();
        if idle.len() < POOL_IDLE_PER_ENDPOINT {
            let since = Instant::now();
            idle.push(Idle { socket, since });
        }
    }

    /// Keeps no idle connection from that namespace.
    pub(super) fn forget(&self, netns: &Netns) {
        self.0
            .borrow_mut()
            .retain(|upstream, _| upstream.netns.as_deref() != Some(netns));
    }

    pub(super) fn reap(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| now.duration_since(idle.since) < POOL_IDLE_TIMEOUT && idle.socket.is_quiet());
            !idle.is_empty()
        });
    }
}
