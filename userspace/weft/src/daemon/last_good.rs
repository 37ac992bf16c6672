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

fn is_missing(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;
    use weft_control::{FilesSource, Source as _};

    use super::*;

    const GOOD: &str =
        "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessDefault: deny}\n";
    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

    /// A resources folder, and where daemons keep what they had of it.
    struct Node(tempfile::TempDir);

    // === impl Node ===

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir(dir.path().join("resources")).expect("made");
            Self(dir)
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("resources")
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.folder().join(file), text).expect("written");
        }

        fn remove(&self, file: &str) {
            fs::remove_file(self.folder().join(file)).expect("removed");
        }

        /// What a daemon has in force once it has started, as it does; and why its source does not work.
        fn daemon(&self) -> (Vec<String>, Option<String>) {
            let mut last_good = LastGood::new(self.0.path().join("last-good.json"));
            let mut store = Store::default();
            last_good.load(&mut store);
            let store = Arc::new(Mutex::new(store));
            let (change, _changes) = mpsc::channel(1);
            let source = FilesSource::spawn(self.folder(), Arc::clone(&store), change).expect("read");
            let mut store = store.lock().expect("no panic under this lock");
            forget_stale(&mut store, Some(&self.folder()), &BTreeSet::new());
            let objects: Vec<_> = store.objects().cloned().collect();
            let names = objects.iter().map(|object| object.id.name.clone()).collect();
            last_good.save(objects).expect("saved");
            (names, source.status().problem)
        }
    }

    #[test]
    fn a_file_that_breaks_between_two_daemons_keeps_its_objects() {
        let node = Node::new();
        node.write("mesh.yaml", GOOD);
        assert_eq!(node.daemon(), (vec!["mesh".to_owned()], None));
        node.write("mesh.yaml", &GOOD.replace("deny", "dney"));
        assert_eq!(node.daemon(), (vec!["mesh".to_owned()], None));
    }

    #[test]
    fn a_file_that_went_between_two_daemons_takes_its_objects_along() {
        let node = Node::new();
        node.write("mesh.yaml", GOOD);
        node.write("web.yaml", SERVICE);
        assert_eq!(node.daemon().0.len(), 2);
        node.remove("mesh.yaml");
        assert_eq!(node.daemon(), (vec!["web".to_owned()], None));
    }

    #[test]
    fn a_folder_that_is_empty_for_the_next_daemon_takes_no_objects_along() {
        let node = Node::new();
        node.write("mesh.yaml", GOOD);
        assert_eq!(node.daemon().0, ["mesh"]);
        node.remove("mesh.yaml");
        for _ in ["the next daemon", "the one after it"] {
            let (objects, problem) = node.daemon();
            assert_eq!(objects, ["mesh"]);
            assert!(
                problem.as_ref().is_some_and(|why| why.contains("unmounted?")),
                "{problem:?}"
            );
        }
        // It is meant to be empty.
        node.write("none.yaml", "# nothing\n");
        assert_eq!(node.daemon(), (Vec::new(), None));
    }

    #[test]
    fn another_folder_takes_the_objects_of_the_first_out_of_force() {
        let mut store = Store::default();
        store.apply_file("/first/web.yaml", SERVICE.as_bytes());
        store.apply_file("/second/mesh.yaml", GOOD.as_bytes());
        forget_stale(&mut store, Some(Path::new("/second")), &BTreeSet::new());
        assert_eq!(store.files().collect::<Vec<_>>(), ["/second/mesh.yaml"]);
    }
}
