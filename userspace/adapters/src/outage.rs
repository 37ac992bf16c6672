//! What a check does when those it asks give no verdict.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tracing::{info, warn};

use crate::pipeline::{CheckResult, Deny};

/// What the parameters say of a request that nobody judged. The object may say that it is open, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailurePolicy {
    /// It is allowed.
    Open,
    /// It is refused.
    #[default]
    Closed,
}

/// The failure policy of one adapter, at work: counts, and tells the log of the first failure and of the end.
#[derive(Debug)]
pub(crate) struct Outage {
    adapter: String,
    /// Who does not answer.
    address: String,
    policy: FailurePolicy,
    /// The client need not know what is behind.
    refusal: Deny,
    pub failures: Counter,
    /// The last request failed: the next that fails is no news.
    failing: AtomicBool,
}

// === impl Outage ===

impl Outage {
    pub fn new(adapter: &str, address: String, policy: FailurePolicy, refusal: Deny, failures: Counter) -> Self {
        Self {
            adapter: adapter.to_owned(),
            address,
            policy,
            refusal,
            failures,
            failing: AtomicBool::new(false),
        }
    }

    /// There is no verdict, because of `why`.
    pub fn failed(&self, why: &str) -> CheckResult {
        self.failures.inc();
        if !self.failing.swap(true, Ordering::Relaxed) {
            let (adapter, address) = (&self.adapter, &self.address);
            warn!(adapter, address, why, "no verdict; the failure policy applies");
        }
        CheckResult::Unjudged(match self.policy {
            FailurePolicy::Open => None,
            FailurePolicy::Closed => Some(Box::new(self.refusal.clone())),
        })
    }

    /// There is one.
    pub fn answered(&self) {
        // Read first: a word that all workers write to would go to and fro between their cores.
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            info!(adapter = self.adapter, address = self.address, "verdicts come again");
        }
    }
}
