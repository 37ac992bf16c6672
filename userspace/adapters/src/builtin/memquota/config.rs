//! Parameters of the in-memory quota, named as Mixer's `memquota` names them.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::TICKS;
use crate::{attribute::Selector, dimensions, duration, error::AdapterError};

/// Cells a quota may have, unless said otherwise. A cell takes about 200 bytes, however long its values: 13 MB a quota.
pub const DEFAULT_MAX_CELLS: usize = 65_536;

/// Shortest window: a tick is a twentieth of it, and shorter ticks than 0.5 ms mean nothing to a clock read per request.
pub const MIN_VALID_DURATION: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Every request is charged to each of them, in order, until one is exhausted.
    pub quotas: Vec<Quota>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub name: String,
    /// Requests within the window, for each combination of dimensions.
    pub max_amount: u32,
    /// Length of the rolling window.
    #[serde(deserialize_with = "duration::deserialize")]
    pub valid_duration: Duration,
    /// What is counted apart, by names of your choice: `{"user": "request.headers[x-user]"}`. None: one count for all.
    #[serde(default)]
    pub dimensions: BTreeMap<String, Selector>,
    /// Other limits for some values; the first that applies counts.
    #[serde(default)]
    pub overrides: Vec<Override>,
    /// Bound on the number of combinations that are counted apart. Default [`DEFAULT_MAX_CELLS`].
    #[serde(default = "default_max_cells")]
    pub max_cells: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Values of dimensions, by their names; all must be equal, those left out may be anything.
    pub dimensions: BTreeMap<String, String>,
    pub max_amount: u32,
    /// Default: the quota's.
    #[serde(default, deserialize_with = "duration::optional")]
    pub valid_duration: Option<Duration>,
}

fn default_max_cells() -> usize {
    DEFAULT_MAX_CELLS
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        let wrong = |field, found: String, expected: String| {
            Err(AdapterError::Config {
                adapter: "memquota",
                field,
                found,
                expected,
            })
        };
        if self.quotas.is_empty() {
            return wrong("quotas", "[]".to_owned(), "at least one quota".to_owned());
        }
        for quota in &self.quotas {
            let name = &quota.name;
            let windows = quota.overrides.iter().filter_map(|other| other.valid_duration);
            if let Some(short) = windows
                .chain([quota.valid_duration])
                .find(|window| *window < MIN_VALID_DURATION)
            {
                let expected =
                    format!("{MIN_VALID_DURATION:?} or more in quota `{name}` (it is counted in {TICKS} ticks)");
                return wrong("valid_duration", format!("{short:?}"), expected);
            }
            if quota.max_cells == 0 {
                return wrong("max_cells", "0".to_owned(), format!("1 or more in quota `{name}`"));
            }
            let named = quota.overrides.iter().flat_map(|other| other.dimensions.keys());
            if let Some((unknown, known)) = dimensions::unknown(&quota.dimensions, named) {
                let expected = format!("a dimension of quota `{name}` ({known})");
                return wrong("overrides.dimensions", unknown, expected);
            }
        }
        Ok(())
    }
}
