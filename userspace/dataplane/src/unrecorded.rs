//! Sockets that can be reached and of which the kernel side knows nothing: they were made before their workload was enrolled.
//!
//! `weft_sockcreate` notes whose a socket is when it is made, and `weft_sockops` that it listens; nobody tells them later. So what a
//! program had open when it was captured is not judged: its listeners accept from outside the mesh whoever comes, and no service
//! leads there. The kernel does know the cgroup of each socket's maker, and tells it by sock_diag(7) (Linux 5.8).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::SockProtocol;
use weft_policy::Protocol;

use crate::{
    error::DataplaneError,
    loader::Dataplane,
    netlink::{self, HEADER, attributes},
};

/// A TCP socket that listens, or a UDP socket that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSocket {
    /// As it was bound.
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// id of the cgroup in which it was made.
    pub cgroup: u64,
}

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST, NLM_F_ROOT, NLM_F_MATCH.
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x100 | 0x200;
/// `struct inet_diag_req_v2`, `struct inet_diag_msg`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// `INET_DIAG_CGROUP_ID` (include/uapi/linux/inet_diag.h).
const CGROUP_ID: u16 = 21;
/// States (include/net/tcp_states.h): TCP_LISTEN, and TCP_CLOSE, in which a UDP socket is that has no peer.
const LISTEN: u32 = 10;
const CLOSE: u32 = 7;
/// UDP ports from here on are given out by the kernel: a socket there is a client's.
const FIRST_EPHEMERAL: u16 = 32_768;

/// All of the calling thread's network namespace.
///
/// # Errors
///
/// The kernel does not tell.
pub fn open_sockets() -> io::Result<Vec<OpenSocket>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, number, state) in [
            (Protocol::Tcp, libc::IPPROTO_TCP, LISTEN),
            (Protocol::Udp, libc::IPPROTO_UDP, CLOSE),
        ] {
            let request = request(family as u8, number as u8, 1 << state);
            let asked = netlink::dump(SockProtocol::NetlinkSockDiag, &request, |answer| {
                found.extend(read(answer, protocol));
            });
            match asked {
                // This kernel has no such sockets, or nobody who tells of them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                asked => asked?,
            }
        }
    }
    let is_served = |socket: &OpenSocket| socket.protocol == Protocol::Tcp || socket.address.port() < FIRST_EPHEMERAL;
    found.retain(is_served);
    Ok(found)
}

fn request(family: u8, protocol: u8, states: u32) -> Vec<u8> {
    let length = HEADER + REQUEST;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and sender; family, protocol, no extensions.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    // Any address.
    bytes.resize(length, 0);
    bytes
}

/// `struct inet_diag_msg` with its attributes; `None`: a kernel that tells no cgroups.
fn read(answer: &[u8], protocol: Protocol) -> Option<OpenSocket> {
    let port = u16::from_be_bytes([*answer.get(4)?, *answer.get(5)?]);
    let address: [u8; 16] = *answer.get(8..)?.first_chunk()?;
    let ip: IpAddr = match i32::from(*answer.first()?) {
        libc::AF_INET => Ipv4Addr::new(address[0], address[1], address[2], address[3]).into(),
        _ => Ipv6Addr::from(address).to_canonical(),
    };
    let (_, id) = attributes(answer.get(ANSWER..)?).find(|(kind, _)| *kind == CGROUP_ID)?;
    Some(OpenSocket {
        address: SocketAddr::new(ip, port),
        protocol,
        cgroup: u64::from_ne_bytes(*id.first_chunk()?),
    })
}

// === impl Dataplane ===

impl Dataplane {
    /// Those of `sockets`, which are of the network namespace with this cookie, of which the kernel side has no record. To be
    /// asked after they were listed, for one that is made meanwhile has its record at once.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn unrecorded(&self, netns: u64, sockets: Vec<OpenSocket>) -> Result<Vec<OpenSocket>, DataplaneError> {
        let recorded = self.listeners_in(netns)?;
        let is_recorded = |socket: &OpenSocket| {
            let mut recorded = recorded.iter();
            recorded.any(|known| {
                let address = SocketAddr::new(known.address.ip().to_canonical(), known.address.port());
                (address, known.protocol) == (socket.address, socket.protocol)
            })
        };
        let mut sockets = sockets;
        sockets.retain(|socket| !is_recorded(socket));
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{TcpListener, UdpSocket},
        os::unix::fs::MetadataExt as _,
    };

    use super::*;
    use crate::cgroup::find_cgroup2;

    #[test]
    fn what_listens_is_found_with_its_makers_cgroup_and_clients_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let listener6 = TcpListener::bind("[::]:0").expect("listen");
        let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let found = open_sockets().expect("sock_diag");
        let of = |address: SocketAddr| found.iter().find(|socket| socket.address == address);
        for listener in [&listener, &listener6] {
            let socket = of(listener.local_addr().expect("bound")).expect("found");
            assert_eq!(socket.protocol, Protocol::Tcp);
            let Ok(mount) = find_cgroup2() else { continue };
            let own = fs::read_to_string("/proc/self/cgroup").expect("read");
            let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
            // Not to be seen from a cgroup namespace within.
            if let Some(Ok(own)) = own.map(|own| fs::metadata(mount.join(own))) {
                assert_eq!(socket.cgroup, own.ino());
            }
        }
        let port = client.local_addr().expect("bound");
        assert!(port.port() < FIRST_EPHEMERAL || of(port).is_none());
    }
}
