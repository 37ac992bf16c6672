//! What came of requests: counted, and their latencies.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is told apart, in nanoseconds (a minute).
const LONGEST: u64 = 60_000_000_000;

/// What came of the requests that were due after the warm-up.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Answered as they must be.
    pub right: u64,
    /// Answered otherwise.
    pub wrong: u64,
    /// Not answered.
    pub failed: u64,
    /// Right answers, those that were due during the warm-up too: what the CPU time of a whole run is divided by.
    pub all: u64,
    /// Right answers a second.
    pub rate: f64,
    /// The first thing that was wrong or failed.
    pub first_fault: Option<String>,
    /// From when a request was due to its answer's last byte, in nanoseconds, of the right ones.
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

pub struct Tally {
    /// Requests that were due before do not count.
    counts_from: Instant,
    status: u16,
    /// `None`: whatever the first answer has.
    body: Option<Vec<u8>>,
    latencies: Histogram<u64>,
    outcome: Outcome,
}

// === impl Tally ===

impl Tally {
    /// `status` and `body` are what every answer must have.
    ///
    /// # Errors
    /// Never: the bounds of the latencies are good ones.
    pub fn new(counts_from: Instant, status: u16, body: Option<Vec<u8>>) -> Result<Self> {
        Ok(Self {
            counts_from,
            status,
            body,
            latencies: Histogram::new_with_max(LONGEST, 3)?,
            outcome: Outcome::default(),
        })
    }

    /// An answer came to a request that was due then.
    pub fn answered(&mut self, due: Instant, status: u16, body: &[u8]) {
        let latency = due.elapsed();
        let expected = self.body.get_or_insert_with(|| body.to_vec());
        if status != self.status || *expected != body {
            self.wrong(due, || format!("status {status}, a body of {} bytes", body.len()));
            return;
        }
        self.outcome.all += 1;
        if self.counts(due) {
            self.outcome.right += 1;
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
            self.latencies.saturating_record(nanos);
        }
    }

    /// An answer came that was not right.
    pub fn wrong(&mut self, due: Instant, fault: impl FnOnce() -> String) {
        if self.counts(due) {
            self.outcome.wrong += 1;
        }
        self.outcome.first_fault.get_or_insert_with(fault);
    }

    /// No answer came. A fault counts also during the warm-up: it must not be there at all.
    pub fn failed(&mut self, requests: u64, fault: impl FnOnce() -> String) {
        self.outcome.failed += requests;
        self.outcome.first_fault.get_or_insert_with(fault);
    }

    /// `counted`: how long requests counted.
    pub fn finish(self, counted: Duration) -> Outcome {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        let (p50, p90, p99, p999) = (at(0.5), at(0.9), at(0.99), at(0.999));
        Outcome {
            rate: self.outcome.right as f64 / counted.as_secs_f64(),
            p50,
            p90,
            p99,
            p999,
            max: self.latencies.max(),
            ..self.outcome
        }
    }

    fn counts(&self, due: Instant) -> bool {
        due >= self.counts_from
    }
}
