//! What the report path and the checks tell about themselves.

use std::{sync::atomic::AtomicU64, time::Instant};

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::verdicts::CacheMetrics;

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

/// Counters of checks that ask somebody else; clones share them.
#[derive(Debug, Clone, Default)]
pub struct CheckMetrics {
    /// Requests to which the failure policy was applied.
    pub failures: PerAdapter,
    /// Requests that a kept verdict answered.
    pub cache_hits: PerAdapter,
    /// Requests that found none.
    pub cache_misses: PerAdapter,
}

/// Those of one adapter.
#[derive(Debug, Clone)]
pub struct OneCheck {
    pub failures: Counter,
    pub cache: CacheMetrics,
}

/// Counters of all checks of kind `Adapter`; clones share them.
#[derive(Debug, Clone, Default)]
pub struct AdapterMetrics {
    checks: Family<[(&'static str, String); 2], Counter>,
    seconds: Family<[(&'static str, String); 1], Seconds>,
}

/// Time that adds up.
type Seconds = Counter<f64, AtomicU64>;

/// Those of one adapter.
#[derive(Debug, Clone, Default)]
pub struct CheckCounters {
    pub allowed: Counter,
    pub denied: Counter,
    /// It gave no verdict: the failure policy decided.
    pub failed: Counter,
    /// All it took, waiting included.
    pub seconds: Seconds,
}

/// Values of the label `result`.
const RESULTS: [&str; 3] = ["allow", "deny", "failed"];

// === impl AdapterMetrics ===

impl AdapterMetrics {
    /// Those of the adapter `name`.
    pub fn of(&self, name: &str) -> CheckCounters {
        let [allowed, denied, failed] = RESULTS.map(|result| self.checks.get_or_create(&labels(name, result)).clone());
        let seconds = self.seconds.get_or_create(&[("adapter", name.to_owned())]).clone();
        CheckCounters {
            allowed,
            denied,
            failed,
            seconds,
        }
    }

    /// The adapter `name` is gone.
    pub fn forget(&self, name: &str) {
        for result in RESULTS {
            self.checks.remove(&labels(name, result));
        }
        self.seconds.remove(&[("adapter", name.to_owned())]);
    }

    /// Registers `weft_adapter_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_adapter_checks",
            "Requests that an adapter judged; failed: it could not, and its failure policy decided",
            self.checks.clone(),
        );
        registry.register(
            "weft_adapter_check_seconds",
            "Time that an adapter took to judge, waiting for others included",
            self.seconds.clone(),
        );
    }
}

fn labels(name: &str, result: &str) -> [(&'static str, String); 2] {
    [("adapter", name.to_owned()), ("result", result.to_owned())]
}

// === impl CheckCounters ===

impl CheckCounters {
    /// A check that `began` then is over.
    pub(crate) fn took(&self, began: Instant) {
        self.seconds.inc_by(began.elapsed().as_secs_f64());
    }
}

// === impl ReportMetrics ===

impl ReportMetrics {
    /// What was lost before it could be told to any adapter.
    pub(crate) fn dropped_for_all(&self) -> Counter {
        self.dropped
            .get_or_create(&[("adapter", ALL_ADAPTERS.to_owned())])
            .clone()
    }

    /// The adapter `name` is gone.
    pub fn forget(&self, name: &str) {
        for family in [&self.dropped, &self.sent, &self.send_failures, &self.failed] {
            family.remove(&[("adapter", name.to_owned())]);
        }
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

// === impl CheckMetrics ===

impl CheckMetrics {
    /// Those of the adapter `name`.
    pub fn of(&self, name: &str) -> OneCheck {
        let of = |family: &PerAdapter| family.get_or_create(&[("adapter", name.to_owned())]).clone();
        OneCheck {
            failures: of(&self.failures),
            cache: CacheMetrics {
                hits: of(&self.cache_hits),
                misses: of(&self.cache_misses),
            },
        }
    }

    /// The adapter `name` is gone.
    pub fn forget(&self, name: &str) {
        for family in [&self.failures, &self.cache_hits, &self.cache_misses] {
            family.remove(&[("adapter", name.to_owned())]);
        }
    }

    /// Registers `weft_check_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_check_failures",
            "Requests that an adapter could not judge, so that its failure policy applied",
            self.failures.clone(),
        );
        registry.register(
            "weft_check_cache_hits",
            "Requests that a kept verdict of a remote adapter answered",
            self.cache_hits.clone(),
        );
        registry.register(
            "weft_check_cache_misses",
            "Requests for which an adapter that keeps verdicts had none",
            self.cache_misses.clone(),
        );
    }
}
