//! Which objects were replaced of late: for whoever knows what was in force before and wants no more than what is new.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::Store;
use crate::resource::{Key, Object};

/// Replaced versions that are kept; who is further behind has to look at everything.
pub const MAX_CHANGES: usize = 1_024;

/// Bytes of text that these have together, at most: about what they cost.
pub const MAX_CHANGED_BYTES: usize = 4 << 20;

/// An object in force, and the version that was in force before it.
#[derive(Debug, Clone)]
pub struct Change {
    pub before: Arc<Object>,
    pub now: Arc<Object>,
}

/// The log. What it does not tell is older than `reach`.
#[derive(Debug, Default)]
pub(super) struct Changes {
    replaced: VecDeque<Replaced>,
    /// Under this revision there was something that is not told by replaced versions.
    reach: u64,
    /// Of the texts in `replaced`.
    bytes: usize,
}

#[derive(Debug)]
struct Replaced {
    /// Under which another version took its place.
    revision: u64,
    key: Key,
    before: Arc<Object>,
}

// === impl Store ===

impl Store {
    /// What another version of is in force now than under an earlier [`Store::revision`], each once, by kind, namespace and name.
    ///
    /// `None`: this is not all that is new since, or it was too long ago ([`MAX_CHANGES`], [`MAX_CHANGED_BYTES`]). An object came
    /// or went, or one is refused or waits for another, or was or did.
    pub fn changed_since(&self, revision: u64) -> Option<Vec<Change>> {
        let mut oldest: BTreeMap<&Key, &Arc<Object>> = BTreeMap::new();
        for replaced in self.changes.since(revision)? {
            oldest.entry(&replaced.key).or_insert(&replaced.before);
        }
        let change = |(key, before): (&Key, &Arc<Object>)| {
            let now = Arc::clone(self.in_force.get(key)?);
            let before = Arc::clone(before);
            Some(Change { before, now })
        };
        oldest.into_iter().map(change).collect()
    }
}

// === impl Changes ===

impl Changes {
    pub fn note(&mut self, revision: u64, key: &Key, before: Arc<Object>) {
        self.bytes += before.text.len();
        self.replaced.push_back(Replaced {
            revision,
            key: key.clone(),
            before,
        });
        while self.replaced.len() > MAX_CHANGES || self.bytes > MAX_CHANGED_BYTES {
            let Some(oldest) = self.replaced.pop_front() else {
                break;
            };
            self.bytes -= oldest.before.text.len();
            self.reach = oldest.revision;
        }
    }

    /// Under this revision something happened that replaced versions do not tell.
    pub fn cut(&mut self, revision: u64) {
        *self = Self {
            reach: revision,
            ..Self::default()
        };
    }

    /// In the order in which they were replaced.
    fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Replaced>> {
        let after = move |replaced: &&Replaced| replaced.revision > revision;
        (revision >= self.reach).then(|| self.replaced.iter().filter(after))
    }
}
