//! Opening one TCP connection to an endpoint.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use socket2::{Domain, Protocol, SockRef, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    context::Origin,
    io::{Socket, keep_alive},
    limits::{CONNECT_TIMEOUT, SOURCE_ATTEMPTS, SOURCE_PORTS, SOURCE_TIMEOUT, UNREAD_TIMEOUT},
    netns::{Held, Netns},
};

/// Where to connect to, and from where. Connections of one are never used for another: each client keeps its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// `None`: from the proxy's own namespace.
    pub(crate) netns: Option<Arc<Netns>>,
    /// The client's address, which an endpoint in `netns` is to see where that can be had; `None`: one of the namespace's own.
    pub(crate) source: Option<IpAddr>,
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn at_home(address: SocketAddr) -> Self {
        Self {
            address,
            netns: None,
            source: None,
        }
    }
}

/// Connects, without Nagle's delay: whoever wrote has decided what belongs together. `origin` says how the socket is to be
/// read.
///
/// # Errors
/// The kernel's, or `TimedOut` after [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(upstream: &Upstream, origin: &dyn Origin) -> io::Result<Socket> {
    let (stream, held) = timeout(CONNECT_TIMEOUT, open(upstream)).await.map_err(|_elapsed| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        )
    })??;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    let two_queues = origin.has_two_queues(stream.as_fd());
    Ok(Socket::new(stream, two_queues, held))
}

/// As [`connect`], for requests: see [`UNREAD_TIMEOUT`].
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_for_requests(upstream: &Upstream, origin: &dyn Origin) -> io::Result<Socket> {
    let socket = connect(upstream, origin).await?;
    SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD_TIMEOUT))?;
    Ok(socket)
}

async fn open(upstream: &Upstream) -> io::Result<(TcpStream, Option<Held>)> {
    let address = upstream.address;
    let Some(netns) = &upstream.netns else {
        return Ok((TcpStream::connect(address).await?, None));
    };
    let mut lost = None;
    if let Some(source) = upstream.source
        && let Some((mark, held)) = netns.source(source, address)
    {
        match timeout(SOURCE_TIMEOUT, open_as(netns, source, mark, address)).await {
            Ok(Ok(stream)) => {
                netns.keep_source(address);
                return Ok((stream, Some(held)));
            }
            Ok(Err(error)) if is_the_endpoints(&error) => return Err(error),
            Ok(Err(error)) => lost = Some((source, error)),
            Err(_elapsed) => lost = Some((source, io::ErrorKind::TimedOut.into())),
        }
    }
    let socket = netns.inside(|| match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })??;
    let stream = socket.connect(address).await?;
    if let Some((source, error)) = lost {
        netns.lose_source(source, address, &error);
    }
    Ok((stream, None))
}

/// What the endpoint answers to anybody.
fn is_the_endpoints(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// As if `source` connected, from a port that is free for it.
async fn open_as(netns: &Netns, source: IpAddr, mark: u32, address: SocketAddr) -> io::Result<TcpStream> {
    let mut attempts = 1;
    loop {
        let socket = netns.inside(|| bound(SocketAddr::new(source, next_port()), mark));
        let error = match socket.flatten() {
            Ok(socket) => match socket.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let taken = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable);
        if !taken || attempts == SOURCE_ATTEMPTS {
            return Err(error);
        }
        attempts += 1;
    }
}

/// A socket with an address that is not this machine's (IP_TRANSPARENT, `ip(7)`).
fn bound(local: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    match local {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(mark)?;
    // A port that an earlier connection has just given up is free for another endpoint, and for a server's listener.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&local.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Of [`SOURCE_PORTS`], each in its turn: the one given up last comes last.
fn next_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(RandomState::new().hash_one(0) as u16));
    let count = SOURCE_PORTS.end() - SOURCE_PORTS.start() + 1;
    SOURCE_PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % count
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        context::tests::Nobody,
        limits::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES},
    };

    /// An opaque connection may stand still, a request may not.
    #[tokio::test]
    async fn endpoints_are_probed_and_requests_have_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::at_home(listener.local_addr().unwrap());
        let opaque = connect(&upstream, &Nobody).await.unwrap();
        let requests = connect_for_requests(&upstream, &Nobody).await.unwrap();
        for (socket, unread) in [(&opaque, None), (&requests, Some(UNREAD_TIMEOUT))] {
            let socket = SockRef::from(socket);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
            assert_eq!(socket.tcp_user_timeout().unwrap(), unread);
        }
    }

    #[test]
    fn ports_stay_in_their_range_and_take_turns() {
        let mut seen: Vec<u16> = (0..100).map(|_| next_port()).collect();
        assert!(seen.iter().all(|port| SOURCE_PORTS.contains(port)), "{seen:?}");
        seen.sort_unstable();
        seen.dedup();
        // Other tests of this process may take some in between, and the counter may wrap once.
        assert_eq!(seen.len(), 100);
    }
}
