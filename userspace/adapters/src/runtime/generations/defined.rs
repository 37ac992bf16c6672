//! Metrics that modules define, for `/metrics`.
//!
//! Their names are a label and not the series' own: two modules may give one name to different things.

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::wasm::{Metric, MetricKind, Metrics};

const FAMILIES: [(MetricKind, MetricType, &str, &str); 3] = [
    (
        MetricKind::Counter,
        MetricType::Counter,
        "weft_adapter_counter",
        "Counters that an adapter's module defined",
    ),
    (
        MetricKind::Gauge,
        MetricType::Gauge,
        "weft_adapter_gauge",
        "Gauges that an adapter's module defined",
    ),
    (
        MetricKind::Histogram,
        MetricType::Histogram,
        "weft_adapter_histogram",
        "Histograms that an adapter's module defined",
    ),
];

/// `weft_adapter_{counter,gauge,histogram}` of the adapters that are named so.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    adapters: impl Iterator<Item = (Arc<str>, Arc<Metrics>)>,
) -> Result<(), fmt::Error> {
    let of = |(adapter, metrics): (Arc<str>, Arc<Metrics>)| {
        let metrics = metrics.all().into_iter();
        metrics.map(move |(name, metric)| (Arc::clone(&adapter), name, metric))
    };
    let metrics: Vec<(Arc<str>, Box<str>, Arc<Metric>)> = adapters.flat_map(of).collect();
    for (kind, shown, family, help) in FAMILIES {
        let mut of_kind = metrics.iter().filter(|(_, _, metric)| metric.kind == kind).peekable();
        if of_kind.peek().is_none() {
            continue;
        }
        let mut family = encoder.encode_descriptor(family, help, None, shown)?;
        for (adapter, name, metric) in of_kind {
            let labels = [("adapter", &**adapter), ("metric", &**name)];
            let mut series = family.encode_family(&labels)?;
            match kind {
                // It only grows.
                MetricKind::Counter => ConstCounter::new(metric.value().unsigned_abs()).encode(series)?,
                MetricKind::Gauge => ConstGauge::new(metric.value()).encode(series)?,
                MetricKind::Histogram => {
                    let buckets = metric.buckets();
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    let bounds = buckets.iter().map(|(bound, count)| {
                        let bound = bound.map_or(f64::INFINITY, |bound| bound as f64);
                        (bound, *count)
                    });
                    let bounds: Vec<(f64, u64)> = bounds.collect();
                    series.encode_histogram::<NoLabelSet>(metric.value() as f64, count, &bounds, None)?;
                }
            }
        }
    }
    Ok(())
}
