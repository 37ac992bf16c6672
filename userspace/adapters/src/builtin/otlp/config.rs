//! Parameters of the otlp adapter; names follow the exporters of OpenTelemetry.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;

use crate::{
    dial::{self, Address, Dialer},
    duration,
    error::AdapterError,
    tls::{self, Alpn, Tls, TlsParams},
};

/// Share of the requests that come without a trace which begin one, unless said otherwise: Istio's 1 %.
pub const DEFAULT_SAMPLE_PROBABILITY: f64 = 0.01;

/// How often is sent, unless said otherwise.
pub const DEFAULT_FLUSH_DURATION: Duration = Duration::from_secs(5);

/// Longest wait for the receiver's answer, unless said otherwise: OpenTelemetry's.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `http://host[:port][/path]`; ports 4317 (gRPC) and 4318 (HTTP) are usual.
    pub endpoint: String,
    /// Parameters of TLS to an `https` server. Default: its certificate must be signed by an authority of this machine.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Default: gRPC.
    #[serde(default)]
    pub protocol: Protocol,
    /// What is sent. Default: everything.
    #[serde(default = "default_signals")]
    pub signals: Vec<Signal>,
    /// Sent with each request, such as `authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Attributes of the resource, beside `service.name`, which is `weft` unless it is among them.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// Of requests that come without a trace. Default [`DEFAULT_SAMPLE_PROBABILITY`]; 0 to 1.
    #[serde(default = "default_sample_probability")]
    pub sample_probability: f64,
    /// Default [`DEFAULT_FLUSH_DURATION`]; 1 ms to 1 minute.
    #[serde(default = "default_flush_duration", deserialize_with = "duration::deserialize")]
    pub flush_duration: Duration,
    /// Default [`DEFAULT_TIMEOUT`]; 1 ms to 1 minute.
    #[serde(default = "default_timeout", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Grpc,
    /// Protobuf over HTTP/1.1; `/v1/traces` and `/v1/metrics` are appended to the endpoint.
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    Traces,
    Metrics,
}

fn default_signals() -> Vec<Signal> {
    vec![Signal::Traces, Signal::Metrics]
}

fn default_sample_probability() -> f64 {
    DEFAULT_SAMPLE_PROBABILITY
}

fn default_flush_duration() -> Duration {
    DEFAULT_FLUSH_DURATION
}

fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

// === impl Config ===

impl Config {
    /// # Errors
    /// [`AdapterError::Config`]: a parameter is out of bounds.
    pub fn validate(&self) -> Result<(), AdapterError> {
        if self.signals.is_empty() {
            return Err(wrong("signals", "[]".to_owned(), "`traces`, `metrics` or both"));
        }
        if !(0.0..=1.0).contains(&self.sample_probability) {
            return Err(wrong(
                "sample_probability",
                self.sample_probability.to_string(),
                "0 to 1",
            ));
        }
        let bounds = Duration::from_millis(1)..=Duration::from_secs(60);
        for (field, duration) in [("flush_duration", self.flush_duration), ("timeout", self.timeout)] {
            if !bounds.contains(&duration) {
                return Err(wrong(field, format!("{duration:?}"), "1ms to 1m"));
            }
        }
        self.header_map()?;
        match self.protocol {
            Protocol::Grpc => self.address().map(drop)?,
            Protocol::Http => self.url(Signal::Traces).map(drop)?,
        }
        tls::check_url(&self.endpoint()?, self.tls.as_ref()).map_err(|bad| bad.of("otlp"))
    }

    pub(super) fn header_map(&self) -> Result<HeaderMap, AdapterError> {
        let pairs = self.headers.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        pairs.collect::<Option<HeaderMap>>().ok_or_else(|| {
            let names: Vec<&str> = self.headers.keys().map(String::as_str).collect();
            wrong("headers", names.join(", "), "names and values of headers")
        })
    }

    /// For gRPC.
    fn address(&self) -> Result<Address, AdapterError> {
        let expected = "`http[s]://host:port`, like http://localhost:4317";
        let rest = self.endpoint.strip_prefix("http://");
        rest.or_else(|| self.endpoint.strip_prefix("https://"))
            .and_then(|rest| Address::parse(rest.trim_end_matches('/')))
            .ok_or_else(|| wrong("endpoint", self.endpoint.clone(), expected))
    }

    /// For gRPC.
    pub(super) fn server(&self) -> Result<Dialer, AdapterError> {
        Ok(Dialer {
            address: self.address()?,
            tls: self.tls(Alpn::Http2)?,
        })
    }

    fn endpoint(&self) -> Result<Uri, AdapterError> {
        let endpoint = self.endpoint.parse();
        endpoint.map_err(|_| wrong("endpoint", self.endpoint.clone(), "an URL"))
    }

    pub(super) fn tls(&self, alpn: Alpn) -> Result<Option<Arc<Tls>>, AdapterError> {
        Tls::to_url(&self.endpoint()?, self.tls.as_ref(), alpn).map_err(|bad| bad.of("otlp"))
    }

    /// For HTTP.
    pub(super) fn url(&self, signal: Signal) -> Result<Uri, AdapterError> {
        let path = match signal {
            Signal::Traces => "/v1/traces",
            Signal::Metrics => "/v1/metrics",
        };
        format!("{}{path}", self.endpoint.trim_end_matches('/'))
            .parse()
            .ok()
            .filter(dial::is_http)
            .ok_or_else(|| {
                let expected = "`http[s]://host[:port][/path]`, like http://localhost:4318";
                wrong("endpoint", self.endpoint.clone(), expected)
            })
    }
}

fn wrong(field: &'static str, found: String, expected: &str) -> AdapterError {
    AdapterError::Config {
        adapter: "otlp",
        field,
        found,
        expected: expected.to_owned(),
    }
}
