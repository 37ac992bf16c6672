//! A registry as the text that Prometheus scrapes.

use std::fmt;

use prometheus_client::{encoding::text, registry::Registry};

/// `Content-Type` of [`encode`]'s text. Every Prometheus since 2.5 reads it, and so do plain-text tools.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a registry in the OpenMetrics text format. Costs one pass over all series.
///
/// # Errors
/// Only what a metric's own encoder refuses; nothing in this crate does.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}
