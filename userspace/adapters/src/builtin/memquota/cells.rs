//! The counts of one quota: one window a combination of dimensions, shared by all workers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::window::{Limit, Window};

/// Locks that workers spread over. More than cores, so that two seldom meet.
const SHARDS: usize = 32;

#[derive(Debug)]
pub(super) struct Cells {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    max_per_shard: usize,
}

#[derive(Debug, Default)]
struct Shard {
    windows: HashMap<Box<str>, Window>,
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
    /// A full shard first forgets idle windows, then lets all further keys share one window: made-up keys neither take
    /// memory nor get more than one honest key would.
    ///
    /// # Errors
    /// Exhausted: nanoseconds until one comes back.
    pub fn take(&self, key: &str, now: u64, limit: impl Fn() -> Limit) -> Result<(), u64> {
        let mut shard = self.shard(key);
        if let Some(window) = shard.windows.get_mut(key) {
            return window.take(now);
        }
        if shard.windows.len() >= self.max_per_shard && !shard.sweep(now) {
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

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
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
    /// At most this often, in nanoseconds: it looks at every window.
    const SWEEP_INTERVAL: u64 = 100_000_000;

    /// Forgets idle windows. Whether there is room now.
    fn sweep(&mut self, now: u64) -> bool {
        if self.swept != 0 && now.saturating_sub(self.swept) < Self::SWEEP_INTERVAL {
            return false;
        }
        self.swept = now;
        let before = self.windows.len();
        self.windows.retain(|_, window| !window.is_idle(now));
        self.windows.len() < before
    }
}
