//! What the report path tells about itself.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// A counter for each adapter, by name.
pub type PerAdapter = Family<[(&'static str, String); 1], Counter>;

/// Adapter label of what was lost before it could be told to any.
pub const ALL_ADAPTERS: &str = "all";

/// Counters of the report path; clones share them.
#[derive(Debug, Clone, Default)]
pub struct ReportMetrics {
    /// Records lost: for [`ALL_ADAPTERS`] because a ring was full or the reporter gone, for one because it could not send
    /// them.
    pub dropped: PerAdapter,
    /// Records that were handed to the adapters.
    pub delivered: Counter,
    /// Records that an adapter sent to its receiver.
    pub sent: PerAdapter,
    /// Attempts of an adapter to send that failed.
    pub send_failures: PerAdapter,
    /// Adapters that were taken out because they panicked.
    pub failed: PerAdapter,
}

impl ReportMetrics {
    /// What was lost before it could be told to any adapter.
    pub(crate) fn dropped_for_all(&self) -> Counter {
        self.dropped
            .get_or_create(&[("adapter", ALL_ADAPTERS.to_owned())])
            .clone()
    }

    /// Registers `weft_report_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_report_dropped",
            "Records lost: to all adapters (a worker's ring was full, the reporter had ended), or to one (its receiver is slow or gone)",
            self.dropped.clone(),
        );
        registry.register(
            "weft_report_sent",
            "Records that an adapter sent to its receiver",
            self.sent.clone(),
        );
        registry.register(
            "weft_report_send_failures",
            "Attempts of an adapter to send that failed",
            self.send_failures.clone(),
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
