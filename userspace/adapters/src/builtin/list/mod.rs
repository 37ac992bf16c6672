//! Check adapter that looks a value up in a list: blacklists and whitelists, as Mixer's `listchecker`.
//!
//! See this folder's README for the page an operator reads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::StatusCode;
use tracing::warn;
use weft_policy::ObjectRef;

use crate::{
    attribute::{Bag, TextBuffer, Value},
    background::{self, Task},
    error::AdapterError,
    pipeline::{Check, Checking, Deny},
    provider::{FetchError, Provider},
};

mod config;
mod entries;

pub use config::{Config, DEFAULT_REFRESH_INTERVAL, EntryType, MIN_REFRESH_INTERVAL};
use entries::{BadEntry, Entries, NoAddress};

/// Allows or refuses what is on its list.
#[derive(Debug)]
pub struct List {
    name: String,
    config: Config,
    rule: Option<ObjectRef>,
    /// `None`: the provider has not answered yet.
    current: Arc<ArcSwapOption<Loaded>>,
    /// Fetches anew; `None`: there is no provider.
    _refresh: Option<Task>,
}

#[derive(Debug)]
struct Loaded {
    entries: Entries,
    at: Instant,
}

// === impl List ===

impl List {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name.
    ///
    /// A list file is read at once; a URL is fetched in the background, and until it answers nothing is on the list.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter or an entry makes no sense, or the list file cannot be read.
    pub fn new(name: &str, config: Config, rule: Option<ObjectRef>) -> Result<Self, AdapterError> {
        config.validate()?;
        // Also where there is a provider: a bad entry shall be known now.
        let own = load(&config, "").map_err(|bad| wrong_entry("entries", bad))?;
        let current = Arc::new(ArcSwapOption::empty());
        let refresh = match &config.provider_url {
            None => {
                current.store(Some(Arc::new(own)));
                None
            }
            Some(provider) => {
                if let Provider::File(path) = provider {
                    current.store(Some(Arc::new(read(&config, path)?)));
                }
                let follower = Follower {
                    name: name.to_owned(),
                    config: config.clone(),
                    current: current.clone(),
                };
                Some(background::spawn(
                    provider
                        .clone()
                        .follow(config.refresh_interval, move |content| follower.take(content)),
                )?)
            }
        };
        Ok(Self {
            name: name.to_owned(),
            config,
            rule,
            current,
            _refresh: refresh,
        })
    }

    /// Entries of the list as it is now; `None`: there is none (not fetched yet, or too old).
    pub fn len(&self) -> Option<usize> {
        let current = self.current.load();
        current
            .as_ref()
            .filter(|loaded| !loaded.stale(self.config.ttl))
            .map(|loaded| loaded.entries.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len().is_none_or(|len| len == 0)
    }

    fn deny(&self, status: StatusCode, why: std::fmt::Arguments<'_>) -> Checking<'static> {
        Checking::deny(Deny::new(status.as_u16(), why.to_string()).by(self.rule.clone()))
    }
}

impl Check for List {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let selector = &self.config.value;
        let current = self.current.load();
        let Some(loaded) = current.as_ref().filter(|loaded| !loaded.stale(self.config.ttl)) else {
            return self.deny(
                StatusCode::SERVICE_UNAVAILABLE,
                format_args!("the list that {selector} is looked up in is not available"),
            );
        };
        let Some(value) = selector.get(bag) else {
            // Nothing is on no list.
            return match self.config.blacklist {
                true => Checking::ALLOW,
                false => self.deny(StatusCode::FORBIDDEN, format_args!("the request has no {selector}")),
            };
        };
        let listed = match value {
            Value::Ip(address) => Ok(loaded.entries.contain_address(address)),
            value => loaded.entries.contain(value.text(&mut TextBuffer::default())),
        };
        match listed {
            Ok(listed) if listed != self.config.blacklist => Checking::ALLOW,
            Ok(true) => self.deny(StatusCode::FORBIDDEN, format_args!("{selector} is blacklisted")),
            Ok(false) => self.deny(StatusCode::FORBIDDEN, format_args!("{selector} is not whitelisted")),
            // Also on a blacklist: whoever is refused must not get through by stuttering.
            Err(NoAddress) => self.deny(StatusCode::FORBIDDEN, format_args!("{selector} is no IP address")),
        }
    }
}

// === impl Loaded ===

impl Loaded {
    fn stale(&self, ttl: Option<Duration>) -> bool {
        ttl.is_some_and(|ttl| self.at.elapsed() > ttl)
    }
}

/// Puts what the provider says in the place of what it said before.
struct Follower {
    name: String,
    config: Config,
    current: Arc<ArcSwapOption<Loaded>>,
}

// === impl Follower ===

impl Follower {
    fn take(&self, content: Result<bytes::Bytes, FetchError>) -> bool {
        let loaded = content
            .map_err(|error| error.to_string())
            .and_then(|content| String::from_utf8(content.into()).map_err(|_| "the list is no UTF-8".to_owned()))
            .and_then(|text| load(&self.config, &text).map_err(|bad| format!("entry `{}`: {}", bad.entry, bad.reason)));
        match loaded {
            Ok(loaded) => {
                self.current.store(Some(Arc::new(loaded)));
                true
            }
            Err(error) => {
                warn!(
                    adapter = self.name,
                    error, "the list could not be fetched; the last good one stays"
                );
                false
            }
        }
    }
}

/// The provider's text and the configuration's own entries together.
fn load(config: &Config, text: &str) -> Result<Loaded, BadEntry> {
    let own = config.entries.iter().map(String::as_str);
    Ok(Loaded {
        entries: Entries::parse(config.entry_type, own.chain(Entries::lines(text)))?,
        at: Instant::now(),
    })
}

fn read(config: &Config, path: &std::path::Path) -> Result<Loaded, AdapterError> {
    let text = std::fs::read_to_string(path).map_err(|error| AdapterError::Config {
        adapter: "list",
        field: "provider_url",
        found: path.display().to_string(),
        expected: format!("a list that can be read ({error})"),
    })?;
    load(config, &text).map_err(|bad| wrong_entry("provider_url", bad))
}

fn wrong_entry(field: &'static str, bad: BadEntry) -> AdapterError {
    AdapterError::Config {
        adapter: "list",
        field,
        found: bad.entry,
        expected: format!("an entry of the list's `entry_type` ({})", bad.reason),
    }
}

#[cfg(test)]
mod tests;
