//! Opening one TCP connection to an endpoint.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{io::Socket, limits::CONNECT_TIMEOUT, netns::Netns};

/// Where to connect to, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// `None`: from the proxy's own namespace.
    pub(crate) netns: Option<Arc<Netns>>,
}

/// Connects, without Nagle's delay: whoever wrote has decided what belongs together.
///
/// # Errors
/// The kernel's, or `TimedOut` after [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(upstream: &Upstream) -> io::Result<Socket> {
    let stream = timeout(CONNECT_TIMEOUT, open(upstream)).await.map_err(|_elapsed| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        )
    })??;
    stream.set_nodelay(true)?;
    Ok(Socket::new(stream))
}

async fn open(upstream: &Upstream) -> io::Result<TcpStream> {
    let address = upstream.address;
    let Some(netns) = &upstream.netns else {
        return TcpStream::connect(address).await;
    };
    let socket = netns.inside(|| match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })??;
    socket.connect(address).await
}
