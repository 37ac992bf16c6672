//! Parameters of the Redis quota, named as Mixer's `redisquota` names them.

use std::{collections::BTreeMap, time::Duration};

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use serde::Deserialize;

use super::server::Login;
use crate::{
    attribute::Selector,
    dial::{Address, Dialer},
    dimensions, duration,
    error::AdapterError,
    outage::FailurePolicy,
    tls::{Alpn, BadTls, Tls, TlsParams},
};

/// Where Redis listens by default.
pub const DEFAULT_REDIS_SERVER_URL: &str = "localhost:6379";

/// How long a request waits for Redis, unless said otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);

/// Longest timeout: a client waits as long.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections that a worker has, unless said otherwise. Requests share them without waiting for each other: more help
/// only where Redis is far away and answers are large, which these are not.
pub const DEFAULT_CONNECTION_POOL_SIZE: usize = 1;

/// Most connections of a worker.
pub const MAX_CONNECTION_POOL_SIZE: usize = 100;

/// Shortest window.
pub const MIN_VALID_DURATION: Duration = Duration::from_millis(10);

/// Longest window: a year, which is more than Redis is likely to remember.
pub const MAX_VALID_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most buckets in a rolling window: each request reads them all.
pub const MAX_BUCKETS: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Every request is charged to each of them, in order, until one is exhausted.
    pub quotas: Vec<Quota>,
    /// `host:port` or `redis[s]://[user][:password]@host[:port][/database]`. Default [`DEFAULT_REDIS_SERVER_URL`].
    #[serde(default = "default_redis_server_url")]
    pub redis_server_url: String,
    /// Parameters of TLS to a `rediss` server. Default: its certificate must be signed by an authority of this machine.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Connections of each worker. Default [`DEFAULT_CONNECTION_POOL_SIZE`]; 1 to [`MAX_CONNECTION_POOL_SIZE`].
    #[serde(default = "default_connection_pool_size")]
    pub connection_pool_size: usize,
    /// For all quotas of a request. Default [`DEFAULT_TIMEOUT`]; 1 ms to [`MAX_TIMEOUT`]. Connecting is part of it.
    #[serde(default = "default_timeout", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
    /// What happens when Redis does not answer. Default: closed.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub name: String,
    /// Requests within the window, for each combination of dimensions.
    pub max_amount: u32,
    /// Length of the window; [`MIN_VALID_DURATION`] to [`MAX_VALID_DURATION`].
    #[serde(deserialize_with = "duration::deserialize")]
    pub valid_duration: Duration,
    /// Default: fixed.
    #[serde(default)]
    pub rate_limit_algorithm: Algorithm,
    /// Parts of a rolling window; at most [`MAX_BUCKETS`] of at least a millisecond.
    #[serde(default, deserialize_with = "duration::optional")]
    pub bucket_duration: Option<Duration>,
    /// What is counted apart, by names of your choice. None: one count for all.
    #[serde(default)]
    pub dimensions: BTreeMap<String, Selector>,
    /// Other limits for some values; the first that applies counts.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Algorithm {
    /// Counts from the first request until the window ends; around its end twice the amount may pass.
    #[default]
    FixedWindow,
    /// Never more than the amount within any window.
    RollingWindow,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Values of dimensions, by their names; all must be equal, those left out may be anything.
    pub dimensions: BTreeMap<String, String>,
    pub max_amount: u32,
}

fn default_redis_server_url() -> String {
    DEFAULT_REDIS_SERVER_URL.to_owned()
}

fn default_connection_pool_size() -> usize {
    DEFAULT_CONNECTION_POOL_SIZE
}

fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if self.quotas.is_empty() {
            return Err(wrong("quotas", "[]".to_owned(), "at least one quota".to_owned()));
        }
        if !(1..=MAX_CONNECTION_POOL_SIZE).contains(&self.connection_pool_size) {
            let found = self.connection_pool_size.to_string();
            return Err(wrong("connection_pool_size", found, "1 to 100".to_owned()));
        }
        if !(Duration::from_millis(1)..=MAX_TIMEOUT).contains(&self.timeout) {
            return Err(wrong("timeout", format!("{:?}", self.timeout), "1ms to 1m".to_owned()));
        }
        let mut names: Vec<&str> = self.quotas.iter().map(|quota| quota.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|two| two[0] == two[1]) {
            let expected = "names that differ, as they stand in Redis".to_owned();
            return Err(wrong("quotas.name", format!("{} twice", twice[0]), expected));
        }
        for quota in &self.quotas {
            quota.validate()?;
        }
        let (address, _, secure) = self.server()?;
        let checked = match (&self.tls, secure) {
            (None, _) => Ok(()),
            (Some(params), true) => params.check(&address.host).map(drop),
            (Some(_), false) => Err(BadTls::for_plain(&address, "a `rediss` URL")),
        };
        checked.map_err(|bad| bad.of("redisquota"))
    }

    pub(super) fn login(&self) -> Result<Login, AdapterError> {
        let (address, settings, secure) = self.server()?;
        let params = self.tls.clone().unwrap_or_default();
        let tls = secure.then(|| Tls::new(&params, &address.host, Alpn::None));
        Ok(Login {
            server: Dialer {
                tls: tls.transpose().map_err(|bad| bad.of("redisquota"))?,
                address,
            },
            settings,
        })
    }

    /// Where Redis is, who we are to it, and whether it is to be spoken to over TLS.
    fn server(&self) -> Result<(Address, RedisConnectionInfo, bool), AdapterError> {
        let (scheme, rest) = self
            .redis_server_url
            .split_once("://")
            .unwrap_or(("redis", &self.redis_server_url));
        // The TLS is ours, and not the library's.
        let secure = scheme == "rediss";
        let url = format!("{}://{rest}", if secure { "redis" } else { scheme });
        // There may be a password in it.
        let found = url
            .rsplit_once('@')
            .map_or(self.redis_server_url.as_str(), |(_, host)| host);
        let expected = "`host:port` or `redis[s]://[user][:password]@host[:port][/database]`";
        let bad = || wrong("redis_server_url", found.to_owned(), expected.to_owned());
        let info = url.as_str().into_connection_info().map_err(|_| bad())?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(bad());
        };
        if host.is_empty() {
            return Err(bad());
        }
        let address = Address {
            host: host.clone(),
            port: *port,
        };
        Ok((address, info.redis_settings().clone(), secure))
    }
}

// === impl Quota ===

impl Quota {
    fn validate(&self) -> Result<(), AdapterError> {
        let name = &self.name;
        if !(MIN_VALID_DURATION..=MAX_VALID_DURATION).contains(&self.valid_duration) {
            let expected = format!("10ms to 8760h in quota `{name}`");
            return Err(wrong("valid_duration", format!("{:?}", self.valid_duration), expected));
        }
        match (self.rate_limit_algorithm, self.bucket_duration) {
            (Algorithm::FixedWindow, None) => {}
            (Algorithm::FixedWindow, Some(bucket)) => {
                let expected = format!("none, or ROLLING_WINDOW, in quota `{name}`");
                return Err(wrong("bucket_duration", format!("{bucket:?}"), expected));
            }
            (Algorithm::RollingWindow, bucket) => {
                let usable = bucket.filter(|bucket| {
                    bucket.as_millis() > 0 && *bucket < self.valid_duration && self.buckets(*bucket) <= MAX_BUCKETS
                });
                if usable.is_none() {
                    let found = bucket.map_or_else(|| "none".to_owned(), |bucket| format!("{bucket:?}"));
                    let expected = format!(
                        "less than valid_duration, a hundredth of it or more, and 1ms or more, in quota `{name}`"
                    );
                    return Err(wrong("bucket_duration", found, expected));
                }
            }
        }
        let named = self.overrides.iter().flat_map(|other| other.dimensions.keys());
        if let Some((unknown, known)) = dimensions::unknown(&self.dimensions, named) {
            let expected = format!("a dimension of quota `{name}` ({known})");
            return Err(wrong("overrides.dimensions", unknown, expected));
        }
        Ok(())
    }

    /// How many of that length cover the window.
    pub(super) fn buckets(&self, bucket: Duration) -> u64 {
        let buckets = self.valid_duration.as_millis().div_ceil(bucket.as_millis().max(1));
        u64::try_from(buckets).unwrap_or(u64::MAX)
    }
}

fn wrong(field: &'static str, found: String, expected: String) -> AdapterError {
    AdapterError::Config {
        adapter: "redisquota",
        field,
        found,
        expected,
    }
}
