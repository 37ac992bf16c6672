//! The last good version of every object, kept for the next start.
//!
//! A file that was broken while no daemon ran must not take its objects out of force: a typo in a MeshConfig that denies
//! would open the mesh with the next start. So the text of what is in force is kept in the state directory and put into
//! the store before any source is read; sources then replace it, refuse it object by object, or remove it with its file.
//!
//! A change costs what it changes: of the objects in force only addresses are compared, and only files of which objects changed are
//! written.

mod folder;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_policy::{Store, resource::Object};

use self::folder::{Changes, Folder};

/// What is kept, and what is known of it.
#[derive(Debug)]
pub struct LastGood {
    folder: Folder,
    /// In force when that was last compared, in the store's order.
    objects: Vec<Arc<Object>>,
    /// Of the store then; `None`: all of it is to be compared.
    revision: Option<u64>,
    /// Source files that changed, and are not kept as they are yet.
    owed: BTreeSet<Arc<str>>,
}

// === impl LastGood ===

impl LastGood {
    /// In `folder`; up to this version daemons had all of it in the file `single`.
    pub fn new(folder: PathBuf, single: PathBuf) -> Self {
        Self {
            folder: Folder::new(folder, single),
            objects: Vec::new(),
            revision: None,
            owed: BTreeSet::new(),
        }
    }

    /// Puts what an earlier daemon had in force into the store.
    pub fn load(&mut self, store: &mut Store) {
        for (file, text) in self.folder.read() {
            store.apply_file(&file, text.as_bytes());
        }
    }

    /// Another daemon may have written the folder: with the next changes all of it is compared with what is in force.
    pub fn look_again(&mut self) {
        drop(self.folder.read());
        self.objects.clear();
        self.revision = None;
    }

    /// What is in force now and is not kept so.
    pub fn changes(&mut self, store: &Store) -> Changes {
        let revision = Some(store.revision());
        if self.revision != revision {
            let changed = self.note(store);
            self.owed.extend(changed);
            self.revision = revision;
        }
        let sources = self.owed.iter().map(|file| (Arc::clone(file), text_of(store, file)));
        self.folder.compare(sources)
    }

    /// Keeps them. When this returns they are on disk.
    ///
    /// # Errors
    ///
    /// They are not, or not all: they are among the next changes.
    pub fn keep(&mut self, changes: &Changes) -> std::io::Result<()> {
        self.folder.make(changes)?;
        self.owed.clear();
        Ok(())
    }

    /// Takes note of what is in force now: the source files of which objects came, went, or were replaced.
    fn note(&mut self, store: &Store) -> BTreeSet<Arc<str>> {
        let first = store.objects().zip(&self.objects).take_while(is_same).count();
        let rest: Vec<&Arc<Object>> = store.objects().skip(first).collect();
        let before = self.objects.get(first..).unwrap_or_default();
        let last = rest
            .iter()
            .copied()
            .rev()
            .zip(before.iter().rev())
            .take_while(is_same)
            .count();
        let (now, before) = (&rest[..rest.len() - last], &before[..before.len() - last]);

        let was: HashSet<*const Object> = before.iter().map(Arc::as_ptr).collect();
        let is: HashSet<*const Object> = now.iter().copied().map(Arc::as_ptr).collect();
        let came = now.iter().copied().filter(|object| !was.contains(&Arc::as_ptr(object)));
        let went = before.iter().filter(|object| !is.contains(&Arc::as_ptr(object)));
        let changed = came
            .chain(went)
            .map(|object| Arc::clone(&object.location.file))
            .collect();

        let now: Vec<Arc<Object>> = now.iter().copied().cloned().collect();
        let end = self.objects.len() - last;
        drop(self.objects.splice(first..end, now));
        changed
    }
}

fn is_same((a, b): &(&Arc<Object>, &Arc<Object>)) -> bool {
    Arc::ptr_eq(a, b)
}

/// The documents of a source file that are in force.
fn text_of(store: &Store, file: &str) -> String {
    let mut text = String::new();
    for object in store.objects_of(file) {
        text.push_str("---\n");
        text.push_str(&object.text);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

/// Removes files from the store that were known to an earlier daemon and are in no source any more: another folder's,
/// and applied objects deleted since.
///
/// `folder` is the resources folder; which of its own files are gone its source knows, which has read it.
pub fn forget_stale(store: &mut Store, folder: Option<&Path>, applied: &BTreeSet<String>) {
    let elsewhere = |file: &str| folder.is_none_or(|folder| Path::new(file).parent() != Some(folder));
    let stale: Vec<String> = store
        .files()
        .filter(|&file| !applied.contains(file) && elsewhere(file))
        .map(str::to_owned)
        .collect();
    for file in stale {
        store.remove_file(&file);
    }
}
