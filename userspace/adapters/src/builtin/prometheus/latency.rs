//! A histogram that is filled by the bucket: the kernel has sorted the samples already.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};
use weft_abi::{LATENCY_BUCKETS, LatencyHistogram, latency_bound_us};

/// Times with the kernel's own bounds, 2^n µs, told in seconds. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Latency(Arc<Mutex<Totals>>);

#[derive(Debug, Default)]
struct Totals {
    sum_us: u64,
    buckets: [u64; LATENCY_BUCKETS],
}

const MICROS: f64 = 1e6;

// === impl Latency ===

impl Latency {
    /// Adds what came since the last time.
    pub fn add(&self, grown: &LatencyHistogram) {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        totals.sum_us += grown.sum_us;
        for (bucket, more) in totals.buckets.iter_mut().zip(grown.buckets) {
            *bucket += u64::from(more);
        }
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buckets = [(0.0, 0); LATENCY_BUCKETS];
        for (number, (bucket, count)) in buckets.iter_mut().zip(totals.buckets).enumerate() {
            let bound = latency_bound_us(number).map_or(f64::INFINITY, |us| f64::from(us) / MICROS);
            *bucket = (bound, count);
        }
        let count = totals.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(totals.sum_us as f64 / MICROS, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}
