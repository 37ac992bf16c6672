//! Start and stop, in the order that the module's words give.

use std::{
    collections::BTreeSet,
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
use tokio::{signal::unix, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weft_adapters::{Pipeline, Report, ReportMetrics, Reporter, ReporterThread, builtin};
use weft_control::{AppliedObjects, Change, FilesSource};
use weft_dataplane::{Cgroup, Connections, Dataplane, DataplaneConfig, Events};
use weft_proxy::{NetnsListeners, ProxyConfig, ProxyMetrics, SnapshotPublisher, Workers};

use super::{
    control::DaemonControl, dns, edges, engine::Engine, inbound, kernel, last_good, metrics, origin::KernelOrigin,
};
use crate::{
    admin::Server,
    config::{AccessLog, DaemonConfig},
    error::{Coded, UNSUPPORTED},
    flows::{FlowReport, FlowStore},
    registry::{Registry, own_netns},
    state_dir::StateLock,
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
/// Changes of the resources folder that wait for the engine; one says as much as many.
const CHANGES: usize = 16;

/// From nothing to a stopped daemon.
pub async fn run(config: DaemonConfig) -> anyhow::Result<()> {
    let lock = config.state.lock()?;
    raise_descriptor_limit();
    let cgroup = Cgroup::open(config.cgroup.as_deref()).map_err(environment)?;
    let daemon_cgroup = cgroup.enter_daemon().map_err(environment)?;
    let dataplane = Dataplane::start(&DataplaneConfig {
        bpffs: config.bpffs.clone(),
        cgroup: cgroup.clone(),
        daemon_cgroup,
        proxy_port: PROXY_PORT,
        inbound_port: INBOUND_PORT,
        dns_port: DNS_PORT,
        short_circuit: config.short_circuit,
    })
    .map_err(environment)?;
    let adopted = dataplane.adopted();
    let result = mesh(&config, &lock, cgroup, Arc::new(dataplane)).await;
    if result.is_err() && !adopted {
        // It never ran: what it put into the kernel would only be in the way.
        if let Err(error) = weft_dataplane::uninstall(&config.bpffs) {
            tracing::error!(%error, "kernel programs stay behind; `weft uninstall` removes them");
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
    lock: &StateLock,
    cgroup: Cgroup,
    dataplane: Arc<Dataplane>,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let registry = Arc::new(Registry::open(&config.state.workloads(), cgroup.path())?);
    let current = Arc::new(ArcSwap::default());
    let snapshots = SnapshotPublisher::new(Arc::clone(&current));
    let watch = snapshots.watch();
    let engine = Arc::new(Engine::new(
        config,
        Arc::clone(&registry),
        Arc::clone(&dataplane),
        snapshots,
    )?);
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
    publish(&engine).await?;

    let mut metrics_registry = MetricsRegistry::default();
    let flows = Arc::new(FlowStore::new());
    let proxy_metrics = Arc::new(ProxyMetrics::default());
    proxy_metrics.register(&mut metrics_registry);
    let report_metrics = ReportMetrics::default();
    report_metrics.register(&mut metrics_registry);
    let kernel_metrics = edges::KernelMetrics::default();
    kernel_metrics.register(&mut metrics_registry);
    let adapters = adapters(config.access_log, &flows, &mut metrics_registry)?;
    let proxy = ProxyConfig {
        virtual_ranges: config
            .vip4
            .iter()
            .map(|net| (*net).into())
            .chain(config.vip6.iter().map(|net| (*net).into()))
            .collect(),
        ..ProxyConfig::default()
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // One ring a worker, one for kernel events, one for kernel edges.
    let (reporter_thread, mut reporters) = ReporterThread::start(adapters, workers + 2, report_metrics)?;
    let mut reporter = || reporters.pop().context("a reporter ring for everybody");
    let (event_reporter, edge_reporter) = (reporter()?, reporter()?);
    let mut worker_reporters: Vec<Reporter> = reporters;

    let events = Events::open(&dataplane)?;
    let origin = Arc::new(KernelOrigin(Connections::open(&dataplane)?));
    let endpoint = metrics::Endpoint {
        registry: Arc::new(Mutex::new(metrics_registry)),
        ready: Arc::new(AtomicBool::new(false)),
    };
    let mut tasks = JoinSet::new();
    for listener in metrics::bind().await? {
        tasks.spawn(metrics::serve(listener, endpoint.clone()));
    }
    let dns = Arc::new(dns::start(current, &dataplane, &endpoint.registry)?);
    tasks.spawn(dns::follow(Arc::clone(&dns)));
    let server = Server::bind(&config.state, lock)?;
    let fallback = event_reporter.clone();
    let proxy = ProxyConfig {
        workers: Some(workers),
        ..proxy
    };
    let mut listeners = vec![NetnsListeners::open(&proxy.addresses, workers)?];
    if config.inbound {
        listeners.push(inbound::listen(workers)?);
    }
    let inbound_listeners = listeners.get(1);
    inbound::capture(config, &dataplane, inbound_listeners).map_err(environment)?;
    let workers = Workers::start_on(
        listeners,
        proxy,
        watch,
        origin,
        |_| worker_reporters.pop().unwrap_or_else(|| fallback.clone()),
        Arc::new(Pipeline::new(Vec::new())),
        proxy_metrics,
    )?;
    tasks.spawn(kernel::read(Arc::clone(&engine), events, event_reporter));
    tasks.spawn(edges::read(
        Arc::clone(&engine),
        edge_reporter,
        Arc::clone(&flows),
        kernel_metrics,
    ));
    tasks.spawn(republish(Arc::clone(&engine), changes));
    tasks.spawn(watch_workloads(registry));

    let control = DaemonControl {
        short_circuit: config.short_circuit,
        engine,
        applied: Mutex::new(applied),
        files,
        flows,
        cgroup,
        bpffs: config.bpffs.clone(),
        state_dir: config.state.dirs()[0].to_path_buf(),
        netns: own_netns()?,
        started: Instant::now(),
        started_text: rfc3339(SystemTime::now()),
        stop: stop.clone(),
    };
    endpoint.ready.store(true, Ordering::Release);
    tracing::info!(state_dir = %config.state.dirs()[0].display(), cgroup = %control.cgroup.path().display(), "ready");
    let served = tokio::spawn(server.serve(Arc::new(control), stop.clone()));
    signalled(&stop).await?;

    tracing::info!("stopping; kernel policy stays in force (`weft uninstall` removes it)");
    endpoint.ready.store(false, Ordering::Release);
    stop.cancel();
    let drained = workers.drain(DRAIN).await;
    if drained.cut > 0 {
        tracing::warn!(
            cut = drained.cut,
            finished = drained.finished,
            "connections cut at the drain deadline"
        );
    }
    served.await.context("admin server")?;
    drop(dns);
    tasks.shutdown().await;
    tokio::task::spawn_blocking(move || reporter_thread.shutdown(FLUSH))
        .await
        .context("reporter")??;
    Ok(())
}

/// Everything that is told what happened.
fn adapters(
    access_log: AccessLog,
    flows: &Arc<FlowStore>,
    registry: &mut MetricsRegistry,
) -> anyhow::Result<Vec<Box<dyn Report>>> {
    let mut adapters: Vec<Box<dyn Report>> = vec![
        Box::new(builtin::prometheus::Prometheus::new(
            &builtin::prometheus::Config::default(),
            registry,
        )?),
        Box::new(FlowReport::new(Arc::clone(flows))),
    ];
    let format = match access_log {
        AccessLog::Text => builtin::stdio::Format::Text,
        AccessLog::Json => builtin::stdio::Format::Json,
        AccessLog::Off => return Ok(adapters),
    };
    let config = builtin::stdio::Config {
        format,
        ..builtin::stdio::Config::default()
    };
    adapters.push(Box::new(builtin::stdio::Stdio::new(config, registry)?));
    Ok(adapters)
}

/// Publishes on a thread that may block.
async fn publish(engine: &Arc<Engine>) -> anyhow::Result<u64> {
    let engine = Arc::clone(engine);
    tokio::task::spawn_blocking(move || engine.publish())
        .await
        .context("publish")?
}

/// Publishes whenever resources or workloads changed.
async fn republish(engine: Arc<Engine>, mut changes: mpsc::Receiver<Change>) {
    let mut workloads = engine.registry.changes();
    let mut files_live = true;
    loop {
        tokio::select! {
            change = changes.recv(), if files_live => match change {
                // The source has logged what is wrong; only what changed is published.
                Some(change) if change.applied.is_empty() && change.removed.is_empty() => continue,
                Some(_) => {}
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
            }
        }
        // A failure is logged and kept for `weft status`; the next change tries again.
        let _ = publish(&engine).await;
    }
}

async fn watch_workloads(registry: Arc<Registry>) {
    if let Err(error) = registry.watch().await {
        tracing::error!(%error, "cgroups cannot be watched any more; workloads that end stay listed");
    }
}

async fn signalled(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut term = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
