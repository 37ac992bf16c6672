//! Who holds which object and which claim, after a file changed.

use std::{collections::BTreeSet, sync::Arc};

use super::{FileState, Store, slots::Holders};
use crate::resource::{Key, Object};

impl Store {
    /// Puts `new` in the place of `old`, which has been taken out.
    pub(super) fn replace(&mut self, path: &str, old: FileState, new: Option<FileState>) {
        self.revision += 1;
        if new.as_ref().is_some_and(|new| new.is(&old)) {
            // Of a file that is refused each time, too: nothing to settle, and nothing that others are to be told.
            self.files.insert(self.pools.text(path), old);
            return;
        }
        let versions_only = new.as_ref().is_some_and(|new| new.has_the_objects_of(&old));
        let mut touched: BTreeSet<Key> = old.slots.into_keys().collect();
        let path = self.pools.text(path);
        match new {
            Some(mut state) => {
                touched.extend(state.slots.keys().cloned());
                state.slots.shrink_to_fit();
                self.files.insert(path.clone(), state);
            }
            None => {
                self.files.remove(&path);
            }
        }
        for key in &touched {
            let has = self.files.get(&path).is_some_and(|state| state.slots.contains_key(key));
            match self.holders.get_mut(key) {
                None if has => _ = self.holders.insert(key.clone(), Holders::One(path.clone())),
                None => {}
                Some(holders) if has => holders.add(&path),
                Some(holders) => match holders.without(&path) {
                    Some(others) => *holders = others,
                    None => _ = self.holders.remove(key),
                },
            }
            self.note_refused(key);
        }
        // Beside what is in force others are told of: what is refused, and what waits for what.
        let waited = (versions_only && touched.is_disjoint(&self.waiting)).then(|| self.waiting.clone());
        self.settle(touched);
        if waited.as_ref() != Some(&self.waiting) {
            self.changes.cut(self.revision);
        }
    }

    /// The file whose version of the object counts: the first that has a good one, else the first.
    pub(super) fn owner(&self, key: &Key) -> Option<&str> {
        let holders = self.holders.get(key)?.all();
        let good = |path: &&Arc<str>| {
            self.files
                .get(*path)
                .and_then(|state| state.slots.get(key))
                .is_some_and(|slot| slot.wanted.is_some())
        };
        holders
            .iter()
            .find(good)
            .or_else(|| holders.first())
            .map(|path| &**path)
    }

    /// What should be in force if there were no other objects.
    fn wanted(&self, key: &Key) -> Option<Arc<Object>> {
        self.files.get(self.owner(key)?)?.slots.get(key)?.wanted.clone()
    }

    /// Brings what is in force to what is wanted, for these objects and for those that waited for one of them.
    ///
    /// Goings first, so that what comes in the same change finds their claims free. Ends because each round moves an
    /// object to its wanted version, or is the last.
    fn settle(&mut self, touched: BTreeSet<Key>) {
        let (going, coming): (Vec<Key>, Vec<Key>) = touched.into_iter().partition(|key| self.wanted(key).is_none());
        for key in &going {
            self.release(key);
            self.put(key, None);
        }
        // Who waits has been there longer; what comes together comes in the order of its file.
        let mut coming: Vec<Key> = coming.into_iter().filter(|key| !self.waiting.contains(key)).collect();
        coming.sort_by_key(|key| self.wanted(key).map(|object| object.location.line));
        let mut open: Vec<Key> = self.waiting.iter().chain(&coming).cloned().collect();
        self.step_all(&mut open);
        loop {
            let stuck: BTreeSet<&Key> = open.iter().collect();
            let Some(cycle) = open.iter().find_map(|key| self.cycle(key, &stuck)) else {
                break;
            };
            self.exchange(&cycle);
            open.retain(|key| !cycle.contains(key));
            self.step_all(&mut open);
        }
        self.waiting.extend(open);
    }

    fn step_all(&mut self, open: &mut Vec<Key>) {
        loop {
            let before = open.len();
            open.retain(|key| !self.step(key));
            if open.is_empty() || open.len() == before {
                return;
            }
        }
    }

    /// Puts the wanted version of an object in force, unless another object has its claim. Whether that is done.
    fn step(&mut self, key: &Key) -> bool {
        let Some(wanted) = self.wanted(key) else { return true };
        let claim = wanted.spec.claim(&key.id);
        if claim
            .as_ref()
            .and_then(|claim| self.claims.get(claim))
            .is_some_and(|holder| holder != key)
        {
            return false;
        }
        self.release(key);
        self.claims.extend(claim.map(|claim| (claim, key.clone())));
        self.put(key, Some(wanted));
        true
    }

    /// Objects that wait for each other in a circle, beginning with this one (two splits that exchange their roots).
    fn cycle(&self, start: &Key, open: &BTreeSet<&Key>) -> Option<Vec<Key>> {
        let mut chain = vec![start.clone()];
        loop {
            let last = chain.last()?;
            let holder = self.claims.get(&self.wanted(last)?.spec.claim(&last.id)?)?;
            if holder == start {
                return Some(chain);
            }
            if chain.contains(holder) || !open.contains(holder) {
                return None;
            }
            chain.push(holder.clone());
        }
    }

    /// Moves the objects of a circle together: each takes the claim that another one of them gives up.
    fn exchange(&mut self, cycle: &[Key]) {
        for key in cycle {
            self.release(key);
        }
        for key in cycle {
            let Some(wanted) = self.wanted(key) else { continue };
            self.claims
                .extend(wanted.spec.claim(&key.id).map(|claim| (claim, key.clone())));
            self.put(key, Some(wanted));
        }
    }

    /// Gives up the claim of the version in force.
    fn release(&mut self, key: &Key) {
        if let Some(claim) = self.in_force.get(key).and_then(|object| object.spec.claim(&key.id)) {
            self.claims.remove(&claim);
        }
    }
}
