//! Listeners, tasks, and what they share.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_proto::op::Message;
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use weft_policy::Snapshot;

use super::{
    answer::{Action, Asker, judge, servfail},
    config::{DnsConfig, ResolvConf},
    error::DnsError,
    forward::{Forwarder, Transport},
    limits::{MAX_PORT_TRIES, MAX_QUERY},
    message,
    metrics::{DnsMetrics, QueryResult},
    tcp,
    udp::Udp,
};

/// Istio's DNS port.
pub const DEFAULT_PORT: u16 = 15053;

/// Namespace of a client whose query says none.
const DEFAULT_NAMESPACE: &str = "default";

/// Connections waiting to be accepted.
const BACKLOG: i32 = 256;

/// After an error of a listener that may well come again at once.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Gives the namespace of a number in `127.53.X.Y` (X.Y in network order). 0, 127.0.0.1 and ::1 are the namespace
/// `default` and are not asked for.
pub type Namespaces = Arc<dyn Fn(u16) -> String + Send + Sync>;

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    port: u16,
    resolv: Arc<ArcSwap<ResolvConf>>,
    metrics: DnsMetrics,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The sockets of one port: UDP and TCP, IPv4 and, where there is IPv6, IPv6.
#[derive(Debug)]
pub struct DnsSockets {
    pub udp: Vec<UdpSocket>,
    pub tcp: Vec<TcpListener>,
}

/// What the tasks share.
pub(super) struct Server {
    snapshot: Arc<ArcSwap<Snapshot>>,
    namespaces: Namespaces,
    resolv: Arc<ArcSwap<ResolvConf>>,
    forwarder: Forwarder,
    pub metrics: DnsMetrics,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

/// What to do about a query, ready to be sent.
pub(super) enum Verdict {
    Reply(Vec<u8>),
    Forward(Message),
    Drop,
}

// === impl DnsServer ===

impl DnsServer {
    /// Binds in this thread's network namespace, then serves as tasks of this runtime.
    ///
    /// # Errors
    /// [`DnsError::Bind`]: the port is taken; nothing is served then. IPv6 is left out where there is none.
    ///
    /// # Panics
    /// Outside a tokio runtime, as tokio's sockets do.
    pub fn start(
        config: DnsConfig,
        snapshot: Arc<ArcSwap<Snapshot>>,
        namespaces: Namespaces,
    ) -> Result<Self, DnsError> {
        Self::start_on(DnsSockets::open(config.port)?, config.resolv_conf, snapshot, namespaces)
    }

    /// The same on sockets that are open already: those of an earlier process, with what waits in their queues.
    ///
    /// # Errors
    /// [`DnsError::Socket`]: one of them is not what it should be; nothing is served then.
    ///
    /// # Panics
    /// Outside a tokio runtime, as tokio's sockets do.
    pub fn start_on(
        sockets: DnsSockets,
        resolv_conf: ResolvConf,
        snapshot: Arc<ArcSwap<Snapshot>>,
        namespaces: Namespaces,
    ) -> Result<Self, DnsError> {
        let unusable = |source| DnsError::Socket { source };
        let port = match sockets.tcp.first() {
            Some(listener) => listener.local_addr().map_err(unusable)?.port(),
            None => return Err(unusable(ErrorKind::NotFound.into())),
        };
        let udp: Vec<Udp> = sockets
            .udp
            .into_iter()
            .map(Udp::new)
            .collect::<Result<_, _>>()
            .map_err(unusable)?;
        let tcp: Vec<tokio::net::TcpListener> = sockets
            .tcp
            .into_iter()
            .map(tokio::net::TcpListener::from_std)
            .collect::<Result<_, _>>()
            .map_err(unusable)?;
        let resolv = Arc::new(ArcSwap::from_pointee(resolv_conf));
        let metrics = DnsMetrics::default();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let own = udp.iter().map(Udp::local).collect();
        let server = Arc::new(Server {
            snapshot,
            namespaces,
            resolv: resolv.clone(),
            forwarder: Forwarder::new(resolv.clone(), own, metrics.clone()),
            metrics: metrics.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        for socket in udp {
            tasks.spawn(serve_udp(socket, server.clone()));
        }
        for listener in tcp {
            tasks.spawn(tcp::serve(listener, server.clone()));
        }
        Ok(Self {
            port,
            resolv,
            metrics,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its counters, to be registered by whoever serves metrics.
    pub fn metrics(&self) -> &DnsMetrics {
        &self.metrics
    }

    /// The system's `resolv.conf` has changed. Queries under way end as they began.
    pub fn set_resolv_conf(&self, resolv: ResolvConf) {
        self.resolv.store(Arc::new(resolv));
    }

    /// Stops listening and waits until queries under way are answered: at most the timeout of the configuration.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

// === impl Server ===

impl Server {
    /// The namespace of a client, by our address that it asked.
    pub fn namespace_of(&self, local: IpAddr) -> String {
        match local.to_canonical() {
            IpAddr::V4(local) if local.octets()[..2] == [127, 53] => {
                let [_, _, high, low] = local.octets();
                match u16::from_be_bytes([high, low]) {
                    0 => DEFAULT_NAMESPACE.to_owned(),
                    number => (self.namespaces)(number),
                }
            }
            _ => DEFAULT_NAMESPACE.to_owned(),
        }
    }

    /// Judges and counts; everything but forwarding is done when this returns.
    pub fn judge(&self, query: &[u8], namespace: &str) -> Verdict {
        let resolv = self.resolv.load();
        let asker = Asker {
            namespace,
            search: &resolv.search,
        };
        let action = judge(query, asker, &self.snapshot.load());
        match action {
            Action::Drop => {
                self.metrics.count(QueryResult::Dropped);
                Verdict::Drop
            }
            Action::Reply(response, result) => match response.to_vec() {
                Ok(bytes) => {
                    self.metrics.count(result);
                    Verdict::Reply(bytes)
                }
                Err(error) => {
                    debug!(%error, "a DNS answer could not be encoded");
                    self.metrics.count(QueryResult::Dropped);
                    Verdict::Drop
                }
            },
            Action::Forward(query) => Verdict::Forward(query),
        }
    }

    /// A resolver's response to the query, else SERVFAIL. Empty only if not even that can be encoded.
    pub async fn forward(&self, bytes: &[u8], query: &Message, transport: Transport) -> Vec<u8> {
        let permit = self.forwarder.permit();
        let response = match permit {
            Some(_) => self.forwarder.ask(bytes, transport).await,
            None => None,
        };
        match response {
            Some(response) => {
                self.metrics.count(QueryResult::Forwarded);
                response
            }
            None => {
                self.metrics.count(QueryResult::Servfail);
                servfail(query).to_vec().unwrap_or_default()
            }
        }
    }
}

async fn serve_udp(socket: Udp, server: Arc<Server>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            () = server.stop.cancelled() => return,
            received = socket.recv(&mut buffer) => received,
        };
        let (query, path) = match received {
            Ok((size, path)) => (&buffer[..size], path),
            Err(error) => {
                debug!(%error, "receiving a DNS query failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !path.local.to_canonical().is_loopback() {
            server.metrics.count(QueryResult::Dropped);
            continue;
        }
        match server.judge(query, &server.namespace_of(path.local)) {
            Verdict::Drop => {}
            // Our own answers fit into any datagram.
            Verdict::Reply(response) => send(&socket, &response, path).await,
            Verdict::Forward(decoded) => {
                let (query, socket, forwarding) = (query.to_owned(), socket.clone(), server.clone());
                server.tasks.spawn(async move {
                    let response = forwarding.forward(&query, &decoded, Transport::Udp).await;
                    send(&socket, &message::fit(response, message::udp_limit(&decoded)), path).await;
                });
            }
        }
    }
}

async fn send(socket: &Udp, response: &[u8], path: super::udp::Path) {
    if let Err(error) = socket.send(response, path).await {
        debug!(%error, client = %path.client, "sending a DNS answer failed");
    }
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
