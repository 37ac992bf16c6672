//! Metrics that modules define.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use super::abi::Status;

/// Metrics of an adapter.
pub const MAX_METRICS: usize = 1024;

/// Longest name of a metric in bytes.
pub const MAX_METRIC_NAME: usize = 256;

/// Upper bounds of a histogram's buckets, inclusive, before the one without a bound: those that Envoy shows, for filters that
/// record milliseconds or bytes.
pub const BOUNDS: [u64; 18] = [
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

/// Of one adapter, by name.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<Box<str>, Arc<Metric>>>);

/// A metric of a filter.
#[derive(Debug)]
pub struct Metric {
    pub kind: MetricKind,
    /// Of a counter or gauge its value; of a histogram the sum.
    value: AtomicI64,
    /// Values recorded in a histogram, by [`BOUNDS`]; the last are beyond them. `None`: it is none.
    buckets: Option<Box<[AtomicU64; BOUNDS.len() + 1]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

// === impl Metrics ===

impl Metrics {
    /// The metric `name`, made if there is none.
    pub(super) fn metric(&self, kind: MetricKind, name: &str) -> Result<Arc<Metric>, Status> {
        let mut metrics = self.lock();
        match metrics.get(name) {
            Some(metric) if metric.kind == kind => Ok(metric.clone()),
            Some(_) => Err(Status::BadArgument),
            None if name.len() > MAX_METRIC_NAME => Err(Status::BadArgument),
            None if metrics.len() >= MAX_METRICS => Err(Status::InternalFailure),
            None => {
                let metric = Arc::new(Metric::new(kind));
                metrics.insert(name.into(), metric.clone());
                Ok(metric)
            }
        }
    }

    /// All that were defined, by name.
    pub fn all(&self) -> Vec<(Box<str>, Arc<Metric>)> {
        let metrics = self.lock();
        let pairs = metrics.iter();
        pairs.map(|(name, metric)| (name.clone(), metric.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Arc<Metric>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Metric ===

impl Metric {
    pub(super) fn new(kind: MetricKind) -> Self {
        Self {
            kind,
            value: AtomicI64::new(0),
            buckets: (kind == MetricKind::Histogram).then(Box::default),
        }
    }

    /// Of a counter or gauge its value, of a histogram the sum of what was recorded.
    pub fn value(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Values of a histogram in each bucket: upper bound (the last has none) and count.
    pub fn buckets(&self) -> Vec<(Option<u64>, u64)> {
        let bounds = BOUNDS.into_iter().map(Some).chain([None]);
        let counts = self.buckets.iter().flat_map(|buckets| buckets.iter());
        bounds.zip(counts.map(|count| count.load(Ordering::Relaxed))).collect()
    }

    /// Adds to a counter or gauge. A counter only grows.
    pub(super) fn increment(&self, delta: i64) -> Result<(), Status> {
        match self.kind {
            MetricKind::Counter if delta < 0 => return Err(Status::BadArgument),
            MetricKind::Histogram => return Err(Status::BadArgument),
            MetricKind::Counter | MetricKind::Gauge => {}
        }
        self.add(delta);
        Ok(())
    }

    /// Sets a gauge, adds to a counter (as in Envoy), or adds a value to a histogram. What is beyond `i64::MAX` counts as that.
    pub(super) fn record(&self, value: u64) {
        let signed = i64::try_from(value).unwrap_or(i64::MAX);
        match &self.buckets {
            Some(buckets) => {
                buckets[BOUNDS.partition_point(|bound| *bound < value)].fetch_add(1, Ordering::Relaxed);
                self.add(signed);
            }
            None if self.kind == MetricKind::Gauge => self.value.store(signed, Ordering::Relaxed),
            None => self.add(signed),
        }
    }

    fn add(&self, delta: i64) {
        let sum = |value: i64| Some(value.saturating_add(delta));
        _ = self.value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_do_what_their_kind_allows() {
        let counter = Metric::new(MetricKind::Counter);
        counter.increment(2).expect("grows");
        assert_eq!(counter.increment(-1), Err(Status::BadArgument));
        // As in Envoy; and SDKs end the module on any error here.
        counter.record(3);
        let gauge = Metric::new(MetricKind::Gauge);
        gauge.record(5);
        gauge.increment(-7).expect("falls");
        assert_eq!((counter.value(), gauge.value()), (5, -2));
        assert!(gauge.buckets().is_empty());
        let histogram = Metric::new(MetricKind::Histogram);
        assert_eq!(histogram.increment(1), Err(Status::BadArgument));
        for value in [0, 1, 2, 3_600_000, 3_600_001] {
            histogram.record(value);
        }
        assert_eq!(histogram.value(), 7_200_004);
        let filled = histogram.buckets().into_iter().filter(|(_, count)| *count > 0);
        assert_eq!(
            filled.collect::<Vec<_>>(),
            [(Some(1), 2), (Some(5), 1), (Some(3_600_000), 1), (None, 1)]
        );
    }

    #[test]
    fn no_value_is_too_large_to_be_recorded() {
        for kind in [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram] {
            let metric = Metric::new(kind);
            metric.record(u64::MAX);
            metric.record(u64::MAX);
            assert_eq!(metric.value(), i64::MAX, "{kind:?}");
        }
    }

    #[test]
    fn metrics_have_one_kind_and_are_bounded() {
        let metrics = Metrics::default();
        let counter = metrics.metric(MetricKind::Counter, "c").expect("a counter");
        assert_eq!(metrics.metric(MetricKind::Gauge, "c").err(), Some(Status::BadArgument));
        let again = metrics.metric(MetricKind::Counter, "c").expect("the same");
        assert!(Arc::ptr_eq(&counter, &again));
        for number in 1..MAX_METRICS {
            metrics
                .metric(MetricKind::Counter, &format!("n{number}"))
                .expect("room");
        }
        let over = metrics.metric(MetricKind::Counter, "over");
        assert_eq!(over.err(), Some(Status::InternalFailure));
    }
}
