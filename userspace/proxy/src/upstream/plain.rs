//! Connections to endpoints with no codec on them: for requests that go the short way.

use super::{
    Upstream,
    home::{self, Homes},
};
use crate::{
    io::Socket,
    limits::{POOL_IDLE_TIMEOUT, POOL_TICK},
    netns::Netns,
};

/// The reap at which a connection has been idle for [`POOL_IDLE_TIMEOUT`]: the first may come at once.
const LAST_REAP: u64 = POOL_IDLE_TIMEOUT.as_secs() / POOL_TICK.as_secs() + 1;

/// Idle connections by endpoint.
#[derive(Default)]
pub(super) struct Connections(Homes<Idle>);

pub(crate) type Home = home::Home<Idle>;
pub(crate) type HomeRef = home::HomeRef<Idle>;

/// A connection in use.
pub(crate) struct Plain {
    pub(crate) socket: Socket,
    /// An earlier request used it.
    pub(crate) reused: bool,
    pub(crate) home: Home,
}

pub(crate) struct Idle {
    socket: Socket,
    /// Reaps it has seen: what is asked for with each request is not the time.
    reaps: u64,
}

// === impl Connections ===

impl Connections {
    pub(super) fn home(&self, upstream: &Upstream) -> Home {
        self.0.of(upstream)
    }

    pub(super) fn forget(&self, netns: &Netns) {
        self.0.forget(netns);
    }

    /// Closes what has been idle too long. To be called every [`POOL_TICK`].
    pub(super) fn reap(&self) {
        self.0.retain(|idle| {
            idle.reaps += 1;
            idle.reaps < LAST_REAP && idle.socket.is_quiet()
        });
    }
}

// === impl Home ===

impl Home {
    /// The last used one. Those that closed meanwhile, or on which something came that nobody asked for, are let go.
    pub(super) fn take(&self) -> Option<Socket> {
        let mut idle = self.idle();
        while let Some(Idle { socket, .. }) = idle.pop() {
            if socket.is_quiet() {
                return Some(socket);
            }
        }
        None
    }

    /// Takes one back: everything that was asked for on it has come.
    pub(crate) fn keep(&self, socket: Socket) {
        self.put(Idle { socket, reaps: 0 });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_in_use_at_a_reap_serves_the_next_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let _peer = listener.accept().await.unwrap();
        let connections = Connections::default();
        let upstream = Upstream::at_home(([127, 0, 0, 1], 80).into());
        let home = connections.home(&upstream);
        connections.reap();
        home.keep(Socket::new(stream, false, None));
        let known = home.downgrade();
        drop(home);
        let found = known.upgrade().map(|home| home.take().is_some());
        assert_eq!(found, Some(true));
        connections.reap();
        assert!(known.upgrade().is_none());
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_in_time_and_not_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let _peer = listener.accept().await.unwrap();
        let connections = Connections::default();
        let home = connections.home(&Upstream::at_home(([127, 0, 0, 1], 80).into()));
        home.keep(Socket::new(stream, false, None));
        // The first comes right after it was given back.
        let mut idle = Duration::ZERO;
        while idle < POOL_IDLE_TIMEOUT {
            connections.reap();
            assert_eq!(home.idle().len(), 1, "after {idle:?}");
            idle += POOL_TICK;
        }
        connections.reap();
        assert!(home.idle().is_empty());
    }
}
