//! Tokens that were found right, so that a client's next request costs a look-up instead of a signature.
//!
//! It belongs to one set of keys and is forgotten with it: a key that is withdrawn takes its tokens along. Wrong tokens are
//! not remembered: anybody can make them up.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::token::Verified;

/// Most tokens that are remembered. None is longer than [`MAX_TOKEN`](super::MAX_TOKEN): 128 MiB an adapter at worst, and the
/// headers that are made of their claims.
pub const MAX_CACHED_TOKENS: usize = 8192;

const SHARDS: usize = 16;

#[derive(Debug)]
pub(super) struct Cache {
    shards: [Mutex<HashMap<Box<str>, Arc<Verified>>>; SHARDS],
    hasher: RandomState,
}

// === impl Cache ===

impl Default for Cache {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
        }
    }
}

impl Cache {
    pub fn get(&self, token: &str) -> Option<Arc<Verified>> {
        self.shard(token).get(token).cloned()
    }

    /// A full shard first forgets what has expired, and if that is nothing, everything.
    pub fn put(&self, token: &str, verified: Arc<Verified>, now: Duration, skew: Duration) {
        let mut shard = self.shard(token);
        if shard.len() >= MAX_CACHED_TOKENS / SHARDS {
            shard.retain(|_, verified| !verified.has_expired(now, skew));
            if shard.len() >= MAX_CACHED_TOKENS / SHARDS {
                shard.clear();
            }
        }
        shard.insert(token.into(), verified);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    fn shard(&self, token: &str) -> MutexGuard<'_, HashMap<Box<str>, Arc<Verified>>> {
        let hash = self.hasher.hash_one(token);
        self.shards[(hash % SHARDS as u64) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
