//! Report adapter that keeps Istio's standard metrics, and ours, in a registry that the daemon serves.
//!
//! What counts where, so that nothing counts twice: `istio_requests_*` come from request events; `istio_tcp_*` come from
//! the kernel's edges only, opaque connections through the proxy included; `weft_tcp_*` from all edges of TCP, those with
//! requests included; `weft_udp_*` from those of UDP; `weft_flow_denied_total` comes from deny events and refused requests,
//! `weft_flow_audited_total` from open events and requests that were let through though a rule would deny them. Other open
//! and close events count nothing here.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric},
    metrics::{
        TypedMetric,
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};

use crate::{
    error::AdapterError,
    record::{EdgeDelta, Flow, FlowEvent, FlowProtocol, FlowVerdict, L7, Record},
    reporter::Report,
};

mod config;
mod labels;
mod latency;

pub use config::{Config, DEFAULT_TRUST_DOMAIN, MAX_SERIES};
use labels::{DenyLabels, EdgeLabels, RequestLabels};
use latency::Latency;

/// Upper bounds of Istio's (Envoy's) histograms, in milliseconds or bytes, so that existing dashboards and recorded
/// rules fit.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// What was not updated for as long makes room for what is new, where there is none. Shorter: what happens seldom begins
/// anew again and again. Longer: after many services have come and gone new ones are not counted for as long.
pub const IDLE: Duration = Duration::from_secs(3600);

/// How often is looked for what is idle.
const LOOK_EVERY: Duration = Duration::from_secs(60);

type Counters<L> = Family<L, Counter>;
type Histograms = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// The adapter. Registered once; the registry shares its numbers.
#[derive(Debug)]
pub struct Prometheus {
    trust_domain: Arc<str>,
    room: Room,
    requests: Counters<RequestLabels>,
    durations: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    /// Of labels that were counted before: all series, found at once.
    known: HashMap<RequestLabels, Known>,
    /// What was counted last: requests of one edge come in rows.
    last: Option<Last>,
    tcp_sent: Counters<EdgeLabels>,
    tcp_received: Counters<EdgeLabels>,
    tcp_opened: Counters<EdgeLabels>,
    tcp_closed: Counters<EdgeLabels>,
    tcp_refused: Counters<EdgeLabels>,
    tcp_denied: Counters<EdgeLabels>,
    tcp_resets: Counters<EdgeLabels>,
    tcp_retransmits: Counters<EdgeLabels>,
    tcp_segments_sent: Counters<EdgeLabels>,
    tcp_segments_received: Counters<EdgeLabels>,
    tcp_connect: Family<EdgeLabels, Latency>,
    tcp_rtt: Family<EdgeLabels, Latency>,
    udp_sent: Counters<EdgeLabels>,
    udp_received: Counters<EdgeLabels>,
    udp_opened: Counters<EdgeLabels>,
    udp_denied: Counters<EdgeLabels>,
    denied: Counters<DenyLabels>,
    audited: Counters<DenyLabels>,
    /// When those that have series were last updated.
    edges: HashMap<EdgeLabels, Instant>,
    denies: HashMap<DenyLabels, Instant>,
    next_look: Option<Instant>,
}

/// Labels that were counted before.
#[derive(Debug)]
struct Known {
    updated: Instant,
    series: Arc<RequestSeries>,
}

/// The labels that were counted last, in the batch of `updated`.
#[derive(Debug)]
struct Last {
    labels: RequestLabels,
    updated: Instant,
    series: Arc<RequestSeries>,
}

/// The series of one set of labels.
#[derive(Debug)]
struct RequestSeries {
    requests: Counter,
    durations: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

/// How many series there are, and may be.
#[derive(Debug)]
struct Room {
    max: usize,
    used: usize,
    series: Gauge,
    overflow: Counter,
}

// === impl Prometheus ===

impl Prometheus {
    /// Makes the adapter and registers its metrics.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter is out of bounds.
    pub fn new(config: &Config, registry: &mut Registry) -> Result<Self, AdapterError> {
        config.validate()?;
        let adapter = Self {
            trust_domain: config.trust_domain.as_str().into(),
            room: Room {
                max: config.max_series,
                used: 0,
                series: Gauge::default(),
                overflow: Counter::default(),
            },
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            request_bytes: Family::new_with_constructor(histogram),
            response_bytes: Family::new_with_constructor(histogram),
            known: HashMap::new(),
            last: None,
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_refused: Family::default(),
            tcp_denied: Family::default(),
            tcp_resets: Family::default(),
            tcp_retransmits: Family::default(),
            tcp_segments_sent: Family::default(),
            tcp_segments_received: Family::default(),
            tcp_connect: Family::default(),
            tcp_rtt: Family::default(),
            udp_sent: Family::default(),
            udp_received: Family::default(),
            udp_opened: Family::default(),
            udp_denied: Family::default(),
            denied: Family::default(),
            audited: Family::default(),
            edges: HashMap::new(),
            denies: HashMap::new(),
            next_look: None,
        };
        adapter.register(registry);
        Ok(adapter)
    }

    /// Counters get their `_total` from the encoder.
    fn register(&self, registry: &mut Registry) {
        fn add(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
            registry.register(name, help, metric.clone());
        }
        add(registry, "istio_requests", "Requests handled", &self.requests);
        add(
            registry,
            "istio_request_duration_milliseconds",
            "Duration of requests",
            &self.durations,
        );
        add(
            registry,
            "istio_request_bytes",
            "Size of request bodies",
            &self.request_bytes,
        );
        add(
            registry,
            "istio_response_bytes",
            "Size of response bodies",
            &self.response_bytes,
        );
        add(
            registry,
            "istio_tcp_sent_bytes",
            "Bytes sent by the destination",
            &self.tcp_sent,
        );
        add(
            registry,
            "istio_tcp_received_bytes",
            "Bytes received by the destination",
            &self.tcp_received,
        );
        add(
            registry,
            "istio_tcp_connections_opened",
            "Connections opened",
            &self.tcp_opened,
        );
        add(
            registry,
            "istio_tcp_connections_closed",
            "Connections closed",
            &self.tcp_closed,
        );
        add(
            registry,
            "weft_tcp_connections_refused",
            "Connections the destination refused",
            &self.tcp_refused,
        );
        for (name, help, metric) in [
            (
                "weft_tcp_connections_denied",
                "Connections that policy refused",
                &self.tcp_denied,
            ),
            (
                "weft_tcp_resets",
                "Connections that ended by a reset, or by giving up",
                &self.tcp_resets,
            ),
            (
                "weft_tcp_retransmits",
                "Segments that the reporting end sent again",
                &self.tcp_retransmits,
            ),
            (
                "weft_tcp_segments_sent",
                "Segments sent by the destination",
                &self.tcp_segments_sent,
            ),
            (
                "weft_tcp_segments_received",
                "Segments received by the destination",
                &self.tcp_segments_received,
            ),
            (
                "weft_udp_sent_bytes",
                "Bytes of datagrams sent by the destination",
                &self.udp_sent,
            ),
            (
                "weft_udp_received_bytes",
                "Bytes of datagrams received by the destination",
                &self.udp_received,
            ),
            ("weft_udp_flows_opened", "Flows of datagrams begun", &self.udp_opened),
            (
                "weft_udp_flows_denied",
                "Flows of datagrams that policy refused",
                &self.udp_denied,
            ),
        ] {
            add(registry, name, help, metric);
        }
        add(
            registry,
            "weft_tcp_connect_duration_seconds",
            "From the SYN to the established connection",
            &self.tcp_connect,
        );
        add(
            registry,
            "weft_tcp_rtt_seconds",
            "Smoothed round trip time of connections, at most a sample a second each",
            &self.tcp_rtt,
        );
        add(
            registry,
            "weft_flow_denied",
            "Connections and requests refused by policy",
            &self.denied,
        );
        add(
            registry,
            "weft_flow_audited",
            "Connections and requests that a policy under audit would refuse",
            &self.audited,
        );
        add(
            registry,
            "weft_metrics_series",
            "Series of mesh traffic that exist",
            &self.room.series,
        );
        add(
            registry,
            "weft_metrics_overflow",
            "Updates lost because max_series was reached",
            &self.room.overflow,
        );
    }

    fn report_at(&mut self, batch: &[Record], now: Instant) {
        self.make_room(now);
        for record in batch {
            match record {
                Record::Flow(flow) => self.on_flow(flow, now),
                Record::Edge(edge) => self.on_edge(edge, now),
                Record::EdgesRead(_) => {}
            }
        }
    }

    /// Where there is none: what is idle goes, and begins at nought should it come again.
    fn make_room(&mut self, now: Instant) {
        if self.room.used < self.room.max || self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = now.checked_add(LOOK_EVERY);
        let is_idle = |updated: &Instant| now.saturating_duration_since(*updated) >= IDLE;
        let room = &mut self.room;
        let sizes = [&self.durations, &self.request_bytes, &self.response_bytes];
        for (labels, _) in self.known.extract_if(|_, known| is_idle(&known.updated)) {
            room.free(self.requests.remove(&labels));
            for family in sizes {
                room.free(family.remove(&labels));
            }
        }
        let counters = [
            &self.tcp_sent,
            &self.tcp_received,
            &self.tcp_opened,
            &self.tcp_closed,
            &self.tcp_refused,
            &self.tcp_denied,
            &self.tcp_resets,
            &self.tcp_retransmits,
            &self.tcp_segments_sent,
            &self.tcp_segments_received,
            &self.udp_sent,
            &self.udp_received,
            &self.udp_opened,
            &self.udp_denied,
        ];
        for (labels, _) in self.edges.extract_if(|_, updated| is_idle(updated)) {
            for family in counters {
                room.free(family.remove(&labels));
            }
            for family in [&self.tcp_connect, &self.tcp_rtt] {
                room.free(family.remove(&labels));
            }
        }
        for (labels, _) in self.denies.extract_if(|_, updated| is_idle(updated)) {
            for family in [&self.denied, &self.audited] {
                room.free(family.remove(&labels));
            }
        }
    }

    fn on_flow(&mut self, flow: &Flow, now: Instant) {
        if let (FlowEvent::Request, Some(l7)) = (flow.event, &flow.l7) {
            self.on_request(flow, l7, now);
        }
        let count = match (flow.verdict, flow.event) {
            (FlowVerdict::Deny, FlowEvent::Request | FlowEvent::Deny) => &self.denied,
            (FlowVerdict::Audit, FlowEvent::Request | FlowEvent::Open) => &self.audited,
            _ => return,
        };
        let labels = deny_labels(flow);
        if self.room.update(count, &labels, |metric| metric.inc()) {
            self.denies.insert(labels, now);
        }
    }

    fn on_request(&mut self, flow: &Flow, l7: &L7, now: Instant) {
        if let Some(last) = &self.last
            && last.updated == now
            && last.labels.are_surely_of(flow, l7)
        {
            return last.series.count(l7);
        }
        let labels = RequestLabels {
            edge: EdgeLabels {
                reporter: flow.reporter,
                source: flow.source.clone(),
                destination: flow.destination.clone(),
                protocol: flow.protocol,
                trust_domain: self.trust_domain.clone(),
            },
            code: RequestLabels::code(l7.status),
            grpc_status: l7.grpc_status.map(RequestLabels::grpc_status),
            denied: flow.verdict == FlowVerdict::Deny,
        };
        if let Some(known) = self.known.get_mut(&labels) {
            known.updated = now;
            known.series.count(l7);
            self.last = Some(Last {
                labels,
                updated: now,
                series: Arc::clone(&known.series),
            });
            return;
        }
        let (millis, request_bytes, response_bytes) = figures(l7);
        self.room.update(&self.requests, &labels, |metric| metric.inc());
        self.room
            .update(&self.durations, &labels, |metric| metric.observe(millis));
        self.room
            .update(&self.request_bytes, &labels, |metric| metric.observe(request_bytes));
        self.room
            .update(&self.response_bytes, &labels, |metric| metric.observe(response_bytes));
        if let Some(series) = self.series(&labels) {
            let series = Arc::new(series);
            self.known.insert(labels, Known { updated: now, series });
        }
    }

    /// `None`: there was no room for one of them.
    fn series(&self, labels: &RequestLabels) -> Option<RequestSeries> {
        let of = |family: &Histograms| family.get(labels).map(|metric| metric.clone());
        Some(RequestSeries {
            requests: self.requests.get(labels).map(|metric| metric.clone())?,
            durations: of(&self.durations)?,
            request_bytes: of(&self.request_bytes)?,
            response_bytes: of(&self.response_bytes)?,
        })
    }

    /// Istio's `istio_tcp_*` speak of connections whose requests nobody looks at: an edge known as HTTP is counted by
    /// request instead. Datagrams have no name there, so they have ours. Edges that differ by port or verdict alone are one
    /// series, their sum: neither is a label of Istio's.
    fn on_edge(&mut self, edge: &EdgeDelta, now: Instant) {
        let labels = EdgeLabels {
            reporter: edge.reporter,
            source: edge.source.clone(),
            destination: edge.destination.clone(),
            protocol: edge.protocol,
            trust_domain: self.trust_domain.clone(),
        };
        let has_series = match edge.protocol {
            FlowProtocol::Tcp | FlowProtocol::Http | FlowProtocol::Grpc => self.on_connections(edge, &labels),
            FlowProtocol::Udp => self.on_datagrams(edge, &labels),
            // Judged, never carried: `weft_flow_denied_total` has what was refused.
            FlowProtocol::Dccp | FlowProtocol::Sctp => false,
        };
        if has_series {
            self.edges.insert(labels, now);
        }
    }

    /// Whether there was room for one of them.
    fn on_connections(&mut self, edge: &EdgeDelta, labels: &EdgeLabels) -> bool {
        // Istio counts from the server's point of view: "sent" is the response's direction.
        let opaque = [
            (&self.tcp_sent, edge.bytes_received),
            (&self.tcp_received, edge.bytes_sent),
            (&self.tcp_opened, edge.opened),
            (&self.tcp_closed, edge.closed),
        ];
        let opaque = opaque.into_iter().filter(|_| edge.protocol == FlowProtocol::Tcp);
        let all = [
            (&self.tcp_refused, edge.refused),
            (&self.tcp_denied, edge.denied),
            (&self.tcp_resets, edge.reset),
            (&self.tcp_retransmits, edge.retransmits),
            (&self.tcp_segments_sent, edge.segments_received),
            (&self.tcp_segments_received, edge.segments_sent),
        ];
        let mut has_series = self.room.add(labels, opaque.chain(all));
        for (family, grown) in [(&self.tcp_connect, &edge.connect), (&self.tcp_rtt, &edge.rtt)] {
            if grown.count() > 0 {
                has_series |= self.room.update(family, labels, |metric| metric.add(grown));
            }
        }
        has_series
    }

    /// The same, from the same point of view.
    fn on_datagrams(&mut self, edge: &EdgeDelta, labels: &EdgeLabels) -> bool {
        let all = [
            (&self.udp_sent, edge.bytes_received),
            (&self.udp_received, edge.bytes_sent),
            (&self.udp_opened, edge.opened),
            (&self.udp_denied, edge.denied),
        ];
        self.room.add(labels, all.into_iter())
    }
}

impl Report for Prometheus {
    fn name(&self) -> &str {
        "prometheus"
    }

    fn report(&mut self, batch: &[Record]) {
        self.report_at(batch, Instant::now());
    }
}

// === impl RequestSeries ===

impl RequestSeries {
    fn count(&self, l7: &L7) {
        let (millis, request_bytes, response_bytes) = figures(l7);
        self.requests.inc();
        self.durations.observe(millis);
        self.request_bytes.observe(request_bytes);
        self.response_bytes.observe(response_bytes);
    }
}

/// What histograms are told: duration in milliseconds, bytes of the request's body, bytes of the answer's.
fn figures(l7: &L7) -> (f64, f64, f64) {
    let millis = l7.duration.as_secs_f64() * 1000.0;
    (millis, l7.request_bytes as f64, l7.response_bytes as f64)
}

// === impl Room ===

impl Room {
    /// Updates a series; a new one is made only where there is room. Only the adapter makes series, so that the
    /// count needs no lock. `false`: there was none.
    fn update<L, M, C, T>(&mut self, family: &Family<L, M, C>, labels: &L, update: impl FnOnce(&M) -> T) -> bool
    where
        L: Clone + Hash + Eq + EncodeLabelSet,
        M: EncodeMetric + TypedMetric,
        C: MetricConstructor<M>,
    {
        if let Some(metric) = family.get(labels) {
            update(&metric);
            return true;
        }
        if self.used >= self.max {
            self.overflow.inc();
            return false;
        }
        self.used += 1;
        self.series.inc();
        update(&family.get_or_create(labels));
        true
    }

    /// Adds what has grown. `false`: there was room for none of it, or nothing has.
    fn add<'a, L>(&mut self, labels: &L, grown: impl Iterator<Item = (&'a Counters<L>, u64)>) -> bool
    where
        L: Clone + Hash + Eq + EncodeLabelSet + 'a,
    {
        let mut has_series = false;
        for (family, by) in grown.filter(|(_, by)| *by > 0) {
            has_series |= self.update(family, labels, |metric| metric.inc_by(by));
        }
        has_series
    }

    /// A series was `removed`, or was not there.
    fn free(&mut self, removed: bool) {
        if removed {
            self.used -= 1;
            self.series.dec();
        }
    }
}

fn deny_labels(flow: &Flow) -> DenyLabels {
    DenyLabels {
        reporter: flow.reporter,
        source: flow.source.clone(),
        destination: flow.destination.clone(),
        protocol: flow.protocol,
        rule: flow.rule.clone(),
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

#[cfg(test)]
mod tests;
