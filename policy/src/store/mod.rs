//! The objects that are in force, from all files.
//!
//! Refusal is per object. A file says which version of which objects it *wants*; the store decides what is *in force*:
//!
//! - a document that is refused leaves the last good version of its object in force;
//! - a file that cannot be read as YAML leaves all its objects as they are;
//! - an object that a file no longer has goes, unless some document of that file could not be identified and may have
//!   been meant to be it;
//! - an object that is in two files belongs to the file that had it first; a claim that only one object may have (the
//!   split of a service) belongs to the object that had it first. The others wait, and step in when it is free.
//!
//! An order of the same files gives the same objects; nothing here looks at a clock or a disk.

mod changes;
mod index;
mod settle;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

pub use self::changes::{Change, MAX_CHANGED_BYTES, MAX_CHANGES};
use self::{
    changes::Changes,
    index::Index,
    slots::{Holders, Slots},
};
use crate::{
    decode::MAX_DIAGNOSTICS,
    diagnostic::{Diagnostic, Severity},
    pool::Pools,
    resource::{self, Claim, Key, Location, Object, Parsed},
    snapshot::{AdapterCatalog, ObjectRef},
};

/// See the module's words.
#[derive(Debug, Default)]
pub struct Store {
    adapters: Option<&'static dyn AdapterCatalog>,
    files: BTreeMap<Arc<str>, FileState>,
    holders: BTreeMap<Key, Holders>,
    in_force: BTreeMap<Key, Arc<Object>>,
    claims: BTreeMap<Claim, Key>,
    /// Objects whose wanted version waits for a claim.
    waiting: BTreeSet<Key>,
    index: Index,
    /// What objects have alike.
    pools: Pools,
    /// Grows with every file that is taken or forgotten.
    revision: u64,
    changes: Changes,
}

/// What a file wants.
#[derive(Debug, Default)]
struct FileState {
    slots: Slots,
    /// From reading the file.
    diagnostics: Vec<Diagnostic>,
}

#[derive(Debug, Clone)]
struct Slot {
    /// The last version that could be read; `None`: there was none.
    wanted: Option<Arc<Object>>,
    /// The version that the file has now is refused.
    refused: bool,
    line: u32,
    column: u32,
}

/// An object whose present version is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub object: Arc<ObjectRef>,
    pub reason: String,
    /// Where the version is that stays in force, if there is one.
    pub in_force: Option<Location>,
}

// === impl Store ===

impl Store {
    /// An empty one that refuses adapters which are not in this catalog, and parameters which they would not take.
    pub fn with_adapters(catalog: &'static dyn AdapterCatalog) -> Self {
        Self {
            adapters: Some(catalog),
            ..Self::default()
        }
    }

    /// Takes a file's content, new or changed. Gives all that is wrong with this file now.
    ///
    /// `path` only names the file: in messages, and to know it again.
    pub fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic> {
        let pools = mem::take(&mut self.pools);
        let parsed = resource::parse_file(path, bytes, self.adapters, pools);
        self.pools = parsed.pools;
        let mut state = FileState {
            slots: Slots::default(),
            diagnostics: parsed.diagnostics,
        };
        let old = self.files.remove(path).unwrap_or_default();
        match parsed.documents {
            // Unreadable: its objects stay as they are.
            None => {
                state.slots = old.slots.clone();
                for slot in state.slots.values_mut() {
                    slot.refused = true;
                }
            }
            Some(documents) => {
                let mut unidentified = Vec::new();
                for document in documents {
                    match document {
                        Parsed::Good(key, object) => {
                            let key = self.known(key);
                            let id = key.id.clone();
                            let object = Arc::new(Object { id, ..object });
                            let (line, column) = (object.location.line, object.location.column);
                            // Of a long file most are as they were: the same memory, and no change.
                            let known = old.slots.get(&key).and_then(|slot| slot.wanted.as_ref());
                            let known = known.filter(|known| known.is_written_as(&object)).cloned();
                            let slot = Slot {
                                wanted: Some(known.unwrap_or(object)),
                                refused: false,
                                line,
                                column,
                            };
                            state.take(path, key, slot);
                        }
                        Parsed::Refused(key, at) => {
                            let key = self.known(key);
                            let wanted = old.slots.get(&key).and_then(|slot| slot.wanted.clone());
                            state.take(
                                path,
                                key,
                                Slot {
                                    wanted,
                                    refused: true,
                                    line: at.line,
                                    column: at.column,
                                },
                            );
                        }
                        Parsed::Unidentified(facts) => unidentified.push(facts),
                        Parsed::Foreign => {}
                    }
                }
                for (key, slot) in old.slots.iter() {
                    if !state.slots.contains_key(key) && unidentified.iter().any(|facts| facts.fit(key)) {
                        state.slots.insert(
                            key.clone(),
                            Slot {
                                refused: true,
                                ..slot.clone()
                            },
                        );
                    }
                }
            }
        }
        self.replace(path, old, Some(state));
        self.file_diagnostics(path)
    }

    /// Forgets a file: its objects go.
    pub fn remove_file(&mut self, path: &str) {
        let old = self.files.remove(path).unwrap_or_default();
        self.replace(path, old, None);
    }

    /// A number that grows whenever a file is taken or forgotten: under the same one nothing has changed here.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All objects in force, by kind, namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.in_force.values()
    }

    /// The object in force with this name.
    pub fn object(&self, id: &ObjectRef) -> Option<&Arc<Object>> {
        let id = Arc::new(id.clone());
        let of_group = |group| self.in_force.get(&Key { group, id: id.clone() });
        resource::groups_of(&id.kind).find_map(of_group)
    }

    /// Names of all files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|path| &**path)
    }

    /// All that is wrong with all files now.
    pub fn diagnostics(&self) -> impl Iterator<Item = Diagnostic> {
        self.files.keys().flat_map(|path| self.file_diagnostics(path))
    }

    /// All that is wrong with a file now: with its text, and with its objects beside those of other files.
    pub fn file_diagnostics(&self, path: &str) -> Vec<Diagnostic> {
        let Some(state) = self.files.get(path) else {
            return Vec::new();
        };
        let mut found = state.diagnostics.clone();
        for (key, slot) in state.slots.iter() {
            if found.len() >= MAX_DIAGNOSTICS {
                break;
            }
            if let Some((reason, instead)) = self.conflict(path, key) {
                found.push(Diagnostic {
                    severity: Severity::Error,
                    file: path.to_owned(),
                    line: slot.line,
                    column: slot.column,
                    object: Some((*key.id).clone()),
                    field: String::new(),
                    reason,
                    instead: Some(instead.to_owned()),
                });
            }
        }
        found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        found
    }

    /// Objects whose present version is refused, or waits for another object to go.
    pub fn refusals(&self) -> impl Iterator<Item = Refusal> {
        self.index.refused.union(&self.waiting).filter_map(|key| {
            let path = self.owner(key)?;
            let state = self.files.get(path)?;
            let reason = if state.slots.get(key)?.refused {
                let about_it = |d: &&Diagnostic| d.is_error() && d.object.as_ref() == Some(&*key.id);
                let of_file = state.diagnostics.iter().find(about_it).or_else(|| {
                    let mut errors = state.diagnostics.iter().filter(|d| d.is_error());
                    errors
                        .find(|d| d.object.is_none())
                        .or_else(|| state.diagnostics.iter().find(|d| d.is_error()))
                });
                of_file.map(Diagnostic::to_string).unwrap_or_default()
            } else {
                self.conflict(path, key)?.0
            };
            let in_force = self.in_force.get(key).map(|object| object.location.clone());
            Some(Refusal {
                object: key.id.clone(),
                reason,
                in_force,
            })
        })
    }

    /// The key as the store has it: of each object's name there is one.
    fn known(&self, key: Key) -> Key {
        let known = self.holders.get_key_value(&key).map(|(known, _)| known.clone());
        known.unwrap_or(key)
    }

    /// Why the object of this file is not in force, beyond what is wrong with its text.
    fn conflict(&self, path: &str, key: &Key) -> Option<(String, &'static str)> {
        let owner = self.owner(key)?;
        if owner != path {
            let slot = self.files.get(owner)?.slots.get(key)?;
            let reason = format!("the same object is in {owner}:{}:{} already", slot.line, slot.column);
            return Some((reason, "remove one of the two; the first one stays in force"));
        }
        if !self.waiting.contains(key) {
            return None;
        }
        let claim = self
            .files
            .get(path)?
            .slots
            .get(key)?
            .wanted
            .as_ref()?
            .spec
            .claim(&key.id)?;
        let holder = self.claims.get(&claim)?;
        let place = &self.in_force.get(holder)?.location;
        let reason = format!(
            "{} is {} already, in {}:{}:{}",
            claim.0, holder.id, place.file, place.line, place.column
        );
        Some((reason, "keep one of the two; the first one stays in force"))
    }
}

// === impl Slot ===

impl Slot {
    fn is(&self, other: &Self) -> bool {
        let version = |slot: &Self| slot.wanted.as_ref().map(Arc::as_ptr);
        version(self) == version(other)
            && (self.refused, self.line, self.column) == (other.refused, other.line, other.column)
    }
}

// === impl FileState ===

impl FileState {
    /// Whether both have the same objects, all of them readable: what changes between them are versions and nothing else.
    fn has_the_objects_of(&self, other: &Self) -> bool {
        let mut all = self.slots.values().chain(other.slots.values());
        self.slots.keys().eq(other.slots.keys()) && all.all(|slot| !slot.refused)
    }

    /// Whether both are the same, to the versions and to what is said about them.
    fn is(&self, other: &Self) -> bool {
        let both = || self.slots.values().zip(other.slots.values());
        self.slots.keys().eq(other.slots.keys())
            && both().all(|(one, other)| one.is(other))
            && self.diagnostics == other.diagnostics
    }

    /// Takes the first of the file's documents that are this object, and refuses the others.
    fn take(&mut self, path: &str, key: Key, slot: Slot) {
        let Some(first) = self.slots.get(&key) else {
            self.slots.insert(key, slot);
            return;
        };
        if self.diagnostics.len() >= MAX_DIAGNOSTICS {
            return;
        }
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            file: path.to_owned(),
            line: slot.line,
            column: slot.column,
            object: Some((*key.id).clone()),
            field: String::new(),
            reason: format!("the same object is in {path}:{}:{} already", first.line, first.column),
            instead: Some("remove one of the two; the first one stays in force".to_owned()),
        });
    }
}
