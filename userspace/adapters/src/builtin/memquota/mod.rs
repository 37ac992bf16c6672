//! Quota adapter that counts in this process's memory, as Mixer's `memquota`.
//!
//! See this folder's README for the page an operator reads.

use std::{fmt::Write, sync::Arc, time::Instant};

use http::{HeaderValue, StatusCode, header};
use weft_policy::ObjectRef;

use crate::{
    attribute::{Bag, Selector, TextBuffer},
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

/// Separates the values of dimensions in a key. No header, path or name has it.
const SEPARATOR: char = '\0';

/// Stands for a value that the request does not have, which is another thing than an empty one.
const ABSENT: char = '\u{1}';

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
    limit: Limit,
    dimensions: Vec<Selector>,
    overrides: Vec<Exception>,
    cells: Cells,
}

/// An override, in the order of the dimensions.
#[derive(Debug)]
struct Exception {
    values: Vec<Option<String>>,
    limit: Limit,
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
    pub fn cells(&self, quota: &str) -> Option<usize> {
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
            quota.key(bag, &mut key);
            if let Err(wait) = quota.cells.take(key.as_str(), now, || quota.limit_of(bag)) {
                return self.exhausted(&quota.name, wait);
            }
        }
        Checking::ALLOW
    }
}

// === impl Counted ===

impl Counted {
    fn new(quota: Quota) -> Self {
        let exception = |other: Override| Exception {
            limit: Limit::new(other.max_amount, other.valid_duration.unwrap_or(quota.valid_duration)),
            values: quota
                .dimensions
                .keys()
                .map(|name| other.dimensions.get(name).cloned())
                .collect(),
        };
        Self {
            limit: Limit::new(quota.max_amount, quota.valid_duration),
            overrides: quota.overrides.into_iter().map(exception).collect(),
            cells: Cells::new(quota.max_cells),
            dimensions: quota.dimensions.into_values().collect(),
            name: quota.name,
        }
    }

    fn key(&self, bag: &Bag<'_>, key: &mut TextBuffer) {
        for dimension in &self.dimensions {
            // Writing to the buffer cannot fail: it grows.
            let _ = match dimension.get(bag) {
                Some(value) => write!(key, "{value}{SEPARATOR}"),
                None => write!(key, "{ABSENT}{SEPARATOR}"),
            };
        }
    }

    /// Only asked for combinations that are new.
    fn limit_of(&self, bag: &Bag<'_>) -> Limit {
        let applies = |exception: &&Exception| {
            exception
                .values
                .iter()
                .zip(&self.dimensions)
                .all(|(wanted, dimension)| {
                    let Some(wanted) = wanted else { return true };
                    let mut buffer = TextBuffer::default();
                    dimension
                        .get(bag)
                        .is_some_and(|found| found.text(&mut buffer) == wanted)
                })
        };
        self.overrides
            .iter()
            .find(applies)
            .map_or(self.limit, |exception| exception.limit)
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
        Ok(Part::Check(Arc::new(Self::new(
            context.name,
            config,
            Some(context.object.clone()),
        )?)))
    }
}

#[cfg(test)]
mod tests;
