//! Which generations were rolled back, kept beyond the process.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// By adapter, then by what they are made of: why.
type Entries = BTreeMap<String, BTreeMap<String, String>>;

/// Keeps a text beyond the process.
pub type Keep = Box<dyn Fn(&[u8]) + Send + Sync>;

/// See the module's words. Written as JSON whenever it changes.
pub(in crate::runtime) struct Ledger {
    book: Mutex<Book>,
    keep: Keep,
}

struct Book {
    entries: Entries,
    /// By adapter, who writes.
    writers: BTreeMap<String, Writer>,
    /// The latest of all.
    last: Writer,
}

/// The generations of an adapter that are in force: those that they replaced may still be looked at, and write no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) struct Writer(u64);

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
            book: Mutex::new(Book {
                entries,
                writers: BTreeMap::new(),
                last: Writer(0),
            }),
            keep,
        }
    }

    /// Why this one of the adapter is out.
    pub fn get(&self, adapter: &str, key: &str) -> Option<String> {
        self.book().entries.get(adapter)?.get(key).cloned()
    }

    /// The adapter's writer from here on, in the place of an earlier one.
    pub fn writer(&self, adapter: &str) -> Writer {
        let mut book = self.book();
        book.last.0 += 1;
        let writer = book.last;
        book.writers.insert(adapter.to_owned(), writer);
        writer
    }

    /// Why those of the adapter that are `known` are out; `None`: they are in. `all`: there are no others. Asked for while nobody
    /// else writes, so that what is written last is what was known last; not at all, if there is another writer.
    pub fn set(
        &self,
        adapter: &str,
        writer: Writer,
        known: impl FnOnce() -> BTreeMap<String, Option<String>>,
        all: bool,
    ) {
        let mut book = self.book();
        if book.writers.get(adapter) != Some(&writer) {
            return;
        }
        let mut out = match book.entries.get(adapter) {
            Some(before) if !all => before.clone(),
            _ => BTreeMap::new(),
        };
        for (key, why) in known() {
            match why {
                Some(why) => _ = out.insert(key, why),
                None => _ = out.remove(&key),
            }
        }
        self.write(&mut book, adapter, out);
    }

    /// The adapter is gone, and nobody writes for it.
    pub fn forget(&self, adapter: &str) {
        let mut book = self.book();
        book.writers.remove(adapter);
        self.write(&mut book, adapter, BTreeMap::new());
    }

    fn write(&self, book: &mut Book, adapter: &str, out: BTreeMap<String, String>) {
        let before = book.entries.get(adapter);
        if before.map_or(out.is_empty(), |before| *before == out) {
            return;
        }
        match out.is_empty() {
            true => drop(book.entries.remove(adapter)),
            false => drop(book.entries.insert(adapter.to_owned(), out)),
        }
        match serde_json::to_vec(&book.entries) {
            Ok(text) => (self.keep)(&text),
            Err(error) => tracing::error!(%error, "which generations were rolled back is not kept"),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
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
        let known = |why: Option<&str>| {
            let known = BTreeMap::from([("key".to_owned(), why.map(str::to_owned))]);
            || known
        };
        let ledger = Ledger::new(b"", keep(&kept));
        let first = ledger.writer("shop/auth");
        ledger.set("shop/auth", first, known(None), true);
        ledger.set("shop/auth", first, known(Some("it trapped")), true);
        ledger.set("shop/auth", first, known(Some("it trapped")), true);
        let (text, times) = kept.lock().unwrap().clone();
        assert_eq!(times, 1);
        let again = Ledger::new(&text, keep(&kept));
        let (other, second) = (again.writer("shop/other"), again.writer("shop/auth"));
        assert_eq!(again.get("shop/auth", "key").as_deref(), Some("it trapped"));
        assert_eq!(again.get("shop/auth", "other"), None);
        again.set("shop/auth", second, BTreeMap::new, false);
        again.set("shop/auth", other, BTreeMap::new, true);
        assert_eq!(again.get("shop/auth", "key").as_deref(), Some("it trapped"));
        again.set("shop/auth", second, BTreeMap::new, true);
        assert_eq!(kept.lock().unwrap().0, b"{}");
        again.forget("shop/auth");
        again.set("shop/auth", second, known(Some("it trapped")), true);
        assert_eq!(kept.lock().unwrap().clone(), (b"{}".to_vec(), 2));
        assert_eq!(Ledger::new(b"[", keep(&kept)).get("shop/auth", "key"), None);
    }
}
