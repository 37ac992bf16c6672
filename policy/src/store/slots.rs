//! The objects of a file, and the files of an object: as small as can be where there is one, for there is one of each mostly.

use std::{slice, sync::Arc};

use super::Slot;
use crate::resource::Key;

/// What a file wants of each of its objects, in order. A list, for a tree has room for eleven where there is one.
///
/// An object that comes before others moves them: a file of 10,000 objects, the most there are, 48 bytes each.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Vec<(Key, Slot)>);

/// Files that have an object, in the order in which they came to have it.
#[derive(Debug)]
pub(super) enum Holders {
    One(Arc<str>),
    Several(Vec<Arc<str>>),
}

// === impl Slots ===

impl Slots {
    pub fn get(&self, key: &Key) -> Option<&Slot> {
        let at = self.find(key).ok()?;
        self.0.get(at).map(|(_, slot)| slot)
    }

    pub fn contains_key(&self, key: &Key) -> bool {
        self.find(key).is_ok()
    }

    /// Puts it in the place of one that is there.
    pub fn insert(&mut self, key: Key, slot: Slot) {
        match self.find(&key) {
            Ok(at) => self.0[at].1 = slot,
            Err(at) => self.0.insert(at, (key, slot)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Slot)> {
        self.0.iter().map(|(key, slot)| (key, slot))
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().map(|(_, slot)| slot)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.0.iter_mut().map(|(_, slot)| slot)
    }

    pub fn into_keys(self) -> impl Iterator<Item = Key> {
        self.0.into_iter().map(|(key, _)| key)
    }

    pub fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }

    /// Where it is, or belongs.
    fn find(&self, key: &Key) -> Result<usize, usize> {
        match self.0.last() {
            // Of a file that is in order.
            Some((last, _)) if last < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(own, _)| own.cmp(key)),
        }
    }
}

// === impl Holders ===

impl Holders {
    pub fn all(&self) -> &[Arc<str>] {
        match self {
            Self::One(path) => slice::from_ref(path),
            Self::Several(paths) => paths,
        }
    }

    /// Comes last, unless it is there.
    pub fn add(&mut self, path: &Arc<str>) {
        if !self.all().contains(path) {
            let paths = self.all().iter().chain([path]);
            *self = Self::Several(paths.cloned().collect());
        }
    }

    /// Those that are left without this one; `None`: nobody.
    pub fn without(&self, path: &str) -> Option<Self> {
        let others = self.all().iter().filter(|other| ***other != *path);
        let mut others: Vec<Arc<str>> = others.cloned().collect();
        match others.len() {
            0 | 1 => others.pop().map(Self::One),
            _ => Some(Self::Several(others)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::snapshot::ObjectRef;

    fn key(name: &str) -> Key {
        let id = ObjectRef {
            kind: "Service".into(),
            namespace: None,
            name: name.to_owned(),
        };
        Key {
            group: "",
            id: Arc::new(id),
        }
    }

    #[test]
    fn slots_are_what_a_map_would_be() {
        let (mut slots, mut map) = (Slots::default(), BTreeMap::new());
        for (line, name) in (1..).zip(["m", "z", "a", "m", "b", "zz", "z"]) {
            let slot = Slot {
                wanted: None,
                refused: false,
                line,
                column: 1,
            };
            slots.insert(key(name), slot);
            map.insert(key(name), line);
        }
        let found: Vec<_> = slots.iter().map(|(key, slot)| (key.clone(), slot.line)).collect();
        assert_eq!(found, map.clone().into_iter().collect::<Vec<_>>());
        for (key, line) in &map {
            assert_eq!(slots.get(key).map(|slot| slot.line), Some(*line));
        }
        assert!(!slots.contains_key(&key("c")) && slots.contains_key(&key("b")));
    }

    #[test]
    fn holders_keep_the_order_in_which_they_came() {
        let path = |path: &str| Arc::<str>::from(path);
        let mut holders = Holders::One(path("b"));
        for next in ["a", "b", "c", "a"] {
            holders.add(&path(next));
        }
        assert_eq!(holders.all(), [path("b"), path("a"), path("c")]);
        let left = holders.without("b").unwrap();
        assert_eq!(left.all(), [path("a"), path("c")]);
        let left = left.without("a").unwrap();
        assert!(matches!(&left, Holders::One(one) if **one == *"c"));
        assert!(left.without("c").is_none());
        assert_eq!(left.without("x").unwrap().all(), [path("c")]);
    }
}
