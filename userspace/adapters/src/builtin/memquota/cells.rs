//! The counts of one quota: one window a combination of dimensions, shared by all workers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha512};

use super::window::{Limit, Window};

/// Locks that workers spread over. More than cores, so that two seldom meet.
const SHARDS: usize = 32;

/// Bytes of a digest, which stands for every key of this length or more: no shorter one equals it.
const DIGEST: usize = 64;

#[derive(Debug)]
pub(super) struct Cells {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    max_per_shard: usize,
}

#[derive(Debug, Default)]
struct Shard {
    windows: HashMap<Box<[u8]>, Window>,
    /// For all combinations that found the shard full.
    overflow: Option<Window>,
    /// When idle windows were last looked for, in nanoseconds.
    swept: u64,
}

// === impl Cells ===

impl Cells {
    pub fn new(max: usize) -> Self {
        let shards = SHARDS.min(max.max(1));
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            max_per_shard: max / shards,
        }
    }

    /// Takes one from the window of `key`, which `limit` tells when it is new.
    ///
    /// A shard forgets idle windows; a full one lets all further keys share one window: made-up keys, however long, neither take
    /// memory nor get more than one honest key would.
    ///
    /// # Errors
    /// Exhausted: nanoseconds until one comes back.
    pub fn take(&self, key: &str, now: u64, limit: impl Fn() -> Limit) -> Result<(), u64> {
        let digest;
        let key = if key.len() < DIGEST {
            key.as_bytes()
        } else {
            digest = Sha512::digest(key);
            &digest[..]
        };
        let mut shard = self.shard(key);
        if let Some(window) = shard.windows.get_mut(key) {
            return window.take(now);
        }
        if !shard.has_room(self.max_per_shard, now) {
            return shard.overflow.get_or_insert_with(|| Window::new(limit())).take(now);
        }
        let mut window = Window::new(limit());
        let taken = window.take(now);
        shard.windows.insert(key.into(), window);
        taken
    }

    /// How many combinations are counted apart.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).windows.len()).sum()
    }

    #[cfg(test)]
    pub fn key_bytes(&self) -> usize {
        let bytes = |shard| lock(shard).windows.keys().map(|key| key.len()).sum::<usize>();
        self.shards.iter().map(bytes).sum()
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(key);
        lock(&self.shards[(hash % self.shards.len() as u64) as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // No one panics while holding it; if so, counts are as good as before.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Shard ===

impl Shard {
    /// Idle windows are looked for at most this often, in nanoseconds: that looks at every window.
    const SWEEP_INTERVAL: u64 = 1_000_000_000;
    const SWEEP_INTERVAL_FULL: u64 = 100_000_000;

    /// Whether there is room for one more, once idle windows are forgotten.
    fn has_room(&mut self, max: usize, now: u64) -> bool {
        let interval = if self.windows.len() < max {
            Self::SWEEP_INTERVAL
        } else {
            Self::SWEEP_INTERVAL_FULL
        };
        if self.swept == 0 || now.saturating_sub(self.swept) >= interval {
            self.swept = now;
            self.windows.retain(|_, window| !window.is_idle(now));
        }
        self.windows.len() < max
    }
}
