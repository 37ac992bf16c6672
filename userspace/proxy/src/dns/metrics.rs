//! What the DNS server counts.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counters of the server; clones share them.
#[derive(Debug, Clone, Default)]
pub struct DnsMetrics {
    /// Queries by what came of them.
    pub queries: Family<QueryLabels, Counter>,
    /// Attempts at a resolver that brought no usable response.
    pub upstream_failed: Counter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    pub result: QueryResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueryResult {
    /// A service's virtual IP.
    Mesh,
    /// A mesh name without data of that type.
    Nodata,
    /// No such name in the mesh, or a mesh name below a search domain.
    Nxdomain,
    /// A resolver's response.
    Forwarded,
    /// No resolver answered in time, or too many queries were under way.
    Servfail,
    /// Not understood, answered with an error.
    Refused,
    /// Not answered: no DNS, a response, or not for us.
    Dropped,
}

// === impl DnsMetrics ===

impl DnsMetrics {
    /// Registers `weft_dns_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_dns_queries",
            "DNS queries of captured workloads",
            self.queries.clone(),
        );
        registry.register(
            "weft_dns_upstream_failed",
            "Attempts at the system's resolvers that brought no usable response",
            self.upstream_failed.clone(),
        );
    }

    pub(super) fn count(&self, result: QueryResult) {
        self.queries.get_or_create(&QueryLabels { result }).inc();
    }
}

// === impl QueryResult ===

impl EncodeLabelValue for QueryResult {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        let value = match self {
            Self::Mesh => "mesh",
            Self::Nodata => "nodata",
            Self::Nxdomain => "nxdomain",
            Self::Forwarded => "forwarded",
            Self::Servfail => "servfail",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        };
        EncodeLabelValue::encode(&value, encoder)
    }
}
