//! DNS server of the mesh: names of services are virtual IPs, everything else is the system resolver's business.
//!
//! The kernel hands it whatever captured workloads send to port 53. For IPv4 (and IPv6 sockets, in v4-mapped form) the
//! address that a question arrives at, `127.53.X.Y`, tells the asking namespace by its number X.Y; any other loopback
//! address means namespace `default`. Hence the sockets are bound to every address of the loopback *device*, answer
//! from the address they were asked at, and hear nothing from outside the machine.
//!
//! | question | answer |
//! |---|---|
//! | `web`, `web.NAMESPACE`, `web.NAMESPACE.mesh`, type A or AAAA | the virtual IP, [`TTL`] |
//! | the same, any other type | NOERROR without data |
//! | one of these with a search suffix behind it | NXDOMAIN at once, so that the resolver tries the next form |
//! | anything else below `.mesh` | NXDOMAIN |
//! | anything else | forwarded as it is; SERVFAIL within [`FORWARD_BUDGET`] |

mod answer;
mod forward;
mod resolv_conf;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
};
use weft_policy::Snapshot;

pub use resolv_conf::ResolvConf;

/// Istio's DNS port.
pub const DEFAULT_PORT: u16 = 15053;
/// How long clients may keep an answer. Virtual IPs hardly ever change, but a service may come or go: a program that
/// asked too early should not have to wait longer than this.
pub const TTL: u32 = 5;
/// All attempts to forward one question together. Below the five seconds after which resolvers ask again, and below the
/// second within which an operator expects to see that nobody answers.
pub const FORWARD_BUDGET: Duration = Duration::from_millis(800);
/// Questions worked on at once; more are answered SERVFAIL. Bounds sockets towards resolvers.
const MAX_IN_FLIGHT: usize = 1024;
/// TCP connections at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
/// A TCP client that asks nothing for so long is hung up on (RFC 7766, 6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Largest UDP message taken, from clients and resolvers; the largest EDNS size anybody advertises.
const MAX_UDP: usize = 4096;
/// First two bytes of the addresses that carry a namespace number.
const NAMESPACE_PREFIX: [u8; 2] = [127, 53];

/// Gives the namespace of a number in `127.53.X.Y`.
pub type Namespaces = Arc<dyn Fn(u16) -> String + Send + Sync>;

/// Settings of [`DnsServer`].
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// On every loopback address, UDP and TCP. 0 picks a free one (tests).
    pub port: u16,
    /// Where everything else is asked, and which suffixes resolvers append.
    pub resolv_conf: ResolvConf,
}

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    port: u16,
    _tasks: JoinSet<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("listen on {address} for DNS over {transport}")]
    Bind {
        address: SocketAddr,
        transport: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What every question needs.
struct Server {
    snapshot: Arc<ArcSwap<Snapshot>>,
    namespaces: Namespaces,
    resolv_conf: ResolvConf,
    in_flight: Semaphore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

// === impl DnsServer ===

impl DnsServer {
    /// Binds in this thread's network namespace and serves as tasks of this runtime.
    ///
    /// # Errors
    /// The port is taken. IPv6 is left out where there is none.
    pub fn start(
        config: DnsConfig,
        snapshot: Arc<ArcSwap<Snapshot>>,
        namespaces: Namespaces,
    ) -> Result<Self, DnsError> {
        let mut resolv_conf = config.resolv_conf;
        let v4 = bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.port)))?;
        let port = v4.port;
        // Asking ourselves would go round until the budget is spent.
        resolv_conf
            .nameservers
            .retain(|server| !(server.ip().to_canonical().is_loopback() && server.port() == port));
        let server = Arc::new(Server {
            snapshot,
            namespaces,
            resolv_conf,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        });
        let mut tasks = JoinSet::new();
        let v6 = match bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
            Ok(bound) => Some(bound),
            Err(DnsError::Bind { source, .. }) if no_ipv6(&source) => None,
            Err(error) => return Err(error),
        };
        for bound in [Some(v4), v6].into_iter().flatten() {
            tasks.spawn(udp::serve(Arc::clone(&server), bound.udp));
            tasks.spawn(tcp::serve(Arc::clone(&server), bound.tcp));
        }
        Ok(Self { port, _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

struct Bound {
    udp: UdpSocket,
    tcp: TcpListener,
    port: u16,
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// TCP and UDP on one port; TCP first, because its port tells the kernel side that we live.
fn bind(address: SocketAddr) -> Result<Bound, DnsError> {
    let fail = |transport| move |source| DnsError::Bind { address, transport, source };
    let open = |address: SocketAddr, kind, protocol| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.bind_device(Some(b"lo"))?;
        socket.set_nonblocking(true)?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let tcp = open(address, Type::STREAM, Protocol::TCP)
        .and_then(|socket| {
            socket.listen(1024)?;
            TcpListener::from_std(socket.into())
        })
        .map_err(fail("TCP"))?;
    let port = tcp.local_addr().map_err(fail("TCP"))?.port();
    let udp = open(SocketAddr::new(address.ip(), port), Type::DGRAM, Protocol::UDP)
        .and_then(|socket| {
            if address.is_ipv4() {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)?;
            }
            UdpSocket::from_std(socket.into())
        })
        .map_err(fail("UDP"))?;
    Ok(Bound { udp, tcp, port })
}

// === impl Server ===

impl Server {
    /// The answer to a message that arrived at `asked`, ready to be sent; `None`: not worth one.
    async fn answer(&self, question: &[u8], asked: std::net::IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let namespace = match asked.to_canonical() {
            std::net::IpAddr::V4(v4) if v4.octets()[..2] == NAMESPACE_PREFIX => {
                let [_, _, high, low] = v4.octets();
                (self.namespaces)(u16::from_be_bytes([high, low]))
            }
            _ => (self.namespaces)(0),
        };
        let decided = answer::decide(question, &namespace, &self.snapshot.load(), &self.resolv_conf.search);
        match decided {
            answer::Decided::Ignore => None,
            answer::Decided::Reply(reply) => Some(reply),
            answer::Decided::Forward { failure } => {
                let Ok(_room) = self.in_flight.try_acquire() else {
                    return Some(failure);
                };
                let forwarded = forward::ask(question, &self.resolv_conf.nameservers, transport).await;
                Some(forwarded.unwrap_or(failure))
            }
        }
    }
}
