//! What one worker thread has: its share of everything, reached without a lock.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use weft_adapters::Reporter;

use crate::{
    balance::{Balancer, Loads, Random},
    config::ProxyConfig,
    context::Origin,
    http::{agents::Agents, lean::buffers::Buffers},
    idle::Idlers,
    limits::{IDLE_SWEEP, POOL_TICK},
    listen::stop::{Phase, StopWatch},
    metrics::{ConnectionCounters, ConnectionProtocol, ProxyMetrics, RequestCounters, RequestOutcome},
    pick::Routes,
    report::{Destinations, Peers},
    ticks::Ticks,
    upstream::Pool,
    watch::SnapshotWatch,
};

/// Every how many ticks idle connections are looked for.
const SWEEP_TICKS: u64 = IDLE_SWEEP.as_secs() / POOL_TICK.as_secs();

/// What a worker is started with; crosses the thread border.
pub(crate) struct Shared {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) snapshots: SnapshotWatch,
    pub(crate) origin: Arc<dyn Origin>,
    pub(crate) reporter: Reporter,
    pub(crate) metrics: Arc<ProxyMetrics>,
    /// Our own listeners: never a destination.
    pub(crate) listeners: Vec<SocketAddr>,
}

/// One worker; lives on its thread only.
pub(crate) struct Worker {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) snapshots: SnapshotWatch,
    pub(crate) origin: Arc<dyn Origin>,
    pub(crate) reporter: Reporter,
    pub(crate) metrics: Arc<ProxyMetrics>,
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) pool: Pool,
    pub(crate) loads: Loads,
    pub(crate) random: Random,
    pub(crate) balancer: Box<dyn Balancer>,
    pub(crate) destinations: Destinations,
    pub(crate) peers: Peers,
    pub(crate) routes: Routes,
    pub(crate) idlers: Idlers,
    pub(crate) agents: Agents,
    pub(crate) buffers: Buffers,
    accepted: ConnectionCounters,
    requests: RequestCounters,
    /// Client connections and tunnels: what a drain waits for.
    connections: TaskTracker,
    /// What outlives a request for a moment.
    chores: TaskTracker,
    /// How many connections have ended by themselves since the drain began.
    finished: Rc<Cell<usize>>,
    stop: StopWatch,
}

// === impl Worker ===

impl Worker {
    pub(crate) fn new(shared: Shared, stop: StopWatch) -> Rc<Self> {
        let Shared {
            config,
            snapshots,
            origin,
            reporter,
            metrics,
            listeners,
        } = shared;
        let balancer = config.balance.build();
        let pool = Pool::new(Arc::clone(&origin), Arc::clone(&metrics));
        Rc::new(Self {
            config,
            snapshots,
            origin,
            reporter,
            metrics,
            listeners,
            pool,
            loads: Loads::default(),
            random: Random::seeded(),
            balancer,
            destinations: Destinations::default(),
            peers: Peers::default(),
            routes: Routes::default(),
            idlers: Idlers::default(),
            agents: Agents::default(),
            buffers: Buffers::default(),
            accepted: ConnectionCounters::default(),
            requests: RequestCounters::default(),
            connections: TaskTracker::new(),
            chores: TaskTracker::new(),
            finished: Rc::default(),
            stop,
        })
    }

    /// Runs `connection` on this thread; the drain waits for it, the worker's end cuts it.
    pub(crate) fn spawn_connection(&self, connection: impl Future<Output = ()> + 'static) {
        let active = ActiveGauge::new(&self.metrics);
        let (finished, stop) = (Rc::clone(&self.finished), self.stop.clone());
        self.connections.spawn_local(async move {
            connection.await;
            drop(active);
            if stop.has_reached(Phase::Retire) {
                finished.set(finished.get() + 1);
            }
        });
    }

    /// A client's connection has shown what it speaks.
    pub(crate) fn count_connection(&self, protocol: ConnectionProtocol) {
        self.accepted.count(&self.metrics, protocol);
    }

    /// A request has ended.
    pub(crate) fn count_request(&self, outcome: RequestOutcome) {
        self.requests.count(&self.metrics, outcome);
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.connections.len()
    }

    /// Runs something nobody waits for, on this thread; the worker's end cuts it.
    pub(crate) fn spawn_chore(&self, chore: impl Future<Output = ()> + 'static) {
        self.chores.spawn_local(chore);
    }

    /// Connections that ended without being cut, since the drain began.
    pub(crate) fn finished_connections(&self) -> usize {
        self.finished.get()
    }

    /// [`Self::all_ended`] may return from now on.
    pub(crate) fn close_to_new(&self) {
        self.connections.close();
    }

    pub(crate) async fn all_ended(&self) {
        self.connections.wait().await;
    }

    /// Closes what has idled too long, for as long as the worker lives. `ticks`: every [`POOL_TICK`].
    pub(crate) async fn housekeeping(self: Rc<Self>, mut ticks: Ticks) {
        for tick in 1_u64.. {
            if let Err(error) = ticks.next().await {
                tracing::error!(%error, "a worker has no more ticks: it closes nothing that idles");
                return;
            }
            self.pool.reap(Instant::now());
            self.loads.reap();
            if tick % SWEEP_TICKS == 0 {
                self.idlers.sweep();
            }
        }
    }

    /// Lets go of what is no longer in force, and readies the filters that are, each time that there are others, for as long as the
    /// worker lives.
    pub(crate) async fn warming(self: Rc<Self>) {
        let mut snapshots = self.snapshots.clone();
        loop {
            snapshots.mark();
            self.routes.settle(&self.snapshots);
            self.snapshots.load_full().chains.warm();
            snapshots.changed().await;
        }
    }
}

/// Counts a connection as active for as long as it lives, however it ends.
struct ActiveGauge(Arc<ProxyMetrics>);

// === impl ActiveGauge ===

impl ActiveGauge {
    fn new(metrics: &Arc<ProxyMetrics>) -> Self {
        metrics.connections_active.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for ActiveGauge {
    fn drop(&mut self) {
        self.0.connections_active.dec();
    }
}
