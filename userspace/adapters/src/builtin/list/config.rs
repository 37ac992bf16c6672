//! Parameters of the list checker, named as Mixer's `listchecker` names them.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    attribute::Selector,
    duration,
    error::AdapterError,
    provider::Provider,
    tls::{BadTls, TlsParams},
};

/// How often a list is fetched anew, unless said otherwise. Mixer's default.
pub const DEFAULT_REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// Shortest refresh interval: a list is no message queue.
pub const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is looked up: `source.ip`, `request.headers["x-user"]`, ...
    pub value: Selector,
    /// Entries of the list, beside those of the provider (Mixer also calls them `overrides`).
    #[serde(default, alias = "overrides")]
    pub entries: Vec<String>,
    /// File or URL with further entries: one a line; empty lines and what follows `#` at a line's start are left out.
    #[serde(default)]
    pub provider_url: Option<Provider>,
    /// Parameters of TLS to an `https` server. Default: its certificate must be signed by an authority of this machine.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Default [`DEFAULT_REFRESH_INTERVAL`].
    #[serde(default = "default_refresh_interval", deserialize_with = "duration::deserialize")]
    pub refresh_interval: Duration,
    /// How long a provider's entries may be used after they were fetched. Default: until there are newer ones.
    #[serde(default, deserialize_with = "duration::optional")]
    pub ttl: Option<Duration>,
    #[serde(default)]
    pub entry_type: EntryType,
    /// `true`: what is on the list is refused. `false`: only what is on the list is allowed.
    #[serde(default)]
    pub blacklist: bool,
}

/// How entries are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryType {
    #[default]
    Strings,
    CaseInsensitiveStrings,
    /// Addresses and prefixes, both families.
    IpAddresses,
    /// Expressions that match anywhere in the value unless they say `^` and `$`, as in Mixer.
    Regex,
}

fn default_refresh_interval() -> Duration {
    DEFAULT_REFRESH_INTERVAL
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        let wrong = |field, found, expected: &str| {
            Err(AdapterError::Config {
                adapter: "list",
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        if self.provider_url.is_none() && self.entries.is_empty() {
            return wrong("entries", "[]".to_owned(), "entries, or a `provider_url`");
        }
        let checked = match &self.provider_url {
            Some(provider) => provider.check_tls(self.tls.as_ref()),
            None if self.tls.is_some() => Err(BadTls::for_plain("entries", "an `https` URL")),
            None => Ok(()),
        };
        checked.map_err(|bad| bad.of("list"))?;
        if self.refresh_interval < MIN_REFRESH_INTERVAL {
            return wrong(
                "refresh_interval",
                format!("{:?}", self.refresh_interval),
                "100ms or more",
            );
        }
        match self.ttl {
            Some(ttl) if ttl < self.refresh_interval => wrong(
                "ttl",
                format!("{ttl:?}"),
                "at least `refresh_interval`, better twice as much",
            ),
            _ => Ok(()),
        }
    }
}
