//! Report adapter that sends a span for each sampled request to Zipkin, or whatever takes its JSON.
//!
//! See this folder's README for the page an operator reads.

use http::{HeaderMap, Uri};
use tracing::warn;

use crate::{
    error::AdapterError,
    export::{Export, ExportMetrics, Exporter},
    metrics::ReportMetrics,
    native::{Context, Native, Part, Role},
    post::Poster,
    record::Record,
    tls::{Alpn, Tls},
    trace::Demand,
};

mod config;
mod span;

pub use config::{Config, DEFAULT_FLUSH_DURATION, DEFAULT_SAMPLE_PROBABILITY, TIMEOUT};

use span::Span;

/// Bytes of spans that are sent at once: some hundred of them.
const BATCH: usize = 256 * 1024;

/// What runs in the background.
pub(super) struct Zipkin {
    url: Uri,
    poster: Poster,
    metrics: ExportMetrics,
    /// A JSON list without its end.
    batch: String,
    spans: u64,
    failing: bool,
    _traced: Demand,
}

/// Starts the adapter `name`. From now on requests carry traces.
///
/// # Errors
/// [`AdapterError::Config`]: a parameter is out of bounds. [`AdapterError::Background`].
pub fn start(name: &str, config: Config, metrics: &ReportMetrics) -> Result<Exporter, AdapterError> {
    config.validate()?;
    let metrics = ExportMetrics::of(name, metrics);
    let url = config.url()?;
    let tls = Tls::to_url(&url, config.tls.as_ref(), Alpn::Http1).map_err(|bad| bad.of("zipkin"))?;
    let zipkin = Zipkin {
        poster: Poster::new(url.clone(), tls, TIMEOUT),
        url,
        metrics: metrics.clone(),
        batch: String::new(),
        spans: 0,
        failing: false,
        _traced: Demand::new(config.sample_probability),
    };
    Exporter::start(name, zipkin, is_sampled, config.flush_duration, &metrics)
}

fn is_sampled(record: &Record) -> bool {
    record.trace().is_some_and(|(.., trace)| trace.sampled)
}

impl Export for Zipkin {
    fn add(&mut self, record: &Record) {
        let Some((flow, l7, trace)) = record.trace() else {
            return;
        };
        // It is made of texts and numbers, which always are JSON.
        let Ok(span) = serde_json::to_string(&Span::new(flow, l7, trace)) else {
            return;
        };
        self.batch.push(if self.batch.is_empty() { '[' } else { ',' });
        self.batch.push_str(&span);
        self.spans += 1;
    }

    fn is_empty(&self) -> bool {
        self.spans == 0
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= BATCH
    }

    async fn send(&mut self) {
        if self.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let spans = std::mem::take(&mut self.spans);
        batch.push(']');
        match self
            .poster
            .post("application/json", &HeaderMap::new(), batch.into())
            .await
        {
            Ok(_) => {
                self.metrics.sent.inc_by(spans);
                self.failing = false;
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.metrics.dropped.inc_by(spans);
                if !self.failing {
                    warn!(%error, url = %self.url, "zipkin: spans are lost until it takes them");
                }
                self.failing = true;
            }
        }
    }
}

impl Native for Zipkin {
    const NAME: &'static str = "zipkin";
    const ABOUT: &'static str = "sends a span for each sampled request to Zipkin";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Report;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        Ok(Part::Report(Box::new(start(context.name, config, context.reports)?)))
    }
}

#[cfg(test)]
mod tests;
