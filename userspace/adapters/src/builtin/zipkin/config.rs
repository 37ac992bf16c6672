//! Parameters of the zipkin adapter; names are those of Mixer's.

use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use crate::{
    dial, duration,
    error::AdapterError,
    tls::{self, TlsParams},
};

/// Share of the requests that come without a trace which begin one, unless said otherwise: Istio's 1 %.
pub const DEFAULT_SAMPLE_PROBABILITY: f64 = 0.01;

/// Longest wait of a span for others to share its request with, unless said otherwise.
pub const DEFAULT_FLUSH_DURATION: Duration = Duration::from_secs(1);

/// Longest wait for the receiver's answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where spans are posted: `http[s]://host[:port]/api/v2/spans`.
    pub url: String,
    /// Parameters of TLS to an `https` server. Default: its certificate must be signed by an authority of this machine.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Of requests that come without a trace. Default [`DEFAULT_SAMPLE_PROBABILITY`]; 0 to 1.
    #[serde(default = "default_sample_probability")]
    pub sample_probability: f64,
    /// Default [`DEFAULT_FLUSH_DURATION`]; 1 ms to 1 minute.
    #[serde(default = "default_flush_duration", deserialize_with = "duration::deserialize")]
    pub flush_duration: Duration,
}

fn default_sample_probability() -> f64 {
    DEFAULT_SAMPLE_PROBABILITY
}

fn default_flush_duration() -> Duration {
    DEFAULT_FLUSH_DURATION
}

// === impl Config ===

impl Config {
    /// # Errors
    /// [`AdapterError::Config`]: a parameter is out of bounds.
    pub fn validate(&self) -> Result<(), AdapterError> {
        if !(0.0..=1.0).contains(&self.sample_probability) {
            return Err(wrong(
                "sample_probability",
                self.sample_probability.to_string(),
                "0 to 1",
            ));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.flush_duration) {
            return Err(wrong(
                "flush_duration",
                format!("{:?}", self.flush_duration),
                "1ms to 1m",
            ));
        }
        tls::check_url(&self.url()?, self.tls.as_ref()).map_err(|bad| bad.of("zipkin"))
    }

    pub(super) fn url(&self) -> Result<Uri, AdapterError> {
        self.url
            .parse()
            .ok()
            .filter(dial::is_http)
            .ok_or_else(|| wrong("url", self.url.clone(), "`http[s]://host[:port]/api/v2/spans`"))
    }
}

fn wrong(field: &'static str, found: String, expected: &str) -> AdapterError {
    AdapterError::Config {
        adapter: "zipkin",
        field,
        found,
        expected: expected.to_owned(),
    }
}
