//! Start and stop of the worker threads.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{Arc, mpsc::sync_channel},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use weft_adapters::Reporter;

use super::{
    NetnsListeners, WorkersHandle, accept,
    handle::Change,
    stop::{Phase, StopSignal, StopWatch},
};
use crate::{
    callout,
    config::ProxyConfig,
    context::Origin,
    error::ProxyError,
    limits::{POOL_TICK, RETIRED_DRAIN},
    metrics::ProxyMetrics,
    netns::Netns,
    ticks::Ticks,
    watch::SnapshotWatch,
    worker::{Shared, Worker},
};

/// The running proxy. Dropping it cuts every connection; [`Workers::drain`] is the polite end.
#[derive(Debug)]
pub struct Workers {
    stop: StopSignal,
    threads: Vec<WorkerThread>,
    addresses: Vec<SocketAddr>,
    metrics: Arc<ProxyMetrics>,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// Connections that ended by themselves meanwhile.
    pub finished: usize,
    /// Connections that were cut at the deadline.
    pub cut: usize,
}

#[derive(Debug)]
struct WorkerThread {
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<DrainReport>,
    changes: mpsc::UnboundedSender<Change>,
}

/// The accept loops of one worker.
struct Accepting {
    worker: Rc<Worker>,
    stop: StopWatch,
    loops: Vec<JoinHandle<()>>,
    /// How to end those of a namespace.
    namespaces: HashMap<Arc<Netns>, CancellationToken>,
}

// === impl Workers ===

impl Workers {
    /// Binds `config.addresses` in this thread's network namespace and serves them.
    ///
    /// `reporter` is asked once for each worker: every worker reports through a ring of its own.
    ///
    /// # Errors
    /// A port that is taken, or a thread that cannot be started; nothing keeps running then.
    pub fn start(
        config: ProxyConfig,
        snapshot: SnapshotWatch,
        origin: Arc<dyn Origin>,
        reporter: impl FnMut(usize) -> Reporter,
        metrics: Arc<ProxyMetrics>,
    ) -> Result<Self, ProxyError> {
        let listeners = NetnsListeners::open(&config.addresses, config.worker_count())?;
        Self::start_on(vec![listeners], config, snapshot, origin, reporter, metrics)
    }

    /// The same with listeners that are open already, of any number of network namespaces. There are as many workers
    /// as the namespace with most of them has.
    ///
    /// # Errors
    /// A thread that cannot be started; nothing keeps running then.
    pub fn start_on(
        listeners: Vec<NetnsListeners>,
        config: ProxyConfig,
        snapshot: SnapshotWatch,
        origin: Arc<dyn Origin>,
        mut reporter: impl FnMut(usize) -> Reporter,
        metrics: Arc<ProxyMetrics>,
    ) -> Result<Self, ProxyError> {
        let addresses: Vec<SocketAddr> = listeners.iter().flat_map(|l| l.addresses().iter().copied()).collect();
        let mut started = Self {
            stop: StopSignal::new(),
            threads: Vec::new(),
            addresses,
            metrics,
        };
        let config = Arc::new(config);
        for (index, sockets) in by_worker(listeners).into_iter().enumerate() {
            let shared = Shared {
                config: Arc::clone(&config),
                snapshots: snapshot.clone(),
                origin: Arc::clone(&origin),
                reporter: reporter(index),
                metrics: Arc::clone(&started.metrics),
                listeners: started.addresses.clone(),
            };
            let thread = spawn(index, sockets, shared, started.stop.watch())
                .map_err(|source| ProxyError::Worker { worker: index, source })?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// Where it listens, with real ports.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Adds and removes other namespaces.
    pub fn handle(&self) -> WorkersHandle {
        let changes = self.threads.iter().map(|worker| worker.changes.clone()).collect();
        WorkersHandle::new(changes)
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<ProxyMetrics> {
        &self.metrics
    }

    /// Stops accepting, lets requests and connections finish for at most `deadline`, cuts the rest, and returns when
    /// every worker thread has ended.
    pub async fn drain(self, deadline: Duration) -> DrainReport {
        self.stop.advance(Phase::Drain);
        let cut = Instant::now() + deadline;
        self.end(&[(Phase::Cut, cut)]).await
    }

    /// The same when another process serves the same listeners: nobody is told to end before `deadline`, except with an
    /// answer. What has not ended shortly before is drained, then cut.
    pub async fn retire(self, deadline: Duration) -> DrainReport {
        self.stop.advance(Phase::Retire);
        let cut = Instant::now() + deadline;
        let drain = cut - RETIRED_DRAIN.min(deadline);
        self.end(&[(Phase::Drain, drain), (Phase::Cut, cut)]).await
    }

    /// Moves on to each phase at its time, until all workers have ended.
    async fn end(mut self, mut steps: &[(Phase, Instant)]) -> DrainReport {
        let mut total = DrainReport::default();
        for mut worker in std::mem::take(&mut self.threads) {
            let report = loop {
                let Some(((phase, at), later)) = steps.split_first() else {
                    break worker.ended.await;
                };
                match tokio::time::timeout_at(*at, &mut worker.ended).await {
                    Ok(report) => break report,
                    Err(_elapsed) => self.stop.advance(*phase),
                }
                steps = later;
            };
            let report = report.unwrap_or_default();
            total.finished += report.finished;
            total.cut += report.cut;
            join(worker.thread);
        }
        self.metrics.drain_cut.inc_by(total.cut as u64);
        tracing::info!(finished = total.finished, cut = total.cut, "proxy drained");
        total
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.advance(Phase::Cut);
        for worker in self.threads.drain(..) {
            join(worker.thread);
        }
    }
}

fn join(thread: thread::JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a proxy worker had panicked");
    }
}

/// Turns listeners by namespace into listeners by worker.
fn by_worker(listeners: Vec<NetnsListeners>) -> Vec<Vec<TcpListener>> {
    let count = listeners.iter().map(NetnsListeners::worker_count).max().unwrap_or(0);
    let mut workers: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
    for namespace in listeners {
        for (worker, sockets) in workers.iter_mut().zip(namespace.into_workers()) {
            worker.extend(sockets);
        }
    }
    workers
}

/// Returns once the worker has its runtime and its listeners are in it.
fn spawn(index: usize, sockets: Vec<TcpListener>, shared: Shared, stop: StopWatch) -> io::Result<WorkerThread> {
    let (tell, ended) = oneshot::channel();
    let (changes, changed) = mpsc::unbounded_channel();
    let (tell_start, started) = sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("weft-proxy-{index}"))
        .spawn(move || match begin(sockets) {
            Ok(begun) => {
                let _nobody_waits = tell_start.send(Ok(()));
                let report = run(begun, shared, changed, stop);
                let _nobody_drains = tell.send(report);
            }
            Err(error) => {
                let _nobody_waits = tell_start.send(Err(error));
            }
        })?;
    let started: Result<io::Result<()>, _> = started.recv();
    match started.unwrap_or_else(|_panicked| Err(io::Error::other("its thread has ended"))) {
        Ok(()) => Ok(WorkerThread { thread, ended, changes }),
        Err(error) => {
            join(thread);
            Err(error)
        }
    }
}

/// What a worker's thread has to have, made on it: this runtime never leaves its thread.
struct Begun {
    sockets: Vec<tokio::net::TcpListener>,
    ticks: Ticks,
    /// Last, for the others are of it.
    runtime: LocalRuntime,
}

fn begin(sockets: Vec<TcpListener>) -> io::Result<Begun> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    let inside = runtime.enter();
    let sockets = sockets.into_iter().map(tokio::net::TcpListener::from_std);
    let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
    let ticks = Ticks::every(POOL_TICK)?;
    drop(inside);
    Ok(Begun {
        sockets,
        ticks,
        runtime,
    })
}

/// A worker's life. Dropping the runtime at its end cuts what is left: no task outlives it.
fn run(begun: Begun, shared: Shared, mut changed: mpsc::UnboundedReceiver<Change>, mut stop: StopWatch) -> DrainReport {
    let Begun {
        sockets,
        ticks,
        runtime,
    } = begun;
    runtime.block_on(async {
        let worker = Worker::new(shared, stop.clone());
        callout::enter(&worker);
        let mut accepting = Accepting::new(Rc::clone(&worker), stop.clone());
        for socket in sockets {
            accepting.begin(socket, None, CancellationToken::new());
        }
        let beside = [
            tokio::task::spawn_local(worker.clone().housekeeping(ticks)),
            tokio::task::spawn_local(worker.clone().warming()),
        ];
        loop {
            tokio::select! {
                biased;
                () = stop.reached(Phase::Retire) => break,
                Some(change) = changed.recv() => accepting.change(change),
            }
        }
        for loop_ in accepting.loops {
            let _panicked = loop_.await;
        }
        worker.close_to_new();
        tokio::select! {
            () = worker.all_ended() => {}
            () = stop.reached(Phase::Cut) => {}
        }
        beside.iter().for_each(JoinHandle::abort);
        DrainReport {
            finished: worker.finished_connections(),
            cut: worker.open_connections(),
        }
    })
}

// === impl Accepting ===

impl Accepting {
    fn new(worker: Rc<Worker>, stop: StopWatch) -> Self {
        Self {
            worker,
            stop,
            loops: Vec::new(),
            namespaces: HashMap::new(),
        }
    }

    fn begin(&mut self, socket: tokio::net::TcpListener, netns: Option<Arc<Netns>>, left: CancellationToken) {
        let accepting = accept::accept(Rc::clone(&self.worker), socket, netns, left, self.stop.clone());
        self.loops.push(tokio::task::spawn_local(accepting));
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Enter(netns, sockets) => {
                let left = self.namespaces.entry(Arc::clone(&netns)).or_default().clone();
                for socket in sockets {
                    match tokio::net::TcpListener::from_std(socket) {
                        Ok(socket) => self.begin(socket, Some(Arc::clone(&netns)), left.clone()),
                        // Closed by this: the others of its SO_REUSEPORT group take its connections.
                        Err(error) => tracing::error!(%error, "a worker cannot serve a pod's listener"),
                    }
                }
            }
            Change::Leave(netns) => {
                if let Some(left) = self.namespaces.remove(&netns) {
                    left.cancel();
                }
                self.worker.pool.forget(&netns);
                self.loops.retain(|accepting| !accepting.is_finished());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    };

    use weft_adapters::{ReportMetrics, ReporterThread};

    use super::*;
    use crate::{context::tests::Nobody, watch::SnapshotPublisher};

    #[test]
    fn a_worker_that_cannot_serve_its_listener_does_not_start() {
        let (_reporting, mut reporters) = ReporterThread::start(Vec::new(), 1, ReportMetrics::default()).unwrap();
        let shared = Shared {
            config: Arc::default(),
            snapshots: SnapshotPublisher::new(Arc::default(), Arc::default()).watch(),
            origin: Arc::new(Nobody),
            reporter: reporters.remove(0),
            metrics: Arc::default(),
            listeners: Vec::new(),
        };
        // epoll waits for no file.
        let file = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/proc/self/exe")
            .unwrap();
        let listener = TcpListener::from(OwnedFd::from(file));
        let error = spawn(0, vec![listener], shared, StopSignal::new().watch()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }
}
