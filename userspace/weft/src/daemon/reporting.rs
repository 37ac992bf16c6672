//! Who is told what happened, and the adapters that may join them.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use weft_adapters::{AdapterRuntime, Report, Reporter, ReporterThread, RuntimeMetrics, WasmHost, builtin};

use crate::{
    config::{AccessLog, DaemonConfig},
    edges::{EdgeReport, EdgeStore},
    flows::{FlowReport, FlowStore},
};

/// The report path, running.
pub struct Reporting {
    pub thread: ReporterThread,
    /// One ring each.
    pub reporters: Vec<Reporter>,
    /// Those of kind `Adapter`: none yet.
    pub adapters: AdapterRuntime,
    pub flows: Arc<FlowStore>,
    pub edges: Arc<EdgeStore>,
}

// === impl Reporting ===

impl Reporting {
    /// Starts the thread with this many rings. Adapters as WebAssembly run in `wasm`.
    pub fn start(config: &DaemonConfig, rings: usize, wasm: WasmHost, registry: &mut Registry) -> anyhow::Result<Self> {
        let flows = Arc::new(FlowStore::new(config.flow_sample));
        let edges = Arc::new(EdgeStore::default());
        let metrics = RuntimeMetrics::default();
        metrics.reports.register(registry);
        metrics.checks.register(registry);
        metrics.adapters.register(registry);
        registry.register_collector(Box::new(wasm.metrics()));
        let own = own(config.access_log, &flows, &edges, registry)?;
        let (thread, reporters) = ReporterThread::start(own, rings, metrics.reports.clone())?;
        Ok(Self {
            adapters: AdapterRuntime::new(thread.control(), metrics, wasm),
            thread,
            reporters,
            flows,
            edges,
        })
    }
}

/// The daemon's own: metrics, `weft flows`, `weft top`, access log.
fn own(
    access_log: AccessLog,
    flows: &Arc<FlowStore>,
    edges: &Arc<EdgeStore>,
    registry: &mut Registry,
) -> anyhow::Result<Vec<Box<dyn Report>>> {
    let mut adapters: Vec<Box<dyn Report>> = vec![
        Box::new(builtin::prometheus::Prometheus::new(
            &builtin::prometheus::Config::default(),
            registry,
        )?),
        Box::new(FlowReport::new(Arc::clone(flows))),
        Box::new(EdgeReport::new(Arc::clone(edges))),
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
