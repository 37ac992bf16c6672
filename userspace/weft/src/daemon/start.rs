//! Start and stop, in the order that the module's words give.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::{
    net::TcpListener,
    signal::unix,
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use weft_adapters::{Reporter, Upstreams, WasmHost};
use weft_control::{AppliedObjects, Change, FilesSource};
use weft_dataplane::{Cgroup, Connections, Dataplane, DataplaneConfig, Events};
use weft_policy::Snapshot;
use weft_proxy::{Callouts, DrainReport, NetnsListeners, ProxyConfig, ProxyMetrics, SnapshotPublisher, Workers};

use super::{
    LAST_WORK,
    control::DaemonControl,
    dns, edges,
    engine::Engine,
    hand_over::{self, Channel, Gate, Giver, HandedOver, Sockets, Taken, names},
    inbound,
    keepers::{Keepers, goes_on},
    kernel, larger, last_good, memory, metrics, netns, notify,
    origin::KernelOrigin,
    reporting::Reporting,
    successor,
};
use crate::{
    admin::Server,
    config::DaemonConfig,
    error::{Coded, UNSUPPORTED},
    registry::{Registry, own_netns},
    state_dir::{Places, StateLock, write_atomically},
};

/// Istio's outbound port.
const PROXY_PORT: u16 = weft_proxy::DEFAULT_PORT;
/// Istio's inbound port.
const INBOUND_PORT: u16 = weft_proxy::DEFAULT_INBOUND_PORT;
/// Istio's DNS port.
const DNS_PORT: u16 = weft_proxy::dns::DEFAULT_PORT;
/// What connections through the proxy get to finish when the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);
/// What the reporter gets to write out.
const FLUSH: Duration = Duration::from_secs(2);
/// Least time between two publications that workloads cause by themselves, by listening and by ending: one that does so in a loop
/// costs no more than this. The first change of a while waits for nothing; longer would make endpoints ready later.
const SPACING: Duration = Duration::from_millis(50);
/// After a publication that took long, so many times as long, but no longer than [`MAX_SPACING`]: changes of resources wait behind.
const SHARE: u32 = 4;
const MAX_SPACING: Duration = Duration::from_millis(500);
/// How long an adapter may stay as it was for a module that changed while it was made ready, or that nobody could read before.
const AWAITED: Duration = Duration::from_secs(1);
/// Attempts to begin with all modules in force: files may change while they are made ready. With more, a file that always does
/// would keep the daemon from starting; what then is not ready refuses, or not, as its failure policy says.
const FIRST_ATTEMPTS: usize = 3;
/// Changes of the resources folder that wait for the engine; one says as much as many.
const CHANGES: usize = 16;

/// From nothing to a stopped daemon.
pub async fn run(config: DaemonConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let cgroup = Cgroup::open(config.cgroup.as_deref()).map_err(environment)?;
    // Before anybody is asked: the programs are the longest part of a start, and the likeliest to be refused.
    let prepared = match config.take_over {
        true => Dataplane::prepare(&config.bpffs, config.flow_sample, &config.map_sizes).map_err(environment)?,
        false => None,
    };
    let mut taken = match config.take_over {
        true => Taken::ask(&config, cgroup.path()).await?,
        false => None,
    };
    let lock = match &mut taken {
        Some(taken) => taken.state_lock(&config)?,
        None => config.state.lock()?,
    };
    let daemon_cgroup = cgroup.enter_daemon().map_err(environment)?;
    let wanted = DataplaneConfig {
        bpffs: config.bpffs.clone(),
        cgroup: cgroup.clone(),
        daemon_cgroup,
        proxy_port: PROXY_PORT,
        inbound_port: INBOUND_PORT,
        dns_port: DNS_PORT,
        short_circuit: config.short_circuit,
        flow_sample: config.flow_sample,
        map_sizes: config.map_sizes.clone(),
    };
    let dataplane = match &mut taken {
        Some(taken) => Dataplane::take_over(&wanted, taken.inherited()?, prepared),
        None => Dataplane::start(&wanted),
    }
    .map_err(environment)?;
    let adopted = dataplane.adopted();
    let mut served = false;
    let result = mesh(&config, lock, cgroup, Arc::new(dataplane), taken, &mut served).await;
    if !adopted && !served {
        // It never ran: what it put into the kernel would only be in the way.
        if let Err(error) = weft_dataplane::uninstall(&config.bpffs) {
            tracing::error!(%error, "kernel programs stay behind; `weft uninstall` removes them");
        } else if let Some(table) = result.as_ref().err().and_then(|error| larger::wanted(&config, error)) {
            return Err(larger::begin_again(&config, table));
        }
    }
    result
}

/// Every proxied connection takes two descriptors; the soft limit of most systems is 1,024.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is; many connections may exhaust it");
    }
}

/// Missing privileges or kernel features have an exit code of their own.
fn environment(error: weft_dataplane::DataplaneError) -> anyhow::Error {
    if error.is_environment() {
        Coded::error(UNSUPPORTED, error)
    } else {
        error.into()
    }
}

async fn mesh(
    config: &DaemonConfig,
    mut lock: StateLock,
    cgroup: Cgroup,
    dataplane: Arc<Dataplane>,
    mut taken: Option<Taken>,
    served: &mut bool,
) -> anyhow::Result<()> {
    keep_places(config, &cgroup)?;
    // What an earlier daemon listens at, and copies of all we listen at for the next one.
    let mut inherited = taken
        .as_mut()
        .map(|taken| std::mem::take(&mut taken.sockets))
        .unwrap_or_default();
    let mut sockets = Sockets::default();
    let stop = CancellationToken::new();
    let mut metrics_registry = MetricsRegistry::default();
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let current = Arc::new(ArcSwap::default());
    let wasm = wasm_host(config, &current, workers)?;
    let workers = workers.get();
    // One ring a worker, one for kernel events, one for kernel edges.
    let reporting = Reporting::start(config, workers + 2, wasm, &mut metrics_registry)?;
    let (flows, edge_store, mut reporters) = (reporting.flows, reporting.edges, reporting.reporters);
    let registry = Arc::new(Registry::open(&config.state.workloads(), cgroup.path())?);
    let snapshots = SnapshotPublisher::new(Arc::clone(&current), Arc::default());
    let watch = snapshots.watch();
    let engine = Arc::new(Engine::new(
        config,
        Arc::clone(&registry),
        cgroup.clone(),
        Arc::clone(&dataplane),
        snapshots,
        reporting.adapters,
    )?);
    engine.register(&mut metrics_registry);
    kernel::refresh_listeners(&engine, None);
    dataplane.refresh_local_addresses()?;

    let applied = AppliedObjects::open(config.state.applied())?;
    let (change, changes) = mpsc::channel(CHANGES);
    let files = config
        .resources
        .as_ref()
        .map(|folder| FilesSource::spawn(folder, Arc::clone(&engine.store), change.clone()))
        .transpose()?;
    let (diagnostics, errors) = applied.load(&mut *engine.store())?;
    for diagnostic in diagnostics {
        tracing::warn!("{diagnostic}");
    }
    for error in errors {
        tracing::error!(%error, "an applied object cannot be read");
    }
    let applied_files: BTreeSet<String> = applied
        .list()?
        .into_iter()
        .map(|applied| applied.path.to_string_lossy().into_owned())
        .collect();
    last_good::forget_stale(&mut engine.store(), config.resources.as_deref(), &applied_files);
    // As the first process of a container nothing else would end us while modules start.
    let mut signals = Signals::new()?;
    let gate = Arc::new(Gate::default());
    tokio::select! {
        published = publish(&engine, &gate) => published?,
        () = signals.stop() => {
            tracing::info!("stopped before it was ready");
            // What is being published is, and nothing after it: another daemon may be in charge.
            tokio::task::spawn_blocking(move || {
                gate.close(LAST_WORK);
                gate.give_away();
            })
            .await?;
            // Modules may start for minutes, and what starts them holds on to the engine.
            engine.dataplane.let_go();
            return Ok(());
        }
    }

    let proxy_metrics = Arc::new(ProxyMetrics::default());
    proxy_metrics.register(&mut metrics_registry);
    let kernel_metrics = edges::KernelMetrics::default();
    kernel_metrics.register(&mut metrics_registry);
    let proxy = ProxyConfig {
        virtual_ranges: config
            .vip4
            .iter()
            .map(|net| (*net).into())
            .chain(config.vip6.iter().map(|net| (*net).into()))
            .collect(),
        ..ProxyConfig::default()
    };
    let mut reporter = || reporters.pop().context("a reporter ring for everybody");
    let (event_reporter, edge_reporter) = (reporter()?, reporter()?);
    let mut worker_reporters: Vec<Reporter> = reporters;

    let events = Events::open(&dataplane)?;
    let origin = Arc::new(KernelOrigin(Connections::open(&dataplane)?));
    let endpoint = metrics::Endpoint {
        registry: Arc::new(Mutex::new(metrics_registry)),
        // The earlier daemon is, on the same sockets, until this one is.
        ready: Arc::new(AtomicBool::new(taken.is_some())),
    };
    let mut tasks = JoinSet::new();
    for listener in inherited.or_open(names::METRICS, &mut sockets, metrics::bind)? {
        tasks.spawn(metrics::serve(TcpListener::from_std(listener)?, endpoint.clone()));
    }
    let dns = dns::start(&mut inherited, &mut sockets, current, &dataplane, &endpoint.registry)?;
    let dns = Arc::new(dns);
    tasks.spawn(dns::follow(Arc::clone(&dns)));
    let server = match inherited.take_one(names::ADMIN) {
        Some(listener) => Server::handed_over(&config.state, listener, &lock)?,
        None => Server::bind(&config.state, &lock)?,
    };
    let socket_is_anothers = server.anothers();
    sockets.add_copy(names::ADMIN, &server)?;
    let outbound = inherited.or_open(names::OUTBOUND, &mut sockets, || {
        Ok(NetnsListeners::open(&proxy.addresses, workers)?.into_sockets())
    })?;
    let fallback = event_reporter.clone();
    let proxy = ProxyConfig {
        workers: Some(workers),
        ..proxy
    };
    let mut listeners = vec![NetnsListeners::of_sockets(outbound, workers)?];
    if config.inbound {
        let opened = inherited.or_open(names::INBOUND, &mut sockets, || {
            Ok(inbound::listen_beside_devices(workers)?.into_sockets())
        })?;
        listeners.push(NetnsListeners::of_sockets(opened, workers)?);
    }
    inbound::capture(config, &dataplane, listeners.get(1)).map_err(environment)?;
    let workers = Workers::start_on(
        listeners,
        proxy,
        watch,
        origin,
        |_| worker_reporters.pop().unwrap_or_else(|| fallback.clone()),
        Arc::clone(&proxy_metrics),
    )?;
    engine.pods.serve(netns::Serving {
        workers: workers.handle(),
        dns: Arc::clone(&dns),
        inherited,
    });
    let inherited = engine.pods.unused();
    // All that may fail comes before the earlier daemon is let go.
    let netns = own_netns()?;
    if let Some(taken) = taken {
        // Until here the earlier daemon could take everything back; from here on it does nothing but drain.
        let earlier = taken.serving(inherited, &flows).await?;
        tasks.spawn(earlier.keep_flows(Arc::clone(&flows)));
        socket_is_anothers.store(false, Ordering::Release);
        if let Err(error) = lock.write_pid() {
            tracing::warn!(%error, "the lock file names the earlier daemon's process");
        }
    }
    engine.pods.clean();
    let edges = edges::Reader::new(Arc::clone(&engine), edge_reporter, Arc::clone(&flows), kernel_metrics);
    let (successors, mut asked) = mpsc::channel(1);
    let mut giver = Giver {
        engine: Arc::clone(&engine),
        gate: Arc::clone(&gate),
        keepers: Keepers {
            engine: Arc::clone(&engine),
            gate: Arc::clone(&gate),
            events: Arc::new(tokio::sync::Mutex::new(events)),
            event_reporter,
            edges: Arc::new(Mutex::new(edges)),
            changes: Arc::new(tokio::sync::Mutex::new(changes)),
            devices: config.devices.clone(),
        },
        flows: Arc::clone(&flows),
        sockets,
        lock,
        config: config.clone(),
        bpffs: hand_over::absolute(&config.bpffs),
        cgroup: cgroup.path().to_path_buf(),
        netns,
    };
    let mut keepers = giver.keepers.start();

    let pods = Arc::clone(&engine);
    let control = DaemonControl {
        short_circuit: config.short_circuit,
        engine,
        applied: Mutex::new(applied),
        modules: config.state.modules(),
        changing: Mutex::new(()),
        files,
        flows,
        edges: edge_store,
        cgroup,
        bpffs: giver.bpffs.clone(),
        state_dir: config.state.dirs()[0].to_path_buf(),
        netns,
        started: Instant::now(),
        started_text: rfc3339(SystemTime::now()),
        stop: stop.clone(),
        gate,
        successors,
    };
    endpoint.ready.store(true, Ordering::Release);
    *served = true;
    tracing::info!(state_dir = %config.state.dirs()[0].display(), cgroup = %control.cgroup.path().display(), "ready");
    let admin = tokio::spawn(server.serve(Arc::new(control), stop.clone()));
    notify::ready();
    tasks.spawn(memory::give_back_code());
    let given = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => break None,
                Signal::Reload => if let Err(error) = successor::start() {
                    tracing::error!(error = format!("{error:#}"), "no successor; this daemon goes on");
                },
            },
            () = stop.cancelled() => break None,
            Some(connection) = asked.recv() => match giver.give(Channel::new(connection), &mut keepers).await {
                Ok(given) => break Some(given),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "not handed over; this daemon goes on"),
            },
        }
    };

    let deadline = match given {
        Some(_) => {
            socket_is_anothers.store(true, Ordering::Release);
            config.drain
        }
        None => {
            endpoint.ready.store(false, Ordering::Release);
            tracing::info!("stopping; kernel policy stays in force (`weft uninstall` removes it)");
            notify::stopping();
            // Nor does a module that becomes ready from here on come into force: another daemon may have started by then.
            giver.gate.give_away();
            DRAIN
        }
    };
    let handed_over = given.is_some();
    let telling = given.map(|given| tokio::spawn(given.tell_flows()));
    keepers.shutdown().await;
    // Closes the copies of our listeners; the proxy closes its own when it drains. A successor keeps the sockets alive.
    let mut left = pods.pods.close();
    if handed_over {
        left.clear();
    }
    // Kept to the end: beside a daemon that still drains nothing can start, or be uninstalled. A successor holds it by
    // now.
    let lock = giver.close();
    let lock = (!handed_over).then_some(lock);
    drop(asked);
    stop.cancel();
    let mut quiet = Box::pin(async move {
        tasks.shutdown().await;
        if let Some(dns) = Arc::into_inner(dns) {
            dns.shutdown().await;
        }
    });
    let ended = async {
        if handed_over {
            workers.retire(deadline).await
        } else {
            workers.drain(deadline).await
        }
    };
    let drain = async {
        tokio::select! {
            drained = ended => drained,
            () = signals.stop(), if handed_over => DrainReport::default(),
        }
    };
    // After a hand-over the successor answers, and only what was asked before is answered by us.
    let quieten = async {
        if handed_over {
            quiet.as_mut().await;
        }
    };
    let (drained, ()) = tokio::join!(drain, quieten);
    if drained.cut > 0 {
        tracing::warn!(
            cut = drained.cut,
            finished = drained.finished,
            "connections cut at the drain deadline"
        );
    }
    if let Err(error) = admin.await {
        tracing::warn!(%error, "the admin server did not end well");
    }
    if !handed_over {
        quiet.await;
        pods.pods.part(left);
    }
    // A receiver that does not read is no reason to fail: all that is not told to it by now is lost.
    let flushed = tokio::task::spawn_blocking(move || reporting.thread.shutdown(FLUSH)).await;
    if let Err(error) = flushed.context("reporter").and_then(|flushed| Ok(flushed?)) {
        tracing::warn!(error = format!("{error:#}"), "the last records are lost");
    }
    if let Some(telling) = telling {
        // Ends when the last owner of the flows is gone.
        let _ = tokio::time::timeout(FLUSH, telling).await;
    }
    drop(lock);
    Ok(())
}

/// Writes down where the kernel side is: it stays when this daemon is gone.
fn keep_places(config: &DaemonConfig, cgroup: &Cgroup) -> anyhow::Result<()> {
    let places = Places {
        bpffs: hand_over::absolute(&config.bpffs),
        cgroup: cgroup.path().to_path_buf(),
    };
    if let Ok(Some(earlier)) = config.state.places()
        && earlier != places
        && earlier.bpffs.join("maps").exists()
    {
        tracing::warn!(
            bpffs = %earlier.bpffs.display(), cgroup = %earlier.cgroup.display(),
            "an earlier daemon's kernel side stays in force there; `weft uninstall` with these flags and an empty --state-dir ends it"
        );
    }
    Ok(config.state.keep_places(&places)?)
}

/// What adapters as WebAssembly run in: they may call services of the mesh.
fn wasm_host(
    config: &DaemonConfig,
    current: &Arc<ArcSwap<Snapshot>>,
    workers: NonZeroUsize,
) -> anyhow::Result<WasmHost> {
    let current = Arc::clone(current);
    let callouts = move |namespace: &str| -> Arc<dyn Upstreams> {
        Arc::new(Callouts::new(Arc::clone(&current), namespace, Vec::new()))
    };
    let path = config.state.rolled_back();
    let kept = match fs::read(&path) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let keep = move |text: &[u8]| {
        if let Err(error) = write_atomically(&path, text) {
            tracing::error!(%error, path = %path.display(), "which generations were rolled back is not kept");
        }
    };
    Ok(WasmHost::new(callouts, workers).keeping(&kept, Box::new(keep)))
}

/// Publishes for the first time, on a thread that may block.
async fn publish(engine: &Arc<Engine>, gate: &Arc<Gate>) -> anyhow::Result<()> {
    let (engine, gate) = (Arc::clone(engine), Arc::clone(gate));
    let published = tokio::task::spawn_blocking(move || {
        for _ in 0..FIRST_ATTEMPTS {
            let _ahead = engine.prepare_stored();
            let _pass = gate.enter()?;
            engine.publish()?;
            if !engine.awaits_modules() {
                break;
            }
        }
        Ok(())
    });
    published.await.context("publish")?
}

/// Publishes whenever resources or workloads changed. A change that brings modules waits until they are ready, to come into force
/// as a whole; those after it do not wait for it.
pub(super) async fn republish(
    engine: Arc<Engine>,
    gate: Arc<Gate>,
    changes: Arc<tokio::sync::Mutex<mpsc::Receiver<Change>>>,
) {
    let mut changes = changes.lock().await;
    let mut workloads = engine.registry.changes();
    let mut files_live = true;
    let mut not_before = tokio::time::Instant::now();
    let mut making = JoinSet::new();
    let mut looks = interval(AWAITED);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let may_take_long = tokio::select! {
            Some(made) = making.join_next() => match goes_on(made) {
                true => continue,
                false => return,
            },
            _ = looks.tick(), if making.is_empty() => match engine.awaits_modules() {
                true => true,
                false => continue,
            },
            change = changes.recv(), if files_live => match change {
                // The source has logged what is wrong; only what changed is published.
                Some(change) if change.applied.is_empty() && change.removed.is_empty() => continue,
                Some(_) => true,
                None => {
                    files_live = false;
                    continue;
                }
            },
            changed = workloads.changed() => {
                if changed.is_err() {
                    return;
                }
                // Whoever registered a workload has published it already.
                if !engine.is_behind() {
                    continue;
                }
                tokio::time::sleep_until(not_before).await;
                false
            }
        };
        let needs = match may_take_long {
            true => needs(&engine).await,
            false => Needs::Publication,
        };
        if needs == Needs::Nothing {
            continue;
        }
        if needs == Needs::Modules && making.is_empty() {
            let (engine, gate) = (Arc::clone(&engine), Arc::clone(&gate));
            making.spawn_blocking(move || {
                // Not inside the gate: a hand-over does not wait for modules either.
                let _ahead = engine.prepare_stored();
                let _pass = gate.enter()?;
                let _ = engine.publish();
                Ok::<_, HandedOver>(())
            });
            continue;
        }
        let begun = Instant::now();
        let (engine, gate) = (Arc::clone(&engine), Arc::clone(&gate));
        let published = tokio::task::spawn_blocking(move || {
            let _pass = gate.enter()?;
            // A failure is logged and kept for `weft status`; the next change tries again.
            let _ = engine.publish();
            Ok::<_, HandedOver>(())
        });
        if !goes_on(published.await) {
            return;
        }
        not_before = tokio::time::Instant::now() + (SHARE * begun.elapsed()).clamp(SPACING, MAX_SPACING);
    }
}

/// What is to be done for resources that may have changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// They are in force: the files' first change tells of what the start has published, and one change of what another brought.
    Nothing,
    Publication,
    /// And modules before it.
    Modules,
}

async fn needs(engine: &Arc<Engine>) -> Needs {
    let engine = Arc::clone(engine);
    let looked = tokio::task::spawn_blocking(move || match engine.is_current() {
        true => Needs::Nothing,
        false if engine.lacks_modules() => Needs::Modules,
        false => Needs::Publication,
    });
    looked.await.unwrap_or(Needs::Publication)
}

pub(super) async fn watch_workloads(registry: Arc<Registry>) {
    if let Err(error) = registry.watch().await {
        tracing::error!(%error, "cgroups cannot be watched any more; workloads that end stay listed");
    }
}

/// SIGTERM and SIGINT stop, SIGHUP starts a successor.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

enum Signal {
    Stop,
    Reload,
}

// === impl Signals ===

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: unix::signal(unix::SignalKind::terminate())?,
            interrupt: unix::signal(unix::SignalKind::interrupt())?,
            hang_up: unix::signal(unix::SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Signal::Stop) {}
    }
}

fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
