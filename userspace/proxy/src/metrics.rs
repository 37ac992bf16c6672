//! What the proxy counts about itself. Traffic of the mesh is told through the report path, not here.

mod spread;

use std::cell::OnceCell;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub use self::spread::Spread;

/// Counters of all workers, shared. What changes with each request is a [`Spread`].
#[derive(Debug, Default)]
pub struct ProxyMetrics {
    /// Connections that arrived without having been captured.
    pub capture_missing: Counter,
    /// Client connections open now.
    pub connections_active: Gauge<i64, Spread>,
    /// Of those, how many rest: HTTP/1, between two requests, with nothing kept but the socket.
    pub connections_resting: Gauge<i64, Spread>,
    /// Client connections by what they turned out to speak.
    pub connections: Family<ConnectionLabels, Counter<u64, Spread>>,
    /// Requests by how they ended.
    pub requests: Family<RequestLabels, Counter<u64, Spread>>,
    /// Upstream connections opened.
    pub upstream_opened: Counter,
    /// Requests sent on a connection that had been used before.
    pub upstream_reused: Counter<u64, Spread>,
    /// Upstream connects that failed.
    pub upstream_connect_failed: Counter,
    /// Requests sent again because a reused connection had gone.
    pub upstream_retried: Counter,
    /// Client connections cut at the end of a drain.
    pub drain_cut: Counter,
    /// `accept` failed (descriptors, memory).
    pub accept_failed: Counter,
}

/// Labels of `weft_proxy_connections_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    pub protocol: ConnectionProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ConnectionProtocol {
    Http1,
    Http2,
    Tls,
    Opaque,
}

/// Labels of `weft_proxy_requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub outcome: RequestOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum RequestOutcome {
    /// The endpoint answered.
    Forwarded,
    /// An access rule or an adapter refused it.
    Denied,
    /// The client's fault.
    Downstream,
    /// The endpoint's fault, or there was none.
    Upstream,
    /// Configuration cannot be carried out.
    Ours,
}

/// As many as there are protocols.
const PROTOCOLS: usize = ConnectionProtocol::Opaque as usize + 1;

/// As many as there are outcomes.
const OUTCOMES: usize = RequestOutcome::Ours as usize + 1;

/// One worker's way to [`ProxyMetrics::requests`]: it looks each counter up once, for that takes a lock that all workers share.
#[derive(Debug, Default)]
pub(crate) struct RequestCounters([OnceCell<Counter<u64, Spread>>; OUTCOMES]);

/// The same to [`ProxyMetrics::connections`].
#[derive(Debug, Default)]
pub(crate) struct ConnectionCounters([OnceCell<Counter<u64, Spread>>; PROTOCOLS]);

// === impl ProxyMetrics ===

impl ProxyMetrics {
    /// Adds all of it to `registry`, under the names of the reference page (`weft_...`).
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_capture_missing_orig_dst",
            "Connections closed because nothing captured them",
            self.capture_missing.clone(),
        );
        let registry = registry.sub_registry_with_prefix("weft_proxy");
        registry.register(
            "connections_active",
            "Client connections open",
            self.connections_active.clone(),
        );
        registry.register(
            "connections_resting",
            "Open client connections that keep nothing but their socket between two requests",
            self.connections_resting.clone(),
        );
        registry.register(
            "connections",
            "Client connections by protocol spoken",
            self.connections.clone(),
        );
        registry.register("requests", "Requests by outcome", self.requests.clone());
        registry.register(
            "upstream_opened",
            "Upstream connections opened",
            self.upstream_opened.clone(),
        );
        registry.register(
            "upstream_reused",
            "Requests on a reused upstream connection",
            self.upstream_reused.clone(),
        );
        registry.register(
            "upstream_connect_failed",
            "Upstream connects that failed",
            self.upstream_connect_failed.clone(),
        );
        registry.register(
            "upstream_retried",
            "Requests repeated on a fresh connection",
            self.upstream_retried.clone(),
        );
        registry.register("drain_cut", "Client connections cut by a drain", self.drain_cut.clone());
        registry.register("accept_failed", "Failed accepts", self.accept_failed.clone());
    }
}

// === impl RequestCounters ===

impl RequestCounters {
    pub(crate) fn count(&self, metrics: &ProxyMetrics, outcome: RequestOutcome) {
        let found = || metrics.requests.get_or_create_owned(&RequestLabels { outcome });
        self.0[outcome as usize].get_or_init(found).inc();
    }
}

// === impl ConnectionCounters ===

impl ConnectionCounters {
    pub(crate) fn count(&self, metrics: &ProxyMetrics, protocol: ConnectionProtocol) {
        let found = || metrics.connections.get_or_create_owned(&ConnectionLabels { protocol });
        self.0[protocol as usize].get_or_init(found).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capture_counter_has_its_documented_name() {
        let metrics = ProxyMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.capture_missing.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a String cannot fail");
        assert!(text.contains("weft_capture_missing_orig_dst_total 1"), "{text}");
    }

    #[test]
    fn workers_count_together_and_show_no_outcome_that_none_has_met() {
        let metrics = ProxyMetrics::default();
        let (one, other) = (RequestCounters::default(), RequestCounters::default());
        one.count(&metrics, RequestOutcome::Forwarded);
        one.count(&metrics, RequestOutcome::Forwarded);
        one.count(&metrics, RequestOutcome::Ours);
        other.count(&metrics, RequestOutcome::Forwarded);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a String cannot fail");
        for (outcome, count) in [("Forwarded", 3), ("Ours", 1)] {
            let line = format!("weft_proxy_requests_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(text.contains(&line), "{text}");
        }
        assert!(!text.contains("Denied"), "{text}");
    }
}
