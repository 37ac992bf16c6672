//! What is asked of the store for each change, found without a look at all objects.

use std::{collections::BTreeSet, sync::Arc};

use super::Store;
use crate::{
    resource::{Key, KindInfo, Object, Spec},
    snapshot::ObjectRef,
};

/// Keys of the few objects that are asked for.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Workloads in force that are captured.
    captured: BTreeSet<Key>,
    /// Objects of which the file that has them wants a version that is refused.
    pub refused: BTreeSet<Key>,
}

// === impl Store ===

impl Store {
    /// The objects in force that were read from this file.
    pub fn objects_of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        let state = self.files.get(path);
        let has = move |key: &Key| state.is_some_and(|state| state.slots.contains_key(key));
        // Its version of what it has no more is in force while that of another file waits.
        let left = self.waiting.iter().filter(move |&key| !has(key));
        let keys = state.into_iter().flat_map(|state| state.slots.keys()).chain(left);
        keys.filter_map(|key| self.in_force.get(key))
            .filter(move |object| &*object.location.file == path)
    }

    /// The objects in force of one kind.
    pub(crate) fn objects_of_kind(&self, kind: &'static KindInfo) -> impl Iterator<Item = &Arc<Object>> {
        let first = Key {
            group: kind.group,
            id: Arc::new(ObjectRef {
                kind: kind.kind.into(),
                namespace: None,
                name: String::new(),
            }),
        };
        let from = self.in_force.range::<Key, _>(first..);
        from.take_while(|(key, _)| key.group == kind.group && key.id.kind == kind.kind)
            .map(|(_, object)| object)
    }

    /// The Workloads in force that say where their processes are.
    pub(crate) fn captured(&self) -> impl Iterator<Item = &Arc<Object>> {
        let keys = self.index.captured.iter();
        keys.filter_map(|key| self.in_force.get(key))
    }

    /// Puts a version of an object in force; `None`: none any more.
    pub(super) fn put(&mut self, key: &Key, version: Option<Arc<Object>>) {
        self.waiting.remove(key);
        let is_captured = version
            .as_ref()
            .is_some_and(|object| matches!(&object.spec, Spec::Workload(spec) if spec.capture.is_some()));
        match is_captured {
            true => _ = self.index.captured.insert(key.clone()),
            false => _ = self.index.captured.remove(key),
        }
        let Some(version) = version else {
            self.in_force.remove(key);
            return;
        };
        let before = self.in_force.insert(key.clone(), Arc::clone(&version));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &version)) {
            self.changes.note(self.revision, key, before);
        }
    }

    /// The files that have this object, or what they want of it, changed.
    pub(super) fn note_refused(&mut self, key: &Key) {
        let owned = self.owner(key).and_then(|path| self.files.get(path)?.slots.get(key));
        match owned.is_some_and(|slot| slot.refused) {
            true => _ = self.index.refused.insert(key.clone()),
            false => _ = self.index.refused.remove(key),
        }
    }
}
