//! Which generations were rolled back, kept beyond the process.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// By adapter, then by what they are made of: why.
type Entries = BTreeMap<String, BTreeMap<String, String>>;

/// Keeps a text beyond the process.
pub type Keep = Box<dyn Fn(&[u8]) + Send + Sync>;

/// See the module's words. Written as JSON whenever it changes.
pub(in crate::runtime) struct Ledger {
    entries: Mutex<Entries>,
    keep: Keep,
}

// === impl Ledger ===

impl Ledger {
    /// `kept` is what `keep` was told last; what cannot be read counts as nothing.
    pub fn new(kept: &[u8], keep: Keep) -> Self {
        let entries = if kept.is_empty() {
            Entries::default()
        } else {
            serde_json::from_slice(kept).unwrap_or_else(|error| {
                tracing::warn!(%error, "which generations were rolled back cannot be read: none was");
                Entries::default()
            })
        };
        Self {
            entries: Mutex::new(entries),
            keep,
        }
    }

    /// Why this one of the adapter is out.
    pub fn get(&self, adapter: &str, key: &str) -> Option<String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(adapter)?.get(key).cloned()
    }

    /// Why those of the adapter that are `known` are out; `None`: they are in. `all`: there are no others.
    pub fn set(&self, adapter: &str, known: BTreeMap<String, Option<String>>, all: bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.get(adapter).cloned().unwrap_or_default();
        let mut out = if all { BTreeMap::new() } else { before.clone() };
        for (key, why) in known {
            match why {
                Some(why) => _ = out.insert(key, why),
                None => _ = out.remove(&key),
            }
        }
        if before == out {
            return;
        }
        match out.is_empty() {
            true => drop(entries.remove(adapter)),
            false => drop(entries.insert(adapter.to_owned(), out)),
        }
        match serde_json::to_vec(&*entries) {
            Ok(text) => (self.keep)(&text),
            Err(error) => tracing::error!(%error, "which generations were rolled back is not kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_was_kept_is_known_again_and_garbage_is_nothing() {
        let kept = Arc::new(Mutex::new((Vec::new(), 0)));
        let keep = |kept: &Arc<Mutex<(Vec<u8>, u32)>>| -> Keep {
            let kept = Arc::clone(kept);
            Box::new(move |text| {
                let mut kept = kept.lock().unwrap();
                (kept.0, kept.1) = (text.to_vec(), kept.1 + 1);
            })
        };
        let known = |why: Option<&str>| BTreeMap::from([("key".to_owned(), why.map(str::to_owned))]);
        let ledger = Ledger::new(b"", keep(&kept));
        ledger.set("shop/auth", known(None), true);
        ledger.set("shop/auth", known(Some("it trapped")), true);
        ledger.set("shop/auth", known(Some("it trapped")), true);
        let (text, times) = kept.lock().unwrap().clone();
        assert_eq!(times, 1);
        let again = Ledger::new(&text, keep(&kept));
        assert_eq!(again.get("shop/auth", "key").as_deref(), Some("it trapped"));
        assert_eq!(again.get("shop/auth", "other"), None);
        again.set("shop/auth", BTreeMap::new(), false);
        assert_eq!(again.get("shop/auth", "key").as_deref(), Some("it trapped"));
        again.set("shop/auth", BTreeMap::new(), true);
        assert_eq!(kept.lock().unwrap().0, b"{}");
        assert_eq!(Ledger::new(b"[", keep(&kept)).get("shop/auth", "key"), None);
    }
}
