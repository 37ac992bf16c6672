//! What a check does when those it asks give no verdict.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tracing::{info, warn};
use weft_policy::ObjectRef;

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
    pub adapter: String,
    /// Who does not answer.
    pub address: String,
    pub policy: FailurePolicy,
    /// The refusal: HTTP status, and what the client is told, who need not know what is behind.
    pub status: u16,
    pub message: &'static str,
    pub rule: Option<ObjectRef>,
    pub failures: Counter,
    /// The last request failed: the next that fails is no news.
    pub failing: AtomicBool,
}

// === impl Outage ===

impl Outage {
    /// There is no verdict, because of `why`.
    pub fn failed(&self, why: &str) -> CheckResult {
        self.failures.inc();
        if !self.failing.swap(true, Ordering::Relaxed) {
            let (adapter, address) = (&self.adapter, &self.address);
            warn!(adapter, address, why, "no verdict; the failure policy applies");
        }
        CheckResult::Unjudged(match self.policy {
            FailurePolicy::Open => None,
            FailurePolicy::Closed => Some(Box::new(
                Deny::new(self.status, self.message).by(self.rule.clone()),
            )),
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
