//! Opening one TCP connection to an endpoint.

use std::{io, net::SocketAddr};

use tokio::{net::TcpStream, time::timeout};

use crate::{io::Socket, limits::CONNECT_TIMEOUT};

/// Connects, without Nagle's delay: whoever wrote has decided what belongs together.
///
/// # Errors
/// The kernel's, or `TimedOut` after [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(address: SocketAddr) -> io::Result<Socket> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_elapsed| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            )
        })??;
    stream.set_nodelay(true)?;
    Ok(Socket::new(stream))
}
