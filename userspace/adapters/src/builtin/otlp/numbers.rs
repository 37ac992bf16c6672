//! Requests and connections as metrics: sums and histograms of what happened since the last ones were sent.

use std::collections::HashMap;

use super::{
    proto::{DELTA, Data, Histogram, HistogramPoint, KeyValue, Metric, NumberPoint, Sum},
    spans::method,
};
use crate::record::{Destination, EdgeDelta, Flow, L7, Peer};

/// Bounds of the request duration, in seconds, as the semantic conventions advise.
pub(super) const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Series that are kept between two sends at most: servers can make up statuses. Requests of further ones are not
/// counted.
pub(super) const MAX_SERIES: usize = 10_000;

/// What is counted apart.
type Labels = Vec<(&'static str, Label)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Label {
    Text(String),
    Number(u16),
}

/// Grown since the last send.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    durations: HashMap<Labels, Durations>,
    sums: HashMap<(Counted, Labels), u64>,
}

#[derive(Debug, Default)]
struct Durations {
    seconds: f64,
    buckets: [u64; BOUNDS.len() + 1],
}

/// What there are sums of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Counted {
    Opened,
    Closed,
    Refused,
    Denied,
    Reset,
    Sent,
    Received,
    Retransmits,
}

// === impl Numbers ===

impl Numbers {
    /// `false`: there is no room for a further series.
    #[must_use]
    pub fn on_request(&mut self, flow: &Flow, l7: &L7) -> bool {
        let mut labels = ends(&flow.source, &flow.destination);
        labels.push(("http.request.method", Label::Text(method(l7).to_owned())));
        labels.push(("http.response.status_code", Label::Number(l7.status)));
        labels.push(("weft.protocol", Label::Text(flow.protocol.as_str().to_owned())));
        labels.push(("weft.verdict", Label::Text(flow.verdict.as_str().to_owned())));
        if let Some(status) = l7.grpc_status {
            labels.push(("rpc.grpc.status_code", Label::Number(status)));
        }
        if self.durations.len() >= MAX_SERIES && !self.durations.contains_key(&labels) {
            return false;
        }
        let durations = self.durations.entry(labels).or_default();
        let seconds = l7.duration.as_secs_f64();
        durations.seconds += seconds;
        durations.buckets[BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        true
    }

    /// `false`: there is no room for a further series.
    #[must_use]
    pub fn on_edge(&mut self, edge: &EdgeDelta) -> bool {
        if edge.history {
            return true;
        }
        let mut labels = ends(&edge.source, &edge.destination);
        labels.push(("weft.reporter", Label::Text(edge.reporter.as_str().to_owned())));
        labels.push(("weft.protocol", Label::Text(edge.protocol.as_str().to_owned())));
        let mut all = true;
        for (counted, grown) in [
            (Counted::Opened, edge.opened),
            (Counted::Closed, edge.closed),
            (Counted::Refused, edge.refused),
            (Counted::Denied, edge.denied),
            (Counted::Reset, edge.reset),
            (Counted::Sent, edge.bytes_sent),
            (Counted::Received, edge.bytes_received),
            (Counted::Retransmits, edge.retransmits),
        ] {
            let key = (counted, labels.clone());
            if grown == 0 {
            } else if let Some(sum) = self.sums.get_mut(&key) {
                *sum += grown;
            } else if self.sums.len() < MAX_SERIES {
                self.sums.insert(key, grown);
            } else {
                all = false;
            }
        }
        all
    }

    /// What has grown from `start` to `now`, both in nanoseconds since 1970; begins anew.
    pub fn take(&mut self, start: u64, now: u64) -> Vec<Metric> {
        let mut metrics = Vec::new();
        let durations: Vec<HistogramPoint> = std::mem::take(&mut self.durations)
            .into_iter()
            .map(|(labels, durations)| HistogramPoint {
                start_time_unix_nano: start,
                time_unix_nano: now,
                count: durations.buckets.iter().sum(),
                sum: Some(durations.seconds),
                bucket_counts: durations.buckets.to_vec(),
                explicit_bounds: BOUNDS.to_vec(),
                attributes: attributes(labels),
            })
            .collect();
        if !durations.is_empty() {
            metrics.push(Metric {
                name: "http.client.request.duration".to_owned(),
                description: "Duration of requests, as the proxy between client and server sees it".to_owned(),
                unit: "s".to_owned(),
                data: Some(Data::Histogram(Histogram {
                    data_points: durations,
                    aggregation_temporality: DELTA,
                })),
            });
        }
        let mut sums: Vec<_> = std::mem::take(&mut self.sums).into_iter().collect();
        sums.sort_by_key(|((counted, _), _)| *counted);
        for same in sums.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
            let counted = same[0].0.0;
            let points = same.iter().map(|((_, labels), sum)| NumberPoint {
                start_time_unix_nano: start,
                time_unix_nano: now,
                as_int: Some(i64::try_from(*sum).unwrap_or(i64::MAX)),
                attributes: attributes(labels.clone()),
            });
            metrics.push(Metric {
                name: counted.name().to_owned(),
                description: counted.description().to_owned(),
                unit: counted.unit().to_owned(),
                data: Some(Data::Sum(Sum {
                    data_points: points.collect(),
                    aggregation_temporality: DELTA,
                    is_monotonic: true,
                })),
            });
        }
        metrics
    }
}

/// Clients' own words (paths, agents) are none of them.
fn ends(source: &Peer, destination: &Destination) -> Labels {
    let mut labels = vec![
        ("weft.source.namespace", Label::Text(source.namespace.clone())),
        ("weft.source.account", Label::Text(source.account.clone())),
        ("weft.destination.namespace", Label::Text(destination.namespace.clone())),
    ];
    if let Some(service) = &destination.service {
        labels.push(("server.address", Label::Text(service.clone())));
    }
    labels
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    labels
        .into_iter()
        .map(|(name, label)| match label {
            Label::Text(text) => KeyValue::text(name, text),
            Label::Number(number) => KeyValue::int(name, number),
        })
        .collect()
}

// === impl Counted ===

impl Counted {
    fn name(self) -> &'static str {
        match self {
            Self::Opened => "weft.connections.opened",
            Self::Closed => "weft.connections.closed",
            Self::Refused => "weft.connections.refused",
            Self::Denied => "weft.connections.denied",
            Self::Reset => "weft.connections.reset",
            Self::Sent => "weft.connections.sent",
            Self::Received => "weft.connections.received",
            Self::Retransmits => "weft.connections.retransmits",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Opened => "Connections established, and flows of datagrams begun",
            Self::Closed => "Connections ended",
            Self::Refused => "Connections that the destination did not accept",
            Self::Denied => "Connections and flows of datagrams that policy refused",
            Self::Reset => "Connections ended by a reset, or by giving up",
            Self::Sent => "Payload from source to destination; by a device, whole frames",
            Self::Received => "Payload from destination to source; by a device, whole frames",
            Self::Retransmits => "Segments that the reporting end sent again",
        }
    }

    /// In UCUM.
    fn unit(self) -> &'static str {
        match self {
            Self::Sent | Self::Received => "By",
            Self::Retransmits => "{segment}",
            _ => "{connection}",
        }
    }
}
