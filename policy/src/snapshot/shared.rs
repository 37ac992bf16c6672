//! What one snapshot has in common with the next: clones share memory, and whoever changes one copies what it touches.
//!
//! A change of one endpoint's address makes a snapshot of 100,000 workloads from the one before it, so a clone must not walk
//! them: [`SharedVec`] and [`SharedMap`] keep their items in chunks, of which a change copies one. What such a change leaves
//! as it is stands in a [`Shared`].

use std::{
    cmp::Ordering,
    fmt, iter, mem,
    ops::{Deref, DerefMut, Index},
    slice,
    sync::Arc,
};

use serde::{Serialize, Serializer};

/// Items of a chunk: a clone of 100,000 items counts 400 references, and a change copies 256 items.
const CHUNK: usize = 256;

/// Shared as a whole, until one of those that share it changes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shared<T>(Arc<T>);

/// A list. Costs a division more than a `Vec` to look an item up.
pub struct SharedVec<T> {
    /// All but the last have [`CHUNK`] items; none is empty.
    chunks: Vec<Arc<Vec<T>>>,
}

/// A map in the order of its keys. Costs two binary searches to look one up.
pub struct SharedMap<K, V> {
    /// Not empty, in order; up to twice [`CHUNK`] items.
    chunks: Vec<Arc<Vec<(K, V)>>>,
}

/// Items of all chunks, in order.
pub struct Items<'a, T> {
    chunks: slice::Iter<'a, Arc<Vec<T>>>,
    items: slice::Iter<'a, T>,
}

// === impl Shared ===

impl<T> Shared<T> {
    /// Whether it is the same memory.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        Arc::ptr_eq(&a.0, &b.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> From<T> for Shared<T> {
    fn from(all: T) -> Self {
        Self(Arc::new(all))
    }
}

impl<A, T: FromIterator<A>> FromIterator<A> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = A>>(items: I) -> Self {
        Self(Arc::new(items.into_iter().collect()))
    }
}

impl<'a, T> IntoIterator for &'a Shared<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        let all: &'a T = &self.0;
        all.into_iter()
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

// === impl SharedVec ===

impl<T> SharedVec<T> {
    pub fn len(&self) -> usize {
        let before = self.chunks.len().saturating_sub(1);
        before * CHUNK + self.chunks.last().map_or(0, |last| last.len())
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    pub fn iter(&self) -> Items<'_, T> {
        Items::of(&self.chunks)
    }
}

impl<T: Clone> SharedVec<T> {
    /// For changing an item.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(index / CHUNK)?;
        Arc::make_mut(chunk).get_mut(index % CHUNK)
    }

    pub fn push(&mut self, item: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => Arc::make_mut(last).push(item),
            _ => self.chunks.push(Arc::new(vec![item])),
        }
    }
}

impl<T> Clone for SharedVec<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
        }
    }
}

impl<T> Default for SharedVec<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// # Panics
///
/// As with a slice, where there is no such item.
impl<T> Index<usize> for SharedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl<T> FromIterator<T> for SharedVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self { chunks: chunks(items) }
    }
}

impl<'a, T> IntoIterator for &'a SharedVec<T> {
    type Item = &'a T;
    type IntoIter = Items<'a, T>;

    fn into_iter(self) -> Items<'a, T> {
        self.iter()
    }
}

impl<T: Serialize> Serialize for SharedVec<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

// === impl SharedMap ===

impl<K: Ord, V> SharedMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let found = chunk.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        chunk.get(found).map(|(_, value)| value)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The item of this key, or else of the next one.
    pub fn first_from(&self, key: &K) -> Option<(&K, &V)> {
        let at = self.chunk_of(key);
        let before = self.chunks.get(at)?.partition_point(|(known, _)| known < key);
        // Behind all of its chunk it is the first of the next.
        let mut items = Items::of(self.chunks.get(at..)?).skip(before);
        items.next().map(|(key, value)| (key, value))
    }

    /// The chunk that has the key, if any has: the last one that does not begin after it.
    fn chunk_of(&self, key: &K) -> usize {
        let begins_before = |chunk: &Arc<Vec<(K, V)>>| chunk.first().is_some_and(|(first, _)| first <= key);
        self.chunks.partition_point(begins_before).saturating_sub(1)
    }
}

impl<K, V> SharedMap<K, V> {
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.into_iter()
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        Items::of(&self.chunks).map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        Items::of(&self.chunks).map(|(_, value)| value)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Gives what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(found) => chunk.get_mut(found).map(|(_, old)| mem::replace(old, value)),
            Err(place) => {
                chunk.insert(place, (key, value));
                if chunk.len() > 2 * CHUNK {
                    let rest = chunk.split_off(CHUNK);
                    self.chunks.insert(at + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Gives what was there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get_mut(at)?;
        let found = chunk.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        let chunk = Arc::make_mut(chunk);
        let (_, value) = chunk.remove(found);
        if chunk.is_empty() {
            self.chunks.remove(at);
        }
        Some(value)
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// Of several with one key the last counts.
impl<K: Ord, V> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        let mut items: Vec<(K, V)> = items.into_iter().collect();
        let order = |a: &(K, V), b: &(K, V)| a.0.cmp(&b.0);
        items.sort_by(order);
        items.dedup_by(|later, kept| {
            let same = order(later, kept) == Ordering::Equal;
            if same {
                mem::swap(later, kept);
            }
            same
        });
        Self { chunks: chunks(items) }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = iter::Map<Items<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;

    fn into_iter(self) -> Self::IntoIter {
        Items::of(&self.chunks).map(|(key, value)| (key, value))
    }
}

// === impl Items ===

impl<'a, T> Items<'a, T> {
    fn of(chunks: &'a [Arc<Vec<T>>]) -> Self {
        Self {
            chunks: chunks.iter(),
            items: [].iter(),
        }
    }
}

impl<'a, T> Iterator for Items<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.items.next() {
                return Some(item);
            }
            self.items = self.chunks.next()?.iter();
        }
    }
}

fn chunks<T>(items: impl IntoIterator<Item = T>) -> Vec<Arc<Vec<T>>> {
    let mut items = items.into_iter();
    let mut chunks = Vec::new();
    loop {
        let mut chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return chunks;
        }
        chunk.shrink_to_fit();
        chunks.push(Arc::new(chunk));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Chunks that two have together.
    fn together<T>(a: &[Arc<T>], b: &[Arc<T>]) -> usize {
        a.iter()
            .filter(|one| b.iter().any(|other| Arc::ptr_eq(one, other)))
            .count()
    }

    #[test]
    fn a_list_is_as_a_vec_and_a_change_copies_one_chunk() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let list: SharedVec<usize> = (0..len).collect();
            let mut pushed = SharedVec::default();
            (0..len).for_each(|item| pushed.push(item));
            for list in [&list, &pushed] {
                assert_eq!((list.len(), list.is_empty()), (len, len == 0));
                assert!(list.iter().copied().eq(0..len));
                assert!((0..len).all(|index| list.get(index) == Some(&index) && list[index] == index));
                assert_eq!(list.get(len), None);
            }
        }
        let before: SharedVec<usize> = (0..3 * CHUNK).collect();
        let mut after = before.clone();
        assert_eq!(together(&before.chunks, &after.chunks), 3);
        *after.get_mut(CHUNK).unwrap() = 7;
        assert_eq!((before[CHUNK], after[CHUNK]), (CHUNK, 7));
        assert_eq!(together(&before.chunks, &after.chunks), 2);
    }

    #[test]
    fn a_map_copies_the_chunk_that_a_change_touches() {
        let before: SharedMap<usize, usize> = (0..3 * CHUNK).map(|key| (key, key)).collect();
        let mut after = before.clone();
        after.insert(CHUNK, 7);
        after.remove(&(CHUNK + 1));
        assert_eq!((before.get(&CHUNK), after.get(&CHUNK)), (Some(&CHUNK), Some(&7)));
        assert_eq!((before.len(), after.len()), (3 * CHUNK, 3 * CHUNK - 1));
        assert_eq!(together(&before.chunks, &after.chunks), 2);
    }

    #[test]
    fn what_is_shared_is_copied_when_it_is_changed() {
        let before: Shared<Vec<u8>> = vec![1].into();
        let mut after = before.clone();
        assert!(Shared::ptr_eq(&before, &after));
        after.push(2);
        assert_eq!((&*before, &*after), (&vec![1], &vec![1, 2]));
    }

    proptest! {
        /// `None` removes. More keys than fit into a chunk, so that chunks split and go.
        #[test]
        fn a_map_is_as_a_btree_map(
            first in prop::collection::vec((0..2_000u16, any::<u8>()), 0..1_500),
            edits in prop::collection::vec((0..2_000u16, prop::option::of(any::<u8>())), 0..1_500),
        ) {
            let mut map: SharedMap<u16, u8> = first.iter().copied().collect();
            let mut known: BTreeMap<u16, u8> = first.into_iter().collect();
            let kept = (map.clone(), known.clone());
            for (key, value) in edits {
                let both = match value {
                    Some(value) => (map.insert(key, value), known.insert(key, value)),
                    None => (map.remove(&key), known.remove(&key)),
                };
                prop_assert_eq!(both.0, both.1);
            }
            for (map, known) in [&kept, &(map, known)] {
                prop_assert!(map.iter().eq(known));
                prop_assert!(map.keys().eq(known.keys()) && map.values().eq(known.values()));
                prop_assert_eq!((map.len(), map.is_empty()), (known.len(), known.is_empty()));
                prop_assert!((0..2_000).all(|key| map.get(&key) == known.get(&key)));
                prop_assert!((0..2_001).all(|key| map.first_from(&key) == known.range(key..).next()));
                prop_assert!(map.chunks.iter().all(|chunk| (1..=2 * CHUNK).contains(&chunk.len())));
            }
        }
    }
}
