//! Parameters of the ext_authz adapter; names and defaults are those of Envoy's filter, where it has them.

use std::{collections::HashMap, time::Duration};

use http::HeaderName;
use serde::Deserialize;

use crate::{
    dial::{Address, Dialer},
    duration,
    error::AdapterError,
    outage::FailurePolicy,
    tls::{Alpn, Tls, TlsParams},
    verdicts::CacheConfig,
};

/// How long a request waits for the verdict, unless said otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// Longest timeout: a client waits as long.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Trust domain of principals, unless said otherwise.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `host:port` of the service, reached in HTTP/2.
    pub address: String,
    /// Over TLS, with these parameters; `{}` has the defaults. Default: in plain.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Default [`DEFAULT_TIMEOUT`]; 1 ms to [`MAX_TIMEOUT`]. Connecting is part of it.
    #[serde(default = "default_timeout", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
    /// What happens where there is no verdict. Default: closed.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// HTTP status where there is no verdict and the policy is closed. Default 403.
    #[serde(default = "default_status_on_error")]
    pub status_on_error: u16,
    /// Names of the request headers that the service gets. Default: all.
    #[serde(default)]
    pub allowed_headers: Option<Vec<String>>,
    /// Sent along with every request.
    #[serde(default)]
    pub context_extensions: HashMap<String, String>,
    /// Of principals: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`. Default [`DEFAULT_TRUST_DOMAIN`].
    #[serde(default = "default_trust_domain")]
    pub trust_domain: String,
    /// Keep verdicts. Default: the service is asked each time.
    #[serde(default)]
    pub cache: Option<CacheConfig>,
}

fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

fn default_status_on_error() -> u16 {
    403
}

fn default_trust_domain() -> String {
    DEFAULT_TRUST_DOMAIN.to_owned()
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if !(Duration::from_millis(1)..=MAX_TIMEOUT).contains(&self.timeout) {
            return Err(wrong("timeout", format!("{:?}", self.timeout), "1ms to 1m"));
        }
        if !(400..600).contains(&self.status_on_error) {
            return Err(wrong("status_on_error", self.status_on_error.to_string(), "400 to 599"));
        }
        let mut names = self.allowed_headers.iter().flatten();
        if let Some(bad) = names.find(|name| HeaderName::from_bytes(name.as_bytes()).is_err()) {
            return Err(wrong("allowed_headers", bad.clone(), "names of headers"));
        }
        if let Some(cache) = &self.cache {
            cache.validate("ext_authz")?;
        }
        let address = self.address()?;
        match &self.tls {
            Some(params) => params.check(&address.host).map(drop).map_err(|bad| bad.of("ext_authz")),
            None => Ok(()),
        }
    }

    pub(super) fn server(&self) -> Result<Dialer, AdapterError> {
        let address = self.address()?;
        let tls = self
            .tls
            .as_ref()
            .map(|params| Tls::new(params, &address.host, Alpn::Http2));
        Ok(Dialer {
            tls: tls.transpose().map_err(|bad| bad.of("ext_authz"))?,
            address,
        })
    }

    fn address(&self) -> Result<Address, AdapterError> {
        Address::parse(&self.address)
            .ok_or_else(|| wrong("address", self.address.clone(), "`host:port`, like localhost:9191"))
    }
}

fn wrong(field: &'static str, found: String, expected: &str) -> AdapterError {
    AdapterError::Config {
        adapter: "ext_authz",
        field,
        found,
        expected: expected.to_owned(),
    }
}
