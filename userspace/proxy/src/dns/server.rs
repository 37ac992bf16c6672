//! Listeners, tasks, and what they share.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_proto::op::Message;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use weft_policy::Snapshot;

use super::{
    answer::{Action, Asker, judge, servfail},
    config::{DnsConfig, ResolvConf},
    error::DnsError,
    forward::{Forwarder, Transport},
    limits::MAX_QUERY,
    message,
    metrics::{DnsMetrics, QueryResult},
    sockets::DnsSockets,
    tcp,
    udp::Udp,
};
use crate::netns::Netns;

/// Istio's DNS port.
pub const DEFAULT_PORT: u16 = 15053;

/// Namespace of a client whose query says none.
const DEFAULT_NAMESPACE: &str = "default";

/// After an error of a listener that may well come again at once.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Gives the namespace of a number in `127.53.X.Y` (X.Y in network order). 0, 127.0.0.1 and ::1 are the namespace
/// `default` and are not asked for.
pub type Namespaces = Arc<dyn Fn(u16) -> String + Send + Sync>;

/// The running server; dropping it stops it.
pub struct DnsServer {
    port: u16,
    server: Arc<Server>,
    /// Where its tasks run.
    runtime: Handle,
    /// How to end those of a namespace.
    entered: Mutex<HashMap<Arc<Netns>, CancellationToken>>,
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
        let resolv = Arc::new(ArcSwap::from_pointee(resolv_conf));
        let metrics = DnsMetrics::default();
        let own = sockets.udp.iter().map(|socket| socket.local_addr());
        let own = own.collect::<Result<_, _>>().map_err(unusable)?;
        let server = Arc::new(Server {
            snapshot,
            namespaces,
            resolv: resolv.clone(),
            forwarder: Forwarder::new(resolv.clone(), own, metrics.clone()),
            metrics,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let started = Self {
            port,
            runtime: Handle::current(),
            entered: Mutex::default(),
            server,
        };
        started.serve(sockets, &started.server.stop.clone())?;
        Ok(started)
    }

    /// Answers in another namespace as well, on sockets that were opened there ([`DnsSockets::open`] in [`Netns::visit`]).
    ///
    /// # Errors
    /// [`DnsError::Socket`]: one of them is not what it should be; nothing is served there then.
    pub fn enter(&self, netns: &Arc<Netns>, sockets: DnsSockets) -> Result<(), DnsError> {
        let left = self.server.stop.child_token();
        self.serve(sockets, &left)?;
        self.entered().insert(Arc::clone(netns), left);
        Ok(())
    }

    /// Takes that back. Queries under way over UDP are still answered.
    pub fn leave(&self, netns: &Arc<Netns>) {
        if let Some(left) = self.entered().remove(netns) {
            left.cancel();
        }
    }

    fn serve(&self, sockets: DnsSockets, stop: &CancellationToken) -> Result<(), DnsError> {
        let server = &self.server;
        let unusable = |source| DnsError::Socket { source };
        let _inside = self.runtime.enter();
        let udp: Result<Vec<_>, _> = sockets.udp.into_iter().map(Udp::new).collect();
        let tcp: Result<Vec<_>, _> = sockets.tcp.into_iter().map(tokio::net::TcpListener::from_std).collect();
        let (udp, tcp) = (udp.map_err(unusable)?, tcp.map_err(unusable)?);
        for socket in udp {
            server.tasks.spawn(serve_udp(socket, Arc::clone(server), stop.clone()));
        }
        for listener in tcp {
            let serving = tcp::serve(listener, Arc::clone(server), stop.clone());
            server.tasks.spawn(serving);
        }
        Ok(())
    }

    fn entered(&self) -> MutexGuard<'_, HashMap<Arc<Netns>, CancellationToken>> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its counters, to be registered by whoever serves metrics.
    pub fn metrics(&self) -> &DnsMetrics {
        &self.server.metrics
    }

    /// The system's `resolv.conf` has changed. Queries under way end as they began.
    pub fn set_resolv_conf(&self, resolv: ResolvConf) {
        self.server.resolv.store(Arc::new(resolv));
    }

    /// Stops listening and waits until queries under way are answered: at most the timeout of the configuration.
    pub async fn shutdown(self) {
        self.server.stop.cancel();
        self.server.tasks.close();
        self.server.tasks.wait().await;
    }
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.server.stop.cancel();
        self.server.tasks.close();
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

async fn serve_udp(socket: Udp, server: Arc<Server>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
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
