//! Resetting established connections that a new policy denies.
//!
//! The packet hooks drop what such a connection still sends; its ends would wait for each other until they give up. So the
//! end that wrote the record is destroyed (SOCK_DESTROY, Linux 4.5, `sock_diag(7)`): its program reads ECONNABORTED, and a
//! reset, which the hooks let pass, tells the other. The socket's cookie goes along: without it the kernel would take the
//! listener for a connection that has just ended.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use nix::sys::socket::SockProtocol;
use weft_abi::{ConnRecord, Tuple, identity, role, sock_flags};

use crate::{
    error::DataplaneError,
    loader::Dataplane,
    netlink::{self, HEADER},
    tables::telemetry::{ip_addr, socket_addr},
};

/// An established TCP connection as `weft_conns` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Established {
    /// cgroup id of the workload that dialled; `None`: of no workload of this node.
    pub owner: Option<u64>,
    /// Source and destination identity when it was opened.
    pub source: u32,
    pub destination: u32,
    /// Their classes, of then.
    pub source_class: u32,
    pub destination_class: u32,
    /// Who dialled, and the endpoint.
    pub from: IpAddr,
    pub to: SocketAddr,
    /// It goes past our proxy although requests were to be looked at: there was none, and its failure mode is open; or a
    /// foreign one looks at them.
    pub past_the_proxy: bool,
}

/// Connections that are to be reset, in whatever network namespace they are.
#[derive(Debug, Default)]
pub struct Doomed(Vec<(Tuple, u64)>);

// === impl Doomed ===

impl Doomed {
    /// Resets those of the calling thread's network namespace; how many. The others stay in here, with those that have ended
    /// by themselves. A socket's cookie is its own on the whole machine, so none is taken for another.
    ///
    /// One that cannot be reset is logged: its packets are dropped all the same.
    pub fn reset(&mut self) -> usize {
        let mut cut = 0;
        self.0.retain(|(end, cookie)| match destroy(end, *cookie) {
            Ok(()) => {
                cut += 1;
                false
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => {
                tracing::warn!(%error, "a connection that is denied now is not reset; its packets are dropped");
                false
            }
        });
        cut
    }

    /// Whether there are none left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Dataplane ===

impl Dataplane {
    /// Every direct connection that `denied` says so of. Costs a walk over the table of connections.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    pub fn doomed(&self, denied: impl Fn(&Established) -> bool) -> Result<Doomed, DataplaneError> {
        let fail = |source: MapError| DataplaneError::Map {
            map: "weft_conns",
            what: "look for connections that are denied now",
            source: Box::new(source),
        };
        let map = Map::HashMap(MapData::from_pin(self.bpffs().join("maps/conns")).map_err(fail)?);
        let map: HashMap<MapData, Tuple, ConnRecord> = map.try_into().map_err(fail)?;
        let mut doomed = Doomed::default();
        for (tuple, conn) in map.iter().filter_map(Result::ok) {
            // What was handed to a foreign proxy is ours to judge.
            let ours = match conn.flags & sock_flags::EXTERNAL {
                0 => sock_flags::REDIRECTED,
                _ => 0,
            };
            let free = ours | sock_flags::PROXY | sock_flags::EXEMPT;
            if conn.flags & free != 0 || conn.source == identity::PROXY || !denied(&established(&tuple, &conn)) {
                continue;
            }
            let end = if conn.writer == role::PASSIVE {
                tuple.reversed()
            } else {
                tuple
            };
            doomed.0.push((end, conn.cookie));
        }
        Ok(doomed)
    }
}

fn established(tuple: &Tuple, conn: &ConnRecord) -> Established {
    let external = conn.flags & sock_flags::EXTERNAL != 0;
    let to = if external {
        socket_addr(&conn.original, conn.original_port_be)
    } else {
        socket_addr(&tuple.remote, tuple.remote_port_be)
    };
    Established {
        owner: (conn.owner != 0).then_some(conn.owner),
        source: conn.source,
        destination: conn.destination,
        source_class: conn.source_class,
        destination_class: conn.destination_class,
        from: ip_addr(&tuple.local),
        to,
        past_the_proxy: external || conn.verdict == weft_abi::action::REDIRECT,
    }
}

/// `SOCK_DESTROY` (include/uapi/linux/sock_diag.h).
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Destroys the socket of one end, if it still is the one with this cookie.
fn destroy(end: &Tuple, cookie: u64) -> io::Result<()> {
    netlink::ask(SockProtocol::NetlinkSockDiag, &request(end, cookie))
}

fn request(end: &Tuple, cookie: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    let length = (HEADER + REQUEST) as u32;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    // Sequence and sender: one question a socket.
    bytes.extend([0; 8]);
    let v4 = end.local.is_v4() && end.remote.is_v4();
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // Family, protocol, extensions, padding; every state.
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(end.local_port_be.to_ne_bytes());
    bytes.extend(end.remote_port_be.to_ne_bytes());
    for addr in [end.local, end.remote] {
        if v4 {
            bytes.extend(addr.0[3].to_ne_bytes());
            bytes.extend([0; 12]);
        } else {
            bytes.extend(addr.octets());
        }
    }
    // Any interface.
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend((cookie as u32).to_ne_bytes());
    bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::tables::services::address;

    fn tuple(stream: &TcpStream) -> Tuple {
        let (local, local_port_be) = address(stream.local_addr().unwrap());
        let (remote, remote_port_be) = address(stream.peer_addr().unwrap());
        Tuple {
            local,
            remote,
            local_port_be,
            remote_port_be,
            netns: 0,
        }
    }

    /// On this machine's loopback: only our own two sockets are touched.
    #[test]
    fn the_socket_with_the_cookie_is_reset_and_no_other() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root (cargo xtask test)");
            return;
        }
        for host in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let cookie = crate::sys::socket_cookie(&client).unwrap();
            let end = tuple(&client);
            assert_eq!(
                destroy(&end, cookie + 1).unwrap_err().raw_os_error(),
                Some(libc::ENOENT),
                "another socket's cookie"
            );
            destroy(&end, cookie).unwrap();
            assert_eq!(
                client.read(&mut [0; 1]).unwrap_err().kind(),
                ErrorKind::ConnectionAborted
            );
            assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            // Gone: the same question now finds the listener, whose cookie is another.
            assert!(destroy(&end, cookie).is_err());
            TcpStream::connect(listener.local_addr().unwrap()).expect("the listener lives");
        }
    }
}
