//! Verdicts of somebody who is far away, kept for a while: shared by all workers, bounded, and dead at once when the
//! configuration changes.
//!
//! Which attributes a verdict depends on only its giver knows, so the operator declares them. The key is their values,
//! behind those of `ALWAYS`, and each shard belongs to one generation of the configuration: whoever comes with a later
//! one empties it first, and what was asked under an earlier one is not kept.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;

use crate::{
    attribute::{Attribute, Bag, Selector, TextBuffer},
    duration,
    error::AdapterError,
    pipeline::CheckResult,
};

/// How long a verdict is good for, unless said otherwise. Mixer's was a minute, and users waited for policy to take effect.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// Most verdicts that are kept, unless said otherwise. Each takes as much as the values of its key and the headers and the body
/// of its answer.
pub const DEFAULT_MAX_ENTRIES: usize = 10_000;

/// Bound on `max_entries`.
pub const MAX_ENTRIES: usize = 1_000_000;

/// What every verdict depends on: one adapter may guard many services, and what is allowed at one is not at another.
const ALWAYS: [Attribute; 4] = [
    Attribute::DestinationNamespace,
    Attribute::DestinationService,
    Attribute::DestinationPort,
    Attribute::RequestHost,
];

/// Locks that workers spread over.
const SHARDS: usize = 16;

/// Parameters of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Everything that the verdict depends on, beside service, port and host. Requests that are equal in these get the same
    /// verdict.
    pub key: Vec<Selector>,
    /// Default [`DEFAULT_TTL`].
    #[serde(default = "default_ttl", deserialize_with = "duration::deserialize")]
    pub ttl: Duration,
    /// Default [`DEFAULT_MAX_ENTRIES`]; 1 to [`MAX_ENTRIES`].
    #[serde(default = "default_max_entries")]
    pub max_entries: usize,
}

/// How often it helped.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    pub hits: Counter,
    pub misses: Counter,
}

#[derive(Debug)]
pub(crate) struct Verdicts {
    config: CacheConfig,
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    metrics: CacheMetrics,
}

#[derive(Debug, Default)]
struct Shard {
    generation: u64,
    verdicts: HashMap<Box<str>, (CheckResult, Instant)>,
}

/// What a request's verdict is kept under.
#[derive(Debug)]
pub(crate) struct Key {
    generation: u64,
    text: Box<str>,
}

fn default_ttl() -> Duration {
    DEFAULT_TTL
}

fn default_max_entries() -> usize {
    DEFAULT_MAX_ENTRIES
}

// === impl CacheConfig ===

impl CacheConfig {
    pub(crate) fn validate(&self, adapter: &'static str) -> Result<(), AdapterError> {
        let wrong = |field, found: String, expected: &str| {
            Err(AdapterError::Config {
                adapter,
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        if self.key.is_empty() {
            return wrong(
                "cache.key",
                "[]".to_owned(),
                "the attributes that the verdict depends on, one at least",
            );
        }
        if self.ttl.is_zero() {
            return wrong("cache.ttl", "0s".to_owned(), "more than 0s, or no cache");
        }
        if !(1..=MAX_ENTRIES).contains(&self.max_entries) {
            return wrong("cache.max_entries", self.max_entries.to_string(), "1 to 1000000");
        }
        Ok(())
    }
}

// === impl Verdicts ===

impl Verdicts {
    pub fn new(config: CacheConfig, metrics: CacheMetrics) -> Self {
        let shards = SHARDS.min(config.max_entries);
        Self {
            config,
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            metrics,
        }
    }

    pub fn key(&self, bag: &Bag<'_>) -> Key {
        let mut text = TextBuffer::default();
        for attribute in ALWAYS {
            Selector::Attribute(attribute).write_key(bag, &mut text);
        }
        for selector in &self.config.key {
            // Every line counts: who is asked sees them all.
            selector.write_key(bag, &mut text);
        }
        Key {
            generation: bag.generation,
            text: text.as_str().into(),
        }
    }

    pub fn get(&self, key: &Key, now: Instant) -> Option<CheckResult> {
        let found = self.shard(key).and_then(|shard| {
            let (verdict, until) = shard.verdicts.get(&key.text)?;
            (now < *until).then(|| verdict.clone())
        });
        match found {
            Some(_) => self.metrics.hits.inc(),
            None => self.metrics.misses.inc(),
        };
        found
    }

    /// A full shard first forgets what has expired, and if that is nothing, everything.
    pub fn put(&self, key: Key, verdict: &CheckResult, now: Instant) {
        let Some(mut shard) = self.shard(&key) else { return };
        let most = self.config.max_entries / self.shards.len();
        if shard.verdicts.len() >= most && !shard.verdicts.contains_key(&key.text) {
            shard.verdicts.retain(|_, (_, until)| now < *until);
            if shard.verdicts.len() >= most {
                shard.verdicts.clear();
            }
        }
        // One that ends beyond the clock is not kept.
        if let Some(until) = now.checked_add(self.config.ttl) {
            shard.verdicts.insert(key.text, (verdict.clone(), until));
        }
    }

    /// Hits and misses.
    #[cfg(test)]
    pub fn looked_up(&self) -> (u64, u64) {
        (self.metrics.hits.get(), self.metrics.misses.get())
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap().verdicts.len())
            .sum()
    }

    /// The key's shard, emptied if it is of an earlier generation; `None`: it is of a later one.
    fn shard(&self, key: &Key) -> Option<MutexGuard<'_, Shard>> {
        let index = self.hasher.hash_one(&key.text) % self.shards.len() as u64;
        // Nothing panics under the lock but a failed allocation.
        let mut shard = self.shards[index as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shard.generation < key.generation {
            shard.generation = key.generation;
            shard.verdicts.clear();
        }
        (shard.generation == key.generation).then_some(shard)
    }
}

#[cfg(test)]
#[path = "verdicts/tests.rs"]
mod tests;
