//! Parameters of the statsd adapter; names and defaults are those of Mixer's.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{metric::Metric, template::NameTemplate};
use crate::error::AdapterError;

/// Where statsd listens by default, on this machine.
pub const DEFAULT_ADDRESS: &str = "localhost:8125";

/// Longest wait of a line for others to share its datagram with. Longer saves datagrams, and delays what is seen.
pub const DEFAULT_FLUSH_DURATION: Duration = Duration::from_millis(300);

/// Size of a datagram that goes through every network in one piece. On a local network 1432 saves two of three.
pub const DEFAULT_FLUSH_BYTES: usize = 512;

/// Payload of the largest datagram of IPv4.
pub const MAX_FLUSH_BYTES: usize = 65_507;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`. Default [`DEFAULT_ADDRESS`].
    pub address: String,
    /// In front of every name, with a dot between. Default: none.
    pub prefix: String,
    /// Longest wait of a line. Default [`DEFAULT_FLUSH_DURATION`]; 1 ms to 1 minute.
    #[serde(deserialize_with = "crate::duration::deserialize")]
    pub flush_duration: Duration,
    /// Largest datagram, in bytes. Default [`DEFAULT_FLUSH_BYTES`]; 64 to [`MAX_FLUSH_BYTES`].
    pub flush_bytes: usize,
    /// Share of counts and times that are sent, told to the receiver as `|@rate`. Default 1: all. Gauges are always sent.
    pub sampling_rate: f64,
    /// Labels as dogstatsd's tags (`|#key:value`) instead of in the name. Default: false.
    pub tags: bool,
    /// What is sent. Default: everything, under the metric's own name.
    pub metrics: BTreeMap<Metric, MetricConfig>,
}

/// How one metric is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricConfig {
    /// Only to say what is meant: any other than the metric's own is refused.
    #[serde(rename = "type")]
    pub kind: Option<Kind>,
    /// Its name: words with `{label}`s. Default: the metric's name, followed by its labels where these are no tags.
    pub name_template: Option<NameTemplate>,
}

/// Mixer's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    Counter,
    Gauge,
    Distribution,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            address: DEFAULT_ADDRESS.to_owned(),
            prefix: String::new(),
            flush_duration: DEFAULT_FLUSH_DURATION,
            flush_bytes: DEFAULT_FLUSH_BYTES,
            sampling_rate: 1.0,
            tags: false,
            metrics: BTreeMap::new(),
        }
    }
}

impl Config {
    /// # Errors
    /// [`AdapterError::Config`]: a parameter is out of bounds, or contradicts itself.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let refuse = |field, found: String, expected: &str| {
            Err(AdapterError::Config {
                adapter: "statsd",
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        let host_and_port = self.address.rsplit_once(':');
        if !host_and_port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
        {
            return refuse("address", self.address.clone(), "`host:port`, like localhost:8125");
        }
        if !self
            .prefix
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        {
            return refuse("prefix", self.prefix.clone(), "letters, digits, `.`, `_` and `-`");
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.flush_duration) {
            return refuse("flush_duration", format!("{:?}", self.flush_duration), "1ms to 1m");
        }
        if !(64..=MAX_FLUSH_BYTES).contains(&self.flush_bytes) {
            return refuse("flush_bytes", self.flush_bytes.to_string(), "64 to 65507");
        }
        if !(self.sampling_rate > 0.0 && self.sampling_rate <= 1.0) {
            return refuse(
                "sampling_rate",
                self.sampling_rate.to_string(),
                "more than 0, at most 1",
            );
        }
        for (metric, config) in &self.metrics {
            if config.kind.is_some_and(|kind| kind != metric.kind()) {
                return refuse(
                    "metrics.type",
                    format!("{:?} for {}", config.kind.unwrap_or(metric.kind()), metric.name()),
                    &format!("{:?}, or leave it out", metric.kind()),
                );
            }
        }
        Ok(())
    }
}
