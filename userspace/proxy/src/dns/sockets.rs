//! The sockets of one port in one network namespace.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{error::DnsError, limits::MAX_PORT_TRIES};

/// Connections waiting to be accepted.
const BACKLOG: i32 = 256;

/// The sockets of one port: UDP and TCP, IPv4 and, where there is IPv6, IPv6. Whoever opened them stood in their
/// namespace; they work from any thread.
#[derive(Debug)]
pub struct DnsSockets {
    pub udp: Vec<UdpSocket>,
    pub tcp: Vec<TcpListener>,
}

// === impl DnsSockets ===

impl DnsSockets {
    /// Binds all of them in this thread's network namespace. Port 0 becomes one number that is free for all.
    ///
    /// # Errors
    /// [`DnsError::Bind`]: the port is taken; nothing stays bound.
    pub fn open(port: u16) -> Result<Self, DnsError> {
        let mut outcome = Self::at(port);
        // The number that was free for one socket may be taken for another.
        for _ in 1..MAX_PORT_TRIES {
            let taken = matches!(&outcome, Err(DnsError::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse);
            if port != 0 || !taken {
                break;
            }
            outcome = Self::at(port);
        }
        outcome
    }

    fn at(port: u16) -> Result<Self, DnsError> {
        // TCP first: its port tells the kernel side that we live.
        let (tcp, port) = listen((Ipv4Addr::UNSPECIFIED, port).into())?;
        let mut bound = Self {
            udp: vec![udp((Ipv4Addr::UNSPECIFIED, port).into())?],
            tcp: vec![tcp],
        };
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        match listen(address) {
            Ok((tcp, _)) => {
                bound.tcp.push(tcp);
                bound.udp.push(udp(address)?);
            }
            Err(DnsError::Bind { source, .. }) if no_ipv6(&source) => {}
            Err(error) => return Err(error),
        }
        Ok(bound)
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

fn udp(address: SocketAddr) -> Result<UdpSocket, DnsError> {
    bind(address, Type::DGRAM, Protocol::UDP)
        .map(UdpSocket::from)
        .map_err(|source| DnsError::Bind {
            address,
            transport: "UDP",
            source,
        })
}

fn listen(address: SocketAddr) -> Result<(TcpListener, u16), DnsError> {
    bind(address, Type::STREAM, Protocol::TCP)
        .and_then(|socket| {
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        })
        .map_err(|source| DnsError::Bind {
            address,
            transport: "TCP",
            source,
        })
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // A restart must not wait for the last connections' TIME_WAIT. Two listeners are still refused.
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // All of 127.0.0.0/8 is wanted, and nothing from any wire.
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&address.into())?;
    Ok(socket)
}
