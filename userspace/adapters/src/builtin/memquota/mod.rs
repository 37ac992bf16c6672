//! Quota adapter that counts in this process's memory, as Mixer's `memquota`.
//!
//! See this folder's README for the page an operator reads.

use std::time::Instant;

use http::{HeaderValue, StatusCode, header};
use weft_policy::ObjectRef;

use crate::{
    attribute::{Bag, TextBuffer},
    dimensions::Dimensions,
    error::AdapterError,
    native::{Context, Native, Part, Role},
    pipeline::{Check, Checking, Deny},
};

mod cells;
mod config;
mod window;

use cells::Cells;
pub use config::{Config, DEFAULT_MAX_CELLS, MIN_VALID_DURATION, Override, Quota};
use window::Limit;
pub use window::TICKS;

/// Refuses with 429 what is beyond a quota.
#[derive(Debug)]
pub struct MemQuota {
    name: String,
    rule: Option<ObjectRef>,
    quotas: Vec<Counted>,
    /// Begin of the time that windows count in.
    begin: Instant,
}

#[derive(Debug)]
struct Counted {
    name: String,
    dimensions: Dimensions<Limit>,
    cells: Cells,
}

// === impl MemQuota ===

impl MemQuota {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter makes no sense.
    pub fn new(name: &str, config: Config, rule: Option<ObjectRef>) -> Result<Self, AdapterError> {
        config.validate()?;
        Ok(Self {
            name: name.to_owned(),
            rule,
            quotas: config.quotas.into_iter().map(Counted::new).collect(),
            begin: Instant::now(),
        })
    }

    /// How many combinations of dimensions a quota counts at present; `None`: there is no such quota.
    #[cfg(test)]
    fn cells(&self, quota: &str) -> Option<usize> {
        let quota = self.quotas.iter().find(|counted| counted.name == quota)?;
        Some(quota.cells.len())
    }

    fn exhausted(&self, quota: &str, wait: u64) -> Checking<'static> {
        let mut deny = Deny::new(
            StatusCode::TOO_MANY_REQUESTS.as_u16(),
            format!("quota `{quota}` is exhausted"),
        )
        .by(self.rule.clone());
        if wait != u64::MAX {
            let seconds = wait.div_ceil(1_000_000_000).max(1);
            deny = deny.with_header(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        Checking::deny(deny)
    }
}

impl Check for MemQuota {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let now = u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut key = TextBuffer::default();
        for quota in &self.quotas {
            key.clear();
            quota.dimensions.key(bag, &mut key);
            // The limit is only asked for of combinations that are new.
            if let Err(wait) = quota.cells.take(key.as_str(), now, || quota.dimensions.limit(bag)) {
                return self.exhausted(&quota.name, wait);
            }
        }
        Checking::ALLOW
    }
}

// === impl Counted ===

impl Counted {
    fn new(quota: Quota) -> Self {
        let window = quota.valid_duration;
        let overrides = quota.overrides.into_iter().map(|other| {
            let limit = Limit::new(other.max_amount, other.valid_duration.unwrap_or(window));
            (other.dimensions, limit)
        });
        Self {
            dimensions: Dimensions::new(quota.dimensions, Limit::new(quota.max_amount, window), overrides),
            cells: Cells::new(quota.max_cells),
            name: quota.name,
        }
    }
}

impl Native for MemQuota {
    const NAME: &'static str = "memquota";
    const ABOUT: &'static str = "refuses what is beyond a quota, counted in memory";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Quota;

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
