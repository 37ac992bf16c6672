//! Check adapter that refuses what matches.
//!
//! See this folder's README for the page an operator reads.

use weft_policy::ObjectRef;

use crate::{
    attribute::Bag,
    error::AdapterError,
    native::{Context, Native, Part, Role},
    pipeline::{Check, Checking, Deny},
};

mod config;

pub use config::{Config, DEFAULT_MESSAGE, DEFAULT_STATUS, HeaderMatch, Match};

/// Refuses the requests that its [`Match`] speaks about.
#[derive(Debug)]
pub struct Denier {
    name: String,
    config: Config,
    rule: Option<ObjectRef>,
}

// === impl Denier ===

impl Denier {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: the status is no HTTP error.
    pub fn new(name: &str, mut config: Config, rule: Option<ObjectRef>) -> Result<Self, AdapterError> {
        config.validate()?;
        if let Some(header) = &mut config.matches.header {
            header.name.make_ascii_lowercase();
        }
        Ok(Self {
            name: name.to_owned(),
            config,
            rule,
        })
    }
}

impl Check for Denier {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        if !self.config.matches.holds(bag) {
            return Checking::ALLOW;
        }
        Checking::deny(Deny::new(self.config.status, self.config.message.clone()).by(self.rule.clone()))
    }
}

// === impl Match ===

impl Match {
    /// Everything that is set holds. What speaks of a request does not hold for a bare connection.
    fn holds(&self, bag: &Bag<'_>) -> bool {
        let equal = |wanted: &Option<String>, found: Option<&str>| match wanted {
            Some(wanted) => found == Some(wanted.as_str()),
            None => true,
        };
        equal(&self.namespace, Some(bag.destination.namespace))
            && equal(&self.service, bag.destination.service)
            && equal(&self.method, bag.request.map(|request| request.method))
            && self.path_prefix.as_ref().is_none_or(|prefix| {
                bag.request
                    .is_some_and(|request| request.url_path().starts_with(prefix.as_str()))
            })
            && self.header.as_ref().is_none_or(|header| header.holds(bag))
    }
}

// === impl HeaderMatch ===

impl HeaderMatch {
    /// For any line of the header: one before it, or bytes that are no text, must not hide what is refused.
    fn holds(&self, bag: &Bag<'_>) -> bool {
        let wanted = self.value.as_ref().map(String::as_bytes);
        let mut holds = false;
        if let Some(request) = &bag.request {
            request.headers.values(&self.name, &mut |found| {
                holds |= wanted.is_none_or(|wanted| wanted == found);
            });
        }
        holds
    }
}

impl Native for Denier {
    const NAME: &'static str = "denier";
    const ABOUT: &'static str = "refuses what matches";
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
