//! Compiled modules of this process, by digest: who loads one that is in use, or was until recently, waits for no compiler.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
};

use super::module::{Digest, Loaded};

/// Modules that stay compiled when nobody uses them any more, the latest ones: back to the version of before, and forth again. More
/// keep more memory for what may never come again.
const RECENT: usize = 4;

/// The same in bytes of machine code, all together: modules of the Rust SDK have about one MiB, those of Go many.
const RECENT_BYTES: usize = 16 << 20;

/// Modules that may be wanted again.
pub(super) struct Known {
    in_use: HashMap<Digest, Weak<Loaded>>,
    /// The latest first, also those that are in use.
    recent: VecDeque<Arc<Loaded>>,
    /// What these may have together.
    bytes: usize,
}

/// Those of this process.
pub(super) fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(|| Mutex::new(Known::new(RECENT_BYTES)));
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Known ===

impl Known {
    fn new(bytes: usize) -> Self {
        Self {
            in_use: HashMap::new(),
            recent: VecDeque::new(),
            bytes,
        }
    }

    pub fn find(&mut self, digest: Digest) -> Option<Arc<Loaded>> {
        let loaded = self.in_use.get(&digest)?.upgrade()?;
        self.wanted(&loaded);
        Some(loaded)
    }

    pub fn keep(&mut self, loaded: &Arc<Loaded>) {
        self.wanted(loaded);
        self.in_use.retain(|_, module| module.strong_count() > 0);
        self.in_use.insert(loaded.digest, Arc::downgrade(loaded));
    }

    /// Makes it the latest.
    fn wanted(&mut self, loaded: &Arc<Loaded>) {
        self.recent.retain(|recent| recent.digest != loaded.digest);
        if loaded.size() > self.bytes {
            return;
        }
        self.recent.push_front(Arc::clone(loaded));
        self.recent.truncate(RECENT);
        while self.recent.iter().map(|recent| recent.size()).sum::<usize>() > self.bytes {
            self.recent.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of its own for each number.
    fn loaded(number: u8) -> Arc<Loaded> {
        let text = r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")))"#;
        let mut bytes = wat::parse_str(text).expect("WebAssembly as text");
        bytes.extend_from_slice(&[0, 3, 1, b'n', number]);
        Arc::new(Loaded::new(&bytes, Digest::of(&bytes)).expect("a proxy-wasm module"))
    }

    #[test]
    fn the_latest_modules_stay_compiled_and_older_ones_while_they_are_used() {
        let mut known = Known::new(RECENT_BYTES);
        let used = loaded(0);
        known.keep(&used);
        let later: Vec<Digest> = (1..=4)
            .map(|number| {
                let loaded = loaded(number);
                known.keep(&loaded);
                loaded.digest
            })
            .collect();
        assert!(later.iter().all(|digest| known.find(*digest).is_some()));
        // That makes it one of the latest, in the place of the one that nobody asked for since.
        assert!(known.find(used.digest).is_some());
        assert!(known.find(later[0]).is_none());
        drop(used);
        known.keep(&loaded(5));
        assert_eq!(known.recent.len(), RECENT);
        assert_eq!(known.in_use.len(), RECENT, "what is gone is forgotten");
    }

    #[test]
    fn what_nobody_uses_is_bounded_in_bytes() {
        let first = loaded(1);
        let mut known = Known::new(first.size() * 2);
        known.keep(&first);
        let digest = first.digest;
        drop(first);
        known.keep(&loaded(2));
        assert!(known.find(digest).is_some(), "both fit");
        known.keep(&loaded(3));
        assert_eq!(known.recent.len(), 2);
        let mut small = Known::new(1);
        let large = loaded(1);
        small.keep(&large);
        assert!(small.recent.is_empty() && small.find(digest).is_some());
    }
}
