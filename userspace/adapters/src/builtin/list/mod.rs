//! Check adapter that looks a value up in a list: blacklists and whitelists, as Mixer's `listchecker`.
//!
//! See this folder's README for the page an operator reads.

use http::StatusCode;
use weft_policy::ObjectRef;

use crate::{
    attribute::{Bag, TextBuffer, Value},
    error::AdapterError,
    native::{Context, Native, Part, Role},
    pipeline::{Check, Checking, Deny},
    provider::{Latest, Provider},
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
    entries: Latest<Entries>,
}

/// What a request has to be looked up.
struct Seen {
    count: usize,
    /// All of them are.
    is_text: bool,
    /// One of them is.
    listed: Result<bool, NoAddress>,
}

// === impl List ===

impl List {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name.
    ///
    /// A list file is read at once; a URL is fetched in the background, and until it answers there is no list.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter or an entry makes no sense, or the list file cannot be read.
    pub fn new(name: &str, config: Config, rule: Option<ObjectRef>) -> Result<Self, AdapterError> {
        config.validate()?;
        // Also where there is a provider: a bad entry shall be known now.
        let own = load(&config, b"").map_err(|bad| wrong_entry("entries", bad))?;
        let entries = match &config.provider_url {
            None => Latest::fixed(own),
            Some(provider) => {
                let first = match provider {
                    Provider::Url(_) => None,
                    Provider::File(path) => {
                        let content = Provider::read_file(path, "list", "provider_url")?;
                        Some(load(&config, &content).map_err(|bad| wrong_entry("provider_url", bad))?)
                    }
                };
                let parameters = config.clone();
                let parse = move |content: &[u8]| load(&parameters, content).map_err(|bad| bad.to_string());
                let source = provider.source(config.tls.as_ref()).map_err(|bad| bad.of("list"))?;
                Latest::follow(name, source, config.refresh_interval, first, parse)?
            }
        };
        Ok(Self {
            name: name.to_owned(),
            config,
            rule,
            entries,
        })
    }

    /// Entries of the list as it is now; `None`: there is none (not fetched yet, or too old).
    #[cfg(test)]
    fn len(&self) -> Option<usize> {
        let entries = self.entries.load();
        entries
            .as_ref()
            .filter(|_| !self.is_stale())
            .map(|entries| entries.len())
    }

    fn is_stale(&self) -> bool {
        self.config.ttl.is_some_and(|ttl| self.entries.age() > ttl)
    }

    fn deny(&self, why: std::fmt::Arguments<'_>) -> Checking<'static> {
        Checking::deny(Deny::new(StatusCode::FORBIDDEN.as_u16(), why.to_string()).by(self.rule.clone()))
    }
}

impl Check for List {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let selector = &self.config.value;
        let entries = self.entries.load();
        let Some(entries) = entries.as_ref().filter(|_| !self.is_stale()) else {
            let why = format!("the list that {selector} is looked up in is not available");
            let deny = Deny::new(StatusCode::SERVICE_UNAVAILABLE.as_u16(), why);
            return Checking::unjudged(deny.by(self.rule.clone()));
        };
        let mut seen = Seen::default();
        selector.each(bag, &mut |value, is_text| {
            seen.count += 1;
            seen.is_text &= is_text;
            // What is on a blacklist is refused, whatever else is there.
            if seen.listed == Ok(false) {
                seen.listed = match value {
                    Value::Ip(address) => Ok(entries.contain_address(address)),
                    value => entries.contain(value.text(&mut TextBuffer::default())),
                };
            }
        });
        match (seen.listed, self.config.blacklist) {
            // Also on a blacklist: whoever is refused must not get through by stuttering.
            (Err(NoAddress), _) => self.deny(format_args!("{selector} is no IP address")),
            (Ok(true), true) => self.deny(format_args!("{selector} is blacklisted")),
            (Ok(false), true) => Checking::ALLOW,
            // Nothing is on no list; and of several, nobody knows which one the service reads.
            (_, false) if seen.count == 0 => self.deny(format_args!("the request has no {selector}")),
            (_, false) if seen.count > 1 => self.deny(format_args!("the request has several {selector}")),
            (_, false) if !seen.is_text => self.deny(format_args!("{selector} is no text")),
            (Ok(true), false) => Checking::ALLOW,
            (Ok(false), false) => self.deny(format_args!("{selector} is not whitelisted")),
        }
    }
}

// === impl Seen ===

impl Default for Seen {
    fn default() -> Self {
        Self {
            count: 0,
            is_text: true,
            listed: Ok(false),
        }
    }
}

/// The provider's text and the configuration's own entries together.
fn load(config: &Config, content: &[u8]) -> Result<Entries, BadEntry> {
    let text = std::str::from_utf8(content).map_err(|error| BadEntry {
        entry: format!("byte {}", error.valid_up_to()),
        reason: "no UTF-8".to_owned(),
    })?;
    let own = config.entries.iter().map(String::as_str);
    Entries::parse(config.entry_type, own.chain(Entries::lines(text)))
}

fn wrong_entry(field: &'static str, bad: BadEntry) -> AdapterError {
    AdapterError::Config {
        adapter: "list",
        field,
        found: bad.entry,
        expected: format!("an entry of the list's `entry_type` ({})", bad.reason),
    }
}

impl Native for List {
    const NAME: &'static str = "list";
    const ABOUT: &'static str = "looks a value up on a list that allows or refuses";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Check;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        let rule = Some(context.object.clone());
        Ok(Part::check(Self::new(context.name, config, rule)?))
    }
}

#[cfg(test)]
mod tests;
