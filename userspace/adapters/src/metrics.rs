//! What the report path tells about itself.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counters of the report path; clones share them.
#[derive(Debug, Clone, Default)]
pub struct ReportMetrics {
    /// Records that found their ring full, or the reporter gone.
    pub dropped: Counter,
    /// Records that were handed to the adapters.
    pub delivered: Counter,
    /// Adapters that were taken out because they panicked, by name.
    pub failed: Family<[(&'static str, String); 1], Counter>,
}

impl ReportMetrics {
    /// Registers `weft_report_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_report_dropped",
            "Records lost because a worker's ring was full or the reporter had ended",
            self.dropped.clone(),
        );
        registry.register(
            "weft_report_delivered",
            "Records handed to the report adapters",
            self.delivered.clone(),
        );
        registry.register(
            "weft_report_adapter_failed",
            "Report adapters taken out of service because they panicked",
            self.failed.clone(),
        );
    }
}
