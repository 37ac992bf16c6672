//! A port for a program that is to listen there, or for none.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port of 127.0.0.1 that nobody else gets as long as the socket lives. It does not listen: whoever is told the port may listen
/// beside it where he sets SO_REUSEADDR, as listeners of std and of tokio do.
pub fn held() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
