//! Workers, their snapshot, and who is told what they did.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpStream, sync::mpsc};
use weft_adapters::{Chain, Chains, Check, Flow, Pipeline, Record, Report, ReportMetrics, ReporterThread};
use weft_policy::{Identity, Snapshot};
use weft_proxy::{ConnContext, Origin, ProxyConfig, ProxyMetrics, SnapshotPublisher, Workers};

use super::spec::{CLIENT, CLIENT_CGROUP, Spec, vip};

/// What the kernel would know, by the client's address.
#[derive(Default)]
pub struct Table(Mutex<HashMap<SocketAddr, ConnContext>>);

/// A running proxy.
pub struct Mesh {
    pub workers: Option<Workers>,
    pub table: Arc<Table>,
    publisher: SnapshotPublisher,
    chains: Arc<Chains>,
    current: Arc<ArcSwap<Snapshot>>,
    flows: mpsc::UnboundedReceiver<Arc<Flow>>,
    generation: AtomicU64,
    _reporting: ReporterThread,
}

struct Tell(mpsc::UnboundedSender<Arc<Flow>>);

// === impl Table ===

impl Origin for Table {
    fn context(&self, _: BorrowedFd<'_>, _: SocketAddr, peer: SocketAddr) -> io::Result<Option<ConnContext>> {
        Ok(self.0.lock().unwrap().remove(&peer))
    }

    fn has_two_queues(&self, _: BorrowedFd<'_>) -> bool {
        false
    }
}

// === impl Tell ===

impl Report for Tell {
    fn name(&self) -> &str {
        "test"
    }

    fn report(&mut self, batch: &[Record]) {
        for record in batch {
            if let Record::Flow(flow) = record {
                let _test_is_over = self.0.send(flow.clone());
            }
        }
    }
}

// === impl Mesh ===

impl Mesh {
    pub fn start(spec: &Spec) -> Self {
        Self::start_with(spec, ProxyConfig::default(), Vec::new())
    }

    pub fn start_with(spec: &Spec, config: ProxyConfig, checks: Vec<Arc<dyn Check>>) -> Self {
        let chains = Chains::everywhere(Chain {
            pipeline: Pipeline::new(checks),
            ..Chain::default()
        });
        Self::start_all(spec, config, chains)
    }

    /// With adapters that see whole streams.
    pub fn filtered(spec: &Spec, chains: Chains) -> Self {
        Self::start_all(spec, ProxyConfig::default(), chains)
    }

    /// With two workers at most, and if nothing else is said.
    pub fn start_all(spec: &Spec, config: ProxyConfig, chains: Chains) -> Self {
        let config = ProxyConfig {
            addresses: vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()],
            workers: config.workers.or(Some(2)),
            ..config
        };
        let (told, flows) = mpsc::unbounded_channel();
        let (reporting, reporters) =
            ReporterThread::start(vec![Box::new(Tell(told))], 2, ReportMetrics::default()).unwrap();
        let chains = Arc::new(chains);
        let current = Arc::new(ArcSwap::from_pointee(spec.snapshot(1)));
        let publisher = SnapshotPublisher::new(Arc::clone(&current), Arc::clone(&chains));
        let table = Arc::new(Table::default());
        let workers = Workers::start(
            config,
            publisher.watch(),
            table.clone(),
            |worker| reporters[worker].clone(),
            Arc::new(ProxyMetrics::default()),
        )
        .unwrap();
        Self {
            workers: Some(workers),
            table,
            publisher,
            chains,
            current,
            flows,
            generation: AtomicU64::new(1),
            _reporting: reporting,
        }
    }

    /// What [`weft_proxy::Callouts`] find services in.
    pub fn snapshots(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.current)
    }

    /// From now on these adapters look.
    pub fn publish_chains(&mut self, spec: &Spec, chains: Chains) {
        self.chains = Arc::new(chains);
        self.publish(spec);
    }

    pub fn publish(&self, spec: &Spec) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let snapshot = Arc::new(spec.snapshot(generation));
        self.publisher.publish(snapshot, Arc::clone(&self.chains));
    }

    /// Connects as default/client to port 80 of the n-th service.
    pub async fn dial(&self, service: usize) -> TcpStream {
        self.dial_original((vip(service), 80).into()).await
    }

    /// Connects as default/client; `original` is what it dialled.
    pub async fn dial_original(&self, original: SocketAddr) -> TcpStream {
        let addresses = self.proxy().local_addrs();
        let proxy = *addresses
            .iter()
            .find(|address| address.is_ipv4() == original.is_ipv4())
            .unwrap();
        let socket = Socket::new(Domain::for_address(proxy), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(proxy.ip(), 0).into()).unwrap();
        let context = ConnContext {
            original,
            destination: Identity::OUTSIDE,
            source: CLIENT,
            source_workload: Some(CLIENT_CGROUP),
            rule: None,
            has_two_queues: false,
        };
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        self.table.0.lock().unwrap().insert(local, context);
        socket.set_nonblocking(true).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        // Whoever reads is told of a reset, however early it comes.
        if let Err(error) = socket.connect(&proxy.into()) {
            assert_eq!(error.raw_os_error(), Some(Errno::EINPROGRESS as i32), "{error}");
        }
        let stream = TcpStream::from_std(socket.into()).unwrap();
        stream.writable().await.unwrap();
        stream
    }

    pub fn proxy(&self) -> &Workers {
        self.workers.as_ref().unwrap()
    }

    pub fn metrics(&self) -> &ProxyMetrics {
        self.proxy().metrics()
    }

    /// The next thing that was reported.
    pub async fn flow(&mut self) -> Arc<Flow> {
        self.flows.recv().await.unwrap()
    }
}
