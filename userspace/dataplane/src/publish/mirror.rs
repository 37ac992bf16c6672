//! One kernel table of versioned values, and what is known to be in it.
//!
//! A table has room for so many keys: those of the generation in force, and those of the next one beside them until it is.

use std::{collections::HashMap, hash::Hash};

use aya::{
    Pod,
    maps::{HashMap as KernelMap, LpmTrie, MapData, MapError, lpm_trie},
};
use weft_abi::{Addr, Versioned};

use super::map_error;
use crate::{
    error::DataplaneError,
    loader::pin_name,
    tables::{Delta, Prefix},
};

#[cfg(test)]
mod tests;

/// What a table is written and read by, whatever its kind.
pub trait Backing<K, V> {
    /// Writes one value, over an older one if there is one.
    fn put(&mut self, key: &K, value: Versioned<V>) -> Result<(), MapError>;
    /// Removes one; gone already is as good.
    fn delete(&mut self, key: &K);
    /// Everything in it.
    fn all(&self) -> Result<Vec<(K, Versioned<V>)>, MapError>;
}

impl<K: Pod, V> Backing<K, V> for KernelMap<MapData, K, Versioned<V>>
where
    Versioned<V>: Pod,
{
    fn put(&mut self, key: &K, value: Versioned<V>) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn delete(&mut self, key: &K) {
        let _ = self.remove(key);
    }

    fn all(&self) -> Result<Vec<(K, Versioned<V>)>, MapError> {
        self.iter().collect()
    }
}

impl<V> Backing<Prefix, V> for LpmTrie<MapData, Addr, Versioned<V>>
where
    Versioned<V>: Pod,
{
    fn put(&mut self, key: &Prefix, value: Versioned<V>) -> Result<(), MapError> {
        self.insert(&lpm_trie::Key::new(key.bits, key.addr), value, 0)
    }

    fn delete(&mut self, key: &Prefix) {
        let _ = self.remove(&lpm_trie::Key::new(key.bits, key.addr));
    }

    fn all(&self) -> Result<Vec<(Prefix, Versioned<V>)>, MapError> {
        let entry = |(key, value): (lpm_trie::Key<Addr>, Versioned<V>)| {
            let key = Prefix {
                bits: key.prefix_len(),
                addr: key.data(),
            };
            (key, value)
        };
        self.iter().map(|found| found.map(entry)).collect()
    }
}

/// One table and its contents under the generation in force.
pub struct Mirror<M, K, V> {
    name: &'static str,
    map: M,
    /// Entries that it holds at most.
    room: usize,
    current: HashMap<K, V>,
}

/// Whether what is in a table and what is to be in it fit beside each other.
pub fn fits<K: Eq + Hash, V>(
    name: &'static str,
    room: usize,
    current: &HashMap<K, V>,
    desired: &HashMap<K, V>,
) -> Result<(), DataplaneError> {
    let leaving = current.keys().filter(|key| !desired.contains_key(key)).count();
    has_room(name, room, desired.len() + leaving, leaving)
}

fn has_room(name: &'static str, room: usize, needed: usize, leaving: usize) -> Result<(), DataplaneError> {
    if needed <= room {
        return Ok(());
    }
    Err(DataplaneError::Full {
        map: pin_name(name),
        room,
        needed,
        leaving,
    })
}

/// What staging did: values written, keys that are absent from the next generation on.
pub struct Staged<K> {
    pub changed: usize,
    pub removed: Vec<K>,
}

impl<K> Default for Staged<K> {
    fn default() -> Self {
        Self {
            changed: 0,
            removed: Vec::new(),
        }
    }
}

impl<M, K, V> Mirror<M, K, V>
where
    M: Backing<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + Default + PartialEq,
{
    /// Takes over a (possibly pinned) table with what is in it.
    pub fn adopt(name: &'static str, map: M, room: usize, generation: u64) -> Result<Self, DataplaneError> {
        let mut mirror = Self {
            name,
            map,
            room,
            current: HashMap::new(),
        };
        mirror.read(generation)?;
        Ok(mirror)
    }

    /// Takes what is in the table under `generation` for what is known to be there.
    pub fn read(&mut self, generation: u64) -> Result<(), DataplaneError> {
        let mut current = HashMap::new();
        let mut stale = Vec::new();
        for (key, value) in self.map.all().map_err(map_error(self.name, "read"))? {
            let now = *value.at(generation);
            // A daemon that died between staging and flipping, or before it removed what was absent.
            if now == V::default() || value.since > generation {
                stale.push((key, now));
            }
            if now != V::default() {
                current.insert(key, now);
            }
        }
        self.current = current;
        for (key, now) in stale {
            if now == V::default() {
                self.settle(vec![key]);
            } else {
                let value = Versioned {
                    since: generation,
                    current: now,
                    previous: now,
                };
                self.map.put(&key, value).map_err(map_error(self.name, "write"))?;
            }
        }
        Ok(())
    }

    /// Whether this is in the table.
    pub fn is(&self, desired: &HashMap<K, V>) -> bool {
        self.current == *desired
    }

    /// Whether the table is as it would be after this.
    pub fn is_after(&self, delta: &Delta<K, V>) -> bool {
        delta.iter().all(|(key, value)| self.current.get(key) == value.as_ref())
    }

    /// Whether [`Mirror::stage`] finds room for this. Writes nothing.
    pub fn fits(&self, desired: &HashMap<K, V>) -> Result<(), DataplaneError> {
        fits(self.name, self.room, &self.current, desired)
    }

    /// Whether [`Mirror::stage_delta`] finds room for this. Writes nothing.
    pub fn fits_delta(&self, delta: &Delta<K, V>) -> Result<(), DataplaneError> {
        let (mut coming, mut leaving) = (0, 0);
        for (key, value) in delta {
            match (self.current.contains_key(key), value) {
                (false, Some(_)) => coming += 1,
                (true, None) => leaving += 1,
                (true, Some(_)) | (false, None) => {}
            }
        }
        has_room(self.name, self.room, self.current.len() + coming, leaving)
    }

    /// Writes what differs, to hold from `next` on.
    pub fn stage(&mut self, desired: HashMap<K, V>, next: u64) -> Result<Staged<K>, DataplaneError> {
        let mut staged = Staged::default();
        for (key, value) in &desired {
            self.write(*key, Some(*value), next, &mut staged)?;
        }
        let current = self.current.keys();
        let gone: Vec<K> = current.filter(|key| !desired.contains_key(key)).copied().collect();
        for key in gone {
            self.write(key, None, next, &mut staged)?;
        }
        self.current = desired;
        Ok(staged)
    }

    /// The same where it is known what may differ.
    pub fn stage_delta(&mut self, delta: Delta<K, V>, next: u64) -> Result<Staged<K>, DataplaneError> {
        let mut staged = Staged::default();
        for (key, value) in &delta {
            self.write(*key, *value, next, &mut staged)?;
        }
        for (key, value) in delta {
            match value {
                Some(value) => self.current.insert(key, value),
                None => self.current.remove(&key),
            };
        }
        Ok(staged)
    }

    /// Writes one value if it differs. An absent one is all zero.
    fn write(&mut self, key: K, value: Option<V>, next: u64, staged: &mut Staged<K>) -> Result<(), DataplaneError> {
        let before = self.current.get(&key).copied();
        if before == value {
            return Ok(());
        }
        let versions = Versioned {
            since: next,
            current: value.unwrap_or_default(),
            previous: before.unwrap_or_default(),
        };
        self.map
            .put(&key, versions)
            .map_err(map_error(self.name, "write (is the table full?)"))?;
        staged.changed += 1;
        if value.is_none() {
            staged.removed.push(key);
        }
        Ok(())
    }

    /// Takes back what was staged for a generation that will not come: the kernel's values are read and put right.
    pub fn unstage(&mut self, next: u64) {
        let all = self.map.all().unwrap_or_default();
        for (key, value) in all.iter().filter(|(_, value)| value.since == next) {
            if value.previous == V::default() {
                self.map.delete(key);
            } else {
                let before = Versioned {
                    since: 0,
                    current: value.previous,
                    previous: value.previous,
                };
                let _ = self.map.put(key, before);
            }
        }
        self.current = all
            .into_iter()
            .map(|(key, value)| {
                (
                    key,
                    if value.since == next {
                        value.previous
                    } else {
                        value.current
                    },
                )
            })
            .filter(|(_, value)| *value != V::default())
            .collect();
    }

    /// Removes keys that no generation in force needs.
    pub fn settle(&mut self, removed: Vec<K>) {
        for key in removed {
            self.map.delete(&key);
        }
    }
}
