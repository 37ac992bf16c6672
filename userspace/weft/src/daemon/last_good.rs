//! The last good version of every object, kept for the next start.
//!
//! A file that was broken while no daemon ran must not take its objects out of force: a typo in a MeshConfig that denies
//! would open the mesh with the next start. So the text of what is in force is kept in the state directory and put into
//! the store before any source is read; sources then replace it, refuse it object by object, or remove it with its file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_policy::{Store, resource::Object};

use crate::state_dir;

/// The file, and what is in it.
#[derive(Debug)]
pub struct LastGood {
    path: PathBuf,
    /// Source file -> documents in force.
    saved: BTreeMap<String, String>,
    /// The objects that `saved` was made of: most publications change workloads and no object.
    objects: Vec<Arc<Object>>,
}

// === impl LastGood ===

impl LastGood {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            saved: BTreeMap::new(),
            objects: Vec::new(),
        }
    }

    /// Puts what an earlier daemon had in force into the store. A file that cannot be read is said and left out.
    pub fn load(&mut self, store: &mut Store) {
        let saved = fs::read(&self.path)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match saved {
            Ok(saved) => self.saved = saved,
            Err(error) if is_missing(&error) => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "last good resources cannot be read"),
        }
        for (file, text) in &self.saved {
            store.apply_file(file, text.as_bytes());
        }
    }

    /// Another daemon may have written the file: the next [`LastGood::save`] writes it in any case.
    pub fn forget_saved(&mut self) {
        self.saved.clear();
        self.objects.clear();
    }

    /// Writes what is in force now, if that is another text than before.
    pub fn save(&mut self, objects: Vec<Arc<Object>>) -> io::Result<()> {
        if objects.len() == self.objects.len() && objects.iter().zip(&self.objects).all(|(a, b)| Arc::ptr_eq(a, b)) {
            return Ok(());
        }
        let mut now: BTreeMap<String, String> = BTreeMap::new();
        for object in &objects {
            let text = now.entry(object.location.file.to_string()).or_default();
            text.push_str("---\n");
            text.push_str(&object.text);
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        if now != self.saved {
            let bytes = serde_json::to_vec(&now).map_err(io::Error::from)?;
            state_dir::write_atomically(&self.path, &bytes)?;
            self.saved = now;
        }
        self.objects = objects;
        Ok(())
    }
}

/// Removes files from the store that were known to an earlier daemon and are in no source any more.
///
/// `folder` is the resources folder, just read; files elsewhere were another folder's, or applied objects deleted since.
pub fn forget_stale(store: &mut Store, folder: Option<&Path>, applied: &BTreeSet<String>) {
    let stale: Vec<String> = store
        .files()
        .filter(|file| !applied.contains(*file))
        .filter(|file| {
            let path = Path::new(file);
            // In the folder, a file counts as there until it is surely not.
            let here = folder.is_some_and(|folder| path.parent() == Some(folder));
            !(here && path.try_exists().unwrap_or(true))
        })
        .map(str::to_owned)
        .collect();
    for file in stale {
        store.remove_file(&file);
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessDefault: deny}\n";

    fn objects(store: &Store) -> Vec<Arc<Object>> {
        store.objects().cloned().collect()
    }

    #[test]
    fn a_file_that_breaks_between_two_daemons_keeps_its_objects() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("mesh.yaml");
        let name = file.to_str().expect("plain path");
        fs::write(&file, GOOD).expect("written");
        let mut first = Store::default();
        first.apply_file(name, GOOD.as_bytes());
        let state = dir.path().join("last-good.json");
        LastGood::new(state.clone()).save(objects(&first)).expect("saved");

        let mut second = Store::default();
        LastGood::new(state).load(&mut second);
        let diagnostics = second.apply_file(name, GOOD.replace("deny", "dney").as_bytes());
        forget_stale(&mut second, Some(dir.path()), &BTreeSet::new());
        assert_eq!((diagnostics.len(), objects(&second).len()), (1, 1));
    }

    #[test]
    fn a_file_that_went_between_two_daemons_takes_its_objects_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let gone = dir.path().join("gone.yaml");
        let mut store = Store::default();
        store.apply_file(gone.to_str().expect("plain path"), GOOD.as_bytes());
        forget_stale(&mut store, Some(dir.path()), &BTreeSet::new());
        assert!(objects(&store).is_empty());
    }
}
