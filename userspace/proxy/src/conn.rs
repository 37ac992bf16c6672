//! An accepted connection, from its original destination to the protocol that serves it.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use ::http::HeaderValue;
use tokio::net::TcpStream;
use weft_adapters::{Destination, FilterState, FlowProtocol, Peer, StreamInfo, TrafficDirection};

use crate::{
    context::ConnContext,
    detect::{Found, Patience, Spoken, detect},
    error::DataError,
    http,
    io::{Prefixed, Socket},
    last::Last,
    limits::{DETECT_DEADLINE, IDLE_TIMEOUT, INFERRED_DETECT_DEADLINE},
    listen::stop::{Phase, StopWatch},
    metrics::ConnectionProtocol,
    netns::Netns,
    pick::{Picked, Route},
    report,
    route::{self, Dialled, Hint},
    tcp,
    upstream::{Home, Upstream},
    worker::Worker,
};

/// Numbers of streams that a thread takes at once: else each request would write what all workers do.
const STREAMS_AT_ONCE: u64 = 1024;

static NEXT_STREAMS: AtomicU64 = AtomicU64::new(STREAMS_AT_ONCE);

thread_local! {
    /// This thread's next one; where it begins a new lot, there is none.
    static NEXT_STREAM: Cell<u64> = const { Cell::new(0) };
}

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// What every request of a connection shares.
pub(crate) struct Conn {
    pub(crate) worker: Rc<Worker>,
    pub(crate) context: ConnContext,
    /// The client's address and port.
    pub(crate) peer: SocketAddr,
    /// Who that is, in names.
    pub(crate) source: Arc<Peer>,
    /// Its address for `X-Forwarded-For`.
    pub(crate) forwarded_for: Option<HeaderValue>,
    pub(crate) stop: StopWatch,
    /// The namespace it was accepted in, where that is not the proxy's own.
    netns: Option<Arc<Netns>>,
    /// It came from outside that namespace to the address that it was accepted at.
    arrived: bool,
    direction: TrafficDirection,
    /// Given when a filter first looks.
    id: OnceCell<u64>,
    /// Its last answer ends where the connection does.
    pub(crate) until_close: Cell<bool>,
    pub(crate) last: Last,
}

// === impl Conn ===

impl Conn {
    /// What the client dialled.
    pub(crate) fn dialled(&self) -> Dialled {
        Dialled {
            address: self.context.original,
            destination: self.context.destination,
            pods_loopback: self.netns.is_some() && self.context.original.ip().is_loopback(),
        }
    }

    /// Where that leads now.
    ///
    /// # Errors
    /// See [`route::target`].
    pub(crate) fn route(&self) -> Result<Rc<Route>, DataError> {
        let worker = &self.worker;
        worker.routes.again(worker, self.dialled(), &self.last.route)
    }

    /// What the client dialled, as it is told where no endpoint was picked.
    pub(crate) fn unpicked(&self) -> Arc<Destination> {
        report::bare_destination(self.context.original)
    }

    /// What filters are told of a request, or of the whole connection.
    pub(crate) fn stream_info(&self, picked: &Picked, protocol: FlowProtocol) -> StreamInfo {
        StreamInfo {
            id: next_stream(),
            connection: *self.id.get_or_init(|| NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed)),
            direction: self.direction,
            began: SystemTime::now(),
            source: Arc::clone(&self.source),
            source_address: self.peer,
            destination: Arc::clone(&picked.destination),
            original: self.context.original,
            protocol,
            state: FilterState::default(),
        }
    }

    /// Where idle connections to `picked` are.
    pub(crate) fn home(&self, picked: &Rc<Picked>) -> Home {
        let find = || self.worker.pool.home(&self.upstream(picked.address));
        self.last.home(picked, find)
    }

    /// From where to connect to an endpoint: from the client's namespace, so that the endpoint sees the client's address; if
    /// the client arrived at the endpoint's namespace, from there with the client's address. Only an endpoint on our own
    /// loopback is reached from here alone.
    pub(crate) fn upstream(&self, address: SocketAddr) -> Upstream {
        let ours = address.ip().is_loopback() && !self.dialled().pods_loopback;
        let netns = if ours { None } else { self.netns.clone() };
        let there = self.arrived && address == self.context.original;
        let source = netns.as_ref().filter(|_| there).map(|netns| (netns, self.peer.ip()));
        Upstream {
            address,
            // A connection that has no client's address serves all clients.
            source: source.and_then(|(netns, client)| netns.has_sources(client).then_some(client)),
            netns,
        }
    }
}

/// Serves `stream` in a task of its own, which the worker owns. `netns`: where it was accepted, if not at home.
pub(crate) fn spawn(
    worker: &Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    netns: Option<&Arc<Netns>>,
    stop: StopWatch,
) {
    let Some((local, context)) = captured(worker, &stream, peer) else {
        return;
    };
    let direction = direction(local, context.original);
    // A link-local address says nothing without its device.
    let arrived = direction == TrafficDirection::Inbound
        && !peer.ip().is_loopback()
        && !matches!(peer.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let source = worker.peers.of(&worker.snapshots.load(), &context);
    let conn = Rc::new(Conn {
        worker: Rc::clone(worker),
        forwarded_for: http::head::forwarded_for(peer),
        context,
        peer,
        source,
        stop,
        netns: netns.cloned(),
        arrived,
        direction,
        id: OnceCell::new(),
        until_close: Cell::new(false),
        last: Last::default(),
    });
    let stream = Socket::new(stream, conn.context.has_two_queues, None);
    // In boxes: the task of a connection that rests has nothing of what came before.
    let beginning = Box::pin(begin(conn, stream));
    worker.spawn_connection(async move {
        if let Some(served) = beginning.await {
            served.await;
        }
    });
}

fn next_stream() -> u64 {
    let next = NEXT_STREAM.get();
    let number = match next.is_multiple_of(STREAMS_AT_ONCE) {
        true => NEXT_STREAMS.fetch_add(STREAMS_AT_ONCE, Ordering::Relaxed),
        false => next,
    };
    NEXT_STREAM.set(number + 1);
    number
}

/// What is sent to our outbound port was accepted there; what came in, at the address that was dialled.
fn direction(local: SocketAddr, original: SocketAddr) -> TrafficDirection {
    if local == original {
        TrafficDirection::Inbound
    } else {
        TrafficDirection::Outbound
    }
}

/// Where it was accepted, and where it wanted to go; `None` (counted): nobody captured it, or it wanted to come here.
fn captured(worker: &Worker, stream: &TcpStream, peer: SocketAddr) -> Option<(SocketAddr, ConnContext)> {
    let context = stream.local_addr().and_then(|local| {
        let local = route::canonical(local);
        let context = worker.origin.context(stream.as_fd(), local, route::canonical(peer))?;
        Ok(context.map(|context| (local, context)))
    });
    match context {
        Ok(Some((local, mut context))) => {
            context.original = route::canonical(context.original);
            if !worker.listeners.contains(&context.original) {
                return Some((local, context));
            }
            tracing::debug!(%peer, original = %context.original, "connection to the proxy itself");
        }
        Ok(None) => tracing::debug!(%peer, "connection without original destination"),
        Err(error) => tracing::warn!(%peer, %error, "look up the original destination"),
    }
    worker.metrics.capture_missing.inc();
    None
}

/// Finds out what is spoken, and gives what serves that. `None`: the connection is over.
async fn begin(conn: Rc<Conn>, mut stream: Socket) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
    let hint = route::hint(&conn.worker.snapshots.load(), conn.dialled(), conn.context.source);
    let found = match hint {
        Hint::Opaque => Found::Spoke(Spoken::Opaque, Default::default()),
        Hint::Http | Hint::Inferred | Hint::Unknown => {
            let patience = match hint {
                Hint::Http => Patience::Http(IDLE_TIMEOUT),
                Hint::Inferred => Patience::Unknown(INFERRED_DETECT_DEADLINE),
                _ => Patience::Unknown(DETECT_DEADLINE),
            };
            let mut stop = conn.stop.clone();
            let detected = tokio::select! {
                detected = detect(&mut stream, patience) => detected,
                () = stop.reached(Phase::Drain), if hint == Hint::Http => return None,
            };
            match detected {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "client went away before it said anything");
                    return None;
                }
            }
        }
    };
    let Found::Spoke(spoken, read) = found else { return None };
    conn.worker.count_connection(match spoken {
        Spoken::Http1 => ConnectionProtocol::Http1,
        Spoken::Http2 => ConnectionProtocol::Http2,
        Spoken::Tls => ConnectionProtocol::Tls,
        Spoken::Opaque => ConnectionProtocol::Opaque,
    });
    let stream = Prefixed::new(read, stream);
    Some(match spoken {
        Spoken::Http1 => Box::pin(http::server::serve_http1(conn, stream)),
        Spoken::Http2 => Box::pin(http::http2::serve(conn, stream)),
        Spoken::Tls | Spoken::Opaque => Box::pin(tcp::serve(conn, stream)),
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn no_two_streams_have_one_number() {
        let some = || {
            (0..2 * STREAMS_AT_ONCE + 1)
                .map(|_| next_stream())
                .collect::<HashSet<_>>()
        };
        let (own, others) = (some(), thread::spawn(some).join().unwrap());
        assert_eq!([own.len() as u64, others.len() as u64], [2 * STREAMS_AT_ONCE + 1; 2]);
        assert!(own.is_disjoint(&others) && !own.contains(&0));
    }

    #[test]
    fn what_was_accepted_where_it_was_sent_to_came_in() {
        let endpoint = SocketAddr::from(([10, 0, 0, 2], 8080));
        assert_eq!(direction(endpoint, endpoint), TrafficDirection::Inbound);
        for ours in [[127, 0, 0, 1], [10, 0, 0, 2]] {
            let ours = SocketAddr::from((ours, 15001));
            assert_eq!(direction(ours, endpoint), TrafficDirection::Outbound);
        }
    }
}
