use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, sync::Mutex};

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
        let (mut last_good, store) = self.load();
        let store = Arc::new(Mutex::new(store));
        let (change, _changes) = mpsc::channel(1);
        let source = FilesSource::spawn(self.folder(), Arc::clone(&store), change).expect("read");
        let mut store = store.lock().expect("no panic under this lock");
        forget_stale(&mut store, Some(&self.folder()), &BTreeSet::new());
        save(&mut last_good, &store);
        (names(&store), source.status().problem)
    }

    /// What a daemon finds of the ones before it.
    fn load(&self) -> (LastGood, Store) {
        let mut last_good = LastGood::new(self.kept(), self.single());
        let mut store = Store::default();
        last_good.load(&mut store);
        (last_good, store)
    }

    fn kept(&self) -> PathBuf {
        self.0.path().join("last-good")
    }

    fn single(&self) -> PathBuf {
        self.0.path().join("last-good.json")
    }

    /// The files of the folder, by name: which they are, what is in them.
    fn files(&self) -> BTreeMap<String, (u64, String)> {
        let files = fs::read_dir(self.kept()).expect("a folder").map(|entry| {
            let entry = entry.expect("listed");
            let text = fs::read_to_string(entry.path()).expect("text");
            let inode = entry.metadata().expect("a file").ino();
            (entry.file_name().into_string().expect("text"), (inode, text))
        });
        files.collect()
    }

    /// The one with this source in it.
    fn file_of(&self, source: &str) -> PathBuf {
        let files = self.files();
        let (name, _) = files.iter().find(|(_, (_, text))| text.contains(source)).expect("kept");
        self.kept().join(name)
    }
}

fn save(last_good: &mut LastGood, store: &Store) {
    let changes = last_good.changes(store);
    last_good.keep(&changes).expect("kept");
}

fn names(store: &Store) -> Vec<String> {
    store.objects().map(|object| object.id.name.clone()).collect()
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

/// A store with a source for each of some services.
fn store_of(services: &[&str]) -> Store {
    let mut store = Store::default();
    for name in services {
        store.apply_file(&format!("/r/{name}.yaml"), SERVICE.replace("web", name).as_bytes());
    }
    store
}

#[test]
fn a_change_writes_the_files_of_the_sources_that_changed_and_no_other() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let mut store = store_of(&["a", "b", "c", "d"]);
    save(&mut last_good, &store);
    let before = node.files();
    assert_eq!(before.len(), 4);

    let text = SERVICE.replace("web", "b");
    store.remove_file("/r/b.yaml");
    store.apply_file("/r/b.yaml", text.as_bytes());
    save(&mut last_good, &store);
    assert_eq!(node.files(), before);

    store.apply_file("/r/b.yaml", text.replace("80", "81").as_bytes());
    store.apply_file("/r/d.yaml", SERVICE.replace("web", "d").replace("80", "82").as_bytes());
    save(&mut last_good, &store);
    let after = node.files();
    let changed: Vec<&String> = after
        .keys()
        .filter(|name| after.get(*name) != before.get(*name))
        .collect();
    assert!(after.len() == 4 && changed.len() == 2, "{before:?}, then {after:?}");
    assert_eq!(text_of(&node.load().1, "/r/b.yaml"), text_of(&store, "/r/b.yaml"));

    // One that is new leaves the others alone.
    store.apply_file("/r/new.yaml", SERVICE.as_bytes());
    save(&mut last_good, &store);
    let more = node.files();
    assert_eq!(more.len(), 5);
    assert!(
        after.iter().all(|(name, file)| more.get(name) == Some(file)),
        "{after:?}, then {more:?}"
    );
}

#[test]
fn what_is_kept_is_what_is_in_force_after_any_changes() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let mut store = Store::default();
    let service = |name: &str, port: u16| SERVICE.replace("web", name).replace("80", &port.to_string());
    let steps = [
        ("1", Some(service("a", 80) + "---\n" + &service("b", 80))),
        ("2", Some(service("c", 80))),
        ("0", Some(service("b", 81) + "---\n" + &service("z", 81))),
        ("1", Some(service("b", 82))),
        ("2", Some("spec: [".to_owned())),
        ("1", Some(String::new())),
        ("2", None),
        ("0", Some(service("z", 83))),
        ("3", Some(service("b", 84))),
        ("3", None),
        ("0", None),
    ];
    for (file, text) in steps {
        match text {
            Some(text) => _ = store.apply_file(file, text.as_bytes()),
            None => store.remove_file(file),
        }
        save(&mut last_good, &store);
        let loaded = node.load().1;
        let texts = |store: &Store| -> Vec<(String, String, String)> {
            let objects = store.objects();
            let text = |object: &Arc<Object>| object.text.trim_end().to_owned();
            objects
                .map(|object| (object.location.file.to_string(), object.id.to_string(), text(object)))
                .collect()
        };
        assert_eq!(texts(&loaded), texts(&store), "after {file}");
    }
    assert!(node.files().is_empty());
}

#[test]
fn what_a_crash_left_is_removed_and_what_cannot_be_read_is_left_out() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let store = store_of(&["a", "b", "c"]);
    save(&mut last_good, &store);
    let (a, b) = (node.file_of("/r/a.yaml"), node.file_of("/r/b.yaml"));
    let text = fs::read(&a).expect("read");
    let aside = a.with_extension("json.new");
    fs::write(&aside, &text[..text.len() / 2]).expect("written");
    fs::write(&b, &text[..text.len() / 2]).expect("written");
    // Whoever copies files here makes nothing of it.
    let copy = node.kept().join(format!("{:032x}.json", 7));
    fs::write(&copy, &text).expect("written");
    let other = node.kept().join("notes.txt");
    fs::write(&other, "an operator's").expect("written");

    let (mut last_good, found) = node.load();
    assert_eq!(names(&found), ["a", "c"]);
    assert!(!aside.exists(), "it was not written to its end");
    save(&mut last_good, &store);
    assert!(!copy.exists() && other.exists(), "{:?}", node.files());
    assert_eq!(names(&node.load().1), ["a", "b", "c"]);
}

#[test]
fn the_file_of_daemons_before_is_read_once() {
    let node = Node::new();
    let single = |services: &[&str]| {
        let text = |name: &&str| {
            (
                format!("/r/{name}.yaml"),
                format!("---\n{}", SERVICE.replace("web", name)),
            )
        };
        let all: BTreeMap<String, String> = services.iter().map(text).collect();
        fs::write(node.single(), serde_json::to_vec(&all).expect("JSON")).expect("written");
    };
    single(&["a", "b"]);
    let (mut last_good, store) = node.load();
    assert_eq!(names(&store), ["a", "b"]);
    save(&mut last_good, &store);
    assert!(!node.single().exists());
    assert_eq!(names(&node.load().1), ["a", "b"]);

    // A daemon before this version ran again, and what it had in force is newer than the folder.
    single(&["b", "c"]);
    let (mut last_good, store) = node.load();
    assert_eq!(names(&store), ["b", "c"]);
    save(&mut last_good, &store);
    assert!(!node.single().exists() && node.files().len() == 2, "{:?}", node.files());
    assert_eq!(names(&node.load().1), ["b", "c"]);

    fs::write(node.single(), "{\"/r/a.yaml\": \"---").expect("written");
    let (mut last_good, store) = node.load();
    assert_eq!(names(&store), ["b", "c"], "a torn one says nothing");
    save(&mut last_good, &store);
    assert!(!node.single().exists());
}

#[test]
fn what_another_daemon_wrote_is_put_right() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let store = store_of(&["a", "b"]);
    save(&mut last_good, &store);
    let (mut others, _) = node.load();
    save(&mut others, &store_of(&["b", "c"]));
    assert_eq!(names(&node.load().1), ["b", "c"]);
    last_good.look_again();
    save(&mut last_good, &store);
    assert_eq!(names(&node.load().1), ["a", "b"]);
}

#[test]
fn what_could_not_be_written_is_written_with_the_next_change() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let mut store = store_of(&["a", "b"]);
    save(&mut last_good, &store);
    store.apply_file("/r/a.yaml", SERVICE.replace("web", "renamed").as_bytes());
    // A folder is where the text is to be written.
    let aside = node.file_of("/r/a.yaml").with_extension("json.new");
    fs::create_dir(&aside).expect("made");
    let changes = last_good.changes(&store);
    last_good.keep(&changes).expect_err("nowhere to write");
    fs::remove_dir(&aside).expect("removed");
    save(&mut last_good, &store);
    assert_eq!(names(&node.load().1), ["b", "renamed"]);
}

/// More than are synced one by one.
#[test]
fn many_sources_are_kept_at_once() {
    let node = Node::new();
    let (mut last_good, _) = node.load();
    let services: Vec<String> = (0..100).map(|number| format!("s{number:03}")).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    save(&mut last_good, &store_of(&services));
    assert_eq!(names(&node.load().1), services);
}
