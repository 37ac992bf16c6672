//! Parameters of the metrics adapter.

use serde::Deserialize;

use crate::error::AdapterError;

/// Series that all families of the adapter may have together. One series is about 1 KiB here (histograms more) and a
/// line or twenty on every scrape; a mesh of 100 services that all call each other with 4 response codes stays below.
pub const MAX_SERIES: usize = 50_000;

/// Trust domain in `source_principal` and `destination_principal`: Istio's own default.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// New series beyond are not made; what they would have counted is counted in `weft_metrics_overflow_total`.
    /// Default [`MAX_SERIES`], which is also the most.
    pub max_series: usize,
    /// Default [`DEFAULT_TRUST_DOMAIN`].
    pub trust_domain: String,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            max_series: MAX_SERIES,
            trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
        }
    }
}

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if self.max_series <= MAX_SERIES {
            return Ok(());
        }
        Err(AdapterError::Config {
            adapter: "prometheus",
            field: "max_series",
            found: self.max_series.to_string(),
            expected: format!("at most {MAX_SERIES}"),
        })
    }
}
