use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tokio::sync::mpsc;
use weft_policy::Severity;

use super::*;
use crate::read::MAX_FILE_BYTES;

/// Long enough for the slowest machine; passing tests never wait for it.
const LONG: Duration = Duration::from_secs(30);

/// A sink whose objects are whole files: an object may be in one file only, and `bad` is refused.
#[derive(Default)]
struct Recorder {
    files: BTreeMap<String, String>,
    applied: AtomicU64,
}

impl Sink for Recorder {
    fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic> {
        self.applied.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(bytes).into_owned();
        let other = self
            .files
            .iter()
            .find(|(file, object)| *file != path && **object == text);
        let reason = match other {
            _ if text == "bad" => "bad".to_owned(),
            Some((other, _)) => format!("already in {other}"),
            None => {
                self.files.insert(path.to_owned(), text);
                return Vec::new();
            }
        };
        vec![Diagnostic {
            severity: Severity::Error,
            file: path.to_owned(),
            line: 1,
            column: 1,
            object: None,
            field: String::new(),
            reason,
            instead: None,
        }]
    }

    fn remove_file(&mut self, path: &str) {
        self.files.remove(path);
    }

    fn files(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }
}

/// A watched folder and all that happened to it.
struct Bench {
    root: TempDir,
    folder: PathBuf,
    store: Arc<Mutex<Recorder>>,
    changes: mpsc::Receiver<Change>,
    source: FilesSource,
    first: Change,
}

impl Bench {
    /// The folder is `ROOT/r`, with these files when the watch begins.
    async fn new(files: &[(&str, &str)]) -> Self {
        Self::prepared(|folder| {
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
        })
        .await
    }

    async fn prepared(prepare: impl FnOnce(&Path)) -> Self {
        Self::after(&[], prepare).await
    }

    /// An earlier daemon had these files in force.
    async fn after(earlier: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("r");
        fs::create_dir(&folder).unwrap();
        prepare(&folder);
        let mut store = Recorder::default();
        for (name, text) in earlier {
            store.apply_file(folder.join(name).to_str().unwrap(), text.as_bytes());
        }
        let store = Arc::new(Mutex::new(store));
        let (notify, mut changes) = mpsc::channel(1);
        let source = FilesSource::spawn(&folder, store.clone(), notify).unwrap();
        let first = tokio::time::timeout(LONG, changes.recv()).await.unwrap().unwrap();
        Self {
            root,
            folder,
            store,
            changes,
            source,
            first,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Writes aside and renames, as editors and `kubectl` do.
    fn replace(&self, name: &str, text: &str) {
        let aside = self.file(&format!(".{name}.tmp"));
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.file(name)).unwrap();
    }

    async fn change(&mut self) -> Change {
        tokio::time::timeout(LONG, self.changes.recv())
            .await
            .expect("no change was told")
            .expect("the source ended")
    }

    /// Waits until the sink holds just these.
    async fn until(&mut self, expect: &[(&str, &str)]) {
        let expect: Vec<_> = expect
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        while self.objects() != expect {
            self.change().await;
        }
    }

    fn objects(&self) -> Vec<(String, String)> {
        let prefix = format!("{}/", self.folder.display());
        let store = self.store.lock().unwrap();
        store
            .files
            .iter()
            .map(|(file, text)| (file.strip_prefix(&prefix).unwrap().to_owned(), text.clone()))
            .collect()
    }
}

fn reasons(change: &Change) -> Vec<&str> {
    change
        .diagnostics
        .iter()
        .map(|diagnostic| diagnostic.reason.as_str())
        .collect()
}

#[tokio::test]
async fn the_folder_is_applied_before_spawn_returns() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), "1").unwrap();
    let store = Arc::new(Mutex::new(Recorder::default()));
    let (notify, _changes) = mpsc::channel(1);
    let source = FilesSource::spawn(root.path(), store.clone(), notify).unwrap();
    assert_eq!(store.lock().unwrap().files.len(), 1);
    assert_eq!(
        source.status(),
        SourceStatus {
            files: 1,
            refused: 0,
            unread: Vec::new(),
            problem: None
        }
    );
}

#[tokio::test]
async fn a_folder_that_is_not_there_at_the_start_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let (notify, _changes) = mpsc::channel(1);
    let missing = root.path().join("missing");
    let error = FilesSource::spawn(&missing, Arc::new(Mutex::new(Recorder::default())), notify).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("read resources folder `{}`", missing.display())),
        "{error}"
    );
}

#[tokio::test]
async fn files_that_are_added_changed_and_deleted_are_followed() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    assert_eq!(bench.first.applied, [bench.file("a.yaml").display().to_string()]);
    bench.write("b.yml", "2");
    bench.until(&[("a.yaml", "1"), ("b.yml", "2")]).await;
    bench.write("a.yaml", "3");
    bench.until(&[("a.yaml", "3"), ("b.yml", "2")]).await;
    fs::remove_file(bench.file("b.yml")).unwrap();
    let mut change = bench.change().await;
    // What was written may be told of more than once.
    while change.removed.is_empty() {
        change = bench.change().await;
    }
    assert_eq!(change.removed, [bench.file("b.yml").display().to_string()]);
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "3".to_owned())]);
}

#[tokio::test]
async fn an_editor_that_renames_is_followed() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    for text in ["2", "3"] {
        bench.replace("a.yaml", text);
        let change = bench.change().await;
        assert_eq!((change.applied.len(), change.removed.len()), (1, 0));
        assert_eq!(bench.objects(), [("a.yaml".to_owned(), text.to_owned())]);
    }
}

#[tokio::test]
async fn a_config_map_swap_is_followed() {
    let mut bench = Bench::prepared(|folder| {
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("a.yaml"), text).unwrap();
        }
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/a.yaml", folder.join("a.yaml")).unwrap();
    })
    .await;
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "one".to_owned())]);
    symlink("..2", bench.file("..data_tmp")).unwrap();
    fs::rename(bench.file("..data_tmp"), bench.file("..data")).unwrap();
    bench.until(&[("a.yaml", "two")]).await;
}

#[tokio::test]
async fn the_target_of_a_symlink_is_read_again_when_it_changed() {
    let mut bench = Bench::prepared(|folder| {
        fs::write(folder.parent().unwrap().join("elsewhere"), "1").unwrap();
        symlink("../elsewhere", folder.join("a.yaml")).unwrap();
    })
    .await;
    fs::write(bench.root.path().join("elsewhere"), "2").unwrap();
    bench.source.nudge();
    bench.until(&[("a.yaml", "2")]).await;
}

#[tokio::test]
async fn only_resource_files_of_the_folder_itself_count() {
    let mut bench = Bench::prepared(|folder| {
        fs::create_dir(folder.join("sub")).unwrap();
        for name in ["sub/a.yaml", ".hidden.yaml", "a.yaml~", "a.yaml.bak", "README", "yaml"] {
            fs::write(folder.join(name), name).unwrap();
        }
    })
    .await;
    assert_eq!(bench.first, Change::default());
    bench.write("a.yaml", "1");
    bench.until(&[("a.yaml", "1")]).await;
}

#[tokio::test]
async fn the_same_bytes_again_are_no_change() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    bench.replace("a.yaml", "1");
    bench.write("b.yaml", "2");
    while bench.change().await.applied != [bench.file("b.yaml").display().to_string()] {}
    assert_eq!(bench.store.lock().unwrap().applied.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_look_that_finds_nothing_new_waits_for_nobody_who_has_the_store() {
    let bench = Bench::new(&[("a.yaml", "1")]).await;
    let store = Arc::clone(&bench.store);
    let held = store.lock().unwrap();
    fs::rename(&bench.folder, bench.root.path().join("away")).unwrap();
    let begun = Instant::now();
    while bench.source.status().problem.is_none() {
        assert!(begun.elapsed() < LONG, "nobody has looked");
        thread::yield_now();
    }
    drop(held);
}

#[tokio::test]
async fn a_folder_that_vanishes_removes_nothing_and_recovers() {
    let mut bench = Bench::new(&[("a.yaml", "1"), ("b.yaml", "2")]).await;
    let away = bench.root.path().join("away");
    fs::rename(&bench.folder, &away).unwrap();
    let change = bench.change().await;
    assert!(
        reasons(&change)[0].contains("nothing is removed until it is back"),
        "{change:?}"
    );
    assert_eq!(bench.objects().len(), 2);
    assert!(bench.source.status().problem.is_some());
    fs::write(away.join("a.yaml"), "3").unwrap();
    fs::rename(&away, &bench.folder).unwrap();
    bench.until(&[("a.yaml", "3"), ("b.yaml", "2")]).await;
    assert_eq!(
        bench.source.status(),
        SourceStatus {
            files: 2,
            refused: 0,
            unread: Vec::new(),
            problem: None
        }
    );
}

#[tokio::test]
async fn a_folder_that_comes_back_empty_removes_nothing() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    fs::rename(&bench.folder, bench.root.path().join("away")).unwrap();
    fs::create_dir(&bench.folder).unwrap();
    while !reasons(&bench.change().await)[0].contains("unmounted?") {}
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "1".to_owned())]);
    bench.write("b.yaml", "2");
    bench.until(&[("b.yaml", "2")]).await;
}

/// Most file systems give the new folder the number of the old one.
#[tokio::test]
async fn a_folder_that_was_deleted_and_made_again_removes_nothing_and_is_watched() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    for turn in 0..3 {
        let away = bench.root.path().join("away");
        fs::rename(&bench.folder, &away).unwrap();
        fs::remove_dir_all(away).unwrap();
        fs::create_dir(&bench.folder).unwrap();
        while !reasons(&bench.change().await)[0].contains("unmounted?") {}
        assert_eq!(bench.objects().len(), 1);
        let began = Instant::now();
        bench.write("a.yaml", &turn.to_string());
        bench.until(&[("a.yaml", &turn.to_string())]).await;
        assert!(began.elapsed() < RESCAN, "found by a rescan");
    }
}

#[tokio::test]
async fn a_folder_that_is_empty_at_the_start_removes_nothing_of_an_earlier_daemons() {
    let mut bench = Bench::after(&[("a.yaml", "1"), ("b.yaml", "2")], |_| {}).await;
    assert!(reasons(&bench.first)[0].contains("unmounted?"), "{:?}", bench.first);
    assert_eq!(bench.first.removed, [] as [String; 0]);
    assert_eq!(bench.objects().len(), 2);
    let status = bench.source.status();
    assert!(status.files == 2 && status.problem.is_some(), "{status:?}");
    // Mounted late: what is not in it was deleted meanwhile.
    bench.write("b.yaml", "2");
    bench.until(&[("b.yaml", "2")]).await;
    bench.write("c.yaml", "3");
    bench.until(&[("b.yaml", "2"), ("c.yaml", "3")]).await;
    assert_eq!(bench.source.status().problem, None);
}

#[tokio::test]
async fn what_an_earlier_daemon_had_of_a_file_that_is_gone_makes_room_for_another_at_the_first_look() {
    let bench = Bench::after(&[("a.yaml", "1")], |folder| {
        fs::write(folder.join("b.yaml"), "1").unwrap();
    })
    .await;
    assert_eq!(bench.objects(), [("b.yaml".to_owned(), "1".to_owned())]);
    assert_eq!(bench.first.diagnostics, []);
    assert_eq!(bench.first.removed, [bench.file("a.yaml").display().to_string()]);
}

#[tokio::test]
async fn a_file_that_was_never_readable_takes_what_an_earlier_daemon_had_of_it_along_when_it_is_deleted() {
    let mut bench = Bench::after(&[("a.yaml", "1")], |folder| {
        // A link to itself: unreadable for root, too.
        symlink("a.yaml", folder.join("a.yaml")).unwrap();
        fs::write(folder.join("b.yaml"), "2").unwrap();
    })
    .await;
    assert!(reasons(&bench.first)[0].contains("cannot be read"), "{:?}", bench.first);
    assert_eq!(bench.objects().len(), 2);
    fs::remove_file(bench.file("a.yaml")).unwrap();
    bench.until(&[("b.yaml", "2")]).await;
}

#[tokio::test]
async fn deleting_every_file_of_the_folder_removes_every_object() {
    let mut bench = Bench::new(&[("a.yaml", "1"), ("b.yaml", "2")]).await;
    fs::remove_file(bench.file("a.yaml")).unwrap();
    fs::remove_file(bench.file("b.yaml")).unwrap();
    bench.until(&[]).await;
}

#[tokio::test]
async fn a_huge_file_is_refused_without_reading_and_keeps_its_last_good_state() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    let file = fs::OpenOptions::new().write(true).open(bench.file("a.yaml")).unwrap();
    file.set_len(100 << 20).unwrap();
    let change = bench.change().await;
    assert_eq!(
        change.diagnostics[0].to_string(),
        format!(
            "{}: error: 104857600 bytes are too many, at most {MAX_FILE_BYTES}; what it said before stays in force; \
             split it into several files",
            bench.file("a.yaml").display()
        )
    );
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "1".to_owned())]);
    assert_eq!(bench.store.lock().unwrap().applied.load(Ordering::Relaxed), 1);
    let status = bench.source.status();
    assert_eq!(
        (status.files, status.refused, status.unread.len()),
        (1, 1, 1),
        "{status:?}"
    );
    bench.replace("a.yaml", "1");
    assert_eq!(bench.change().await.diagnostics, []);
    assert_eq!(bench.source.status().unread, []);
    assert_eq!(bench.source.status().refused, 0);
}

#[tokio::test]
async fn a_refused_file_keeps_its_last_good_state_and_is_told_once() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    bench.replace("a.yaml", "bad");
    assert_eq!(reasons(&bench.change().await), ["bad"]);
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "1".to_owned())]);
    bench.replace("b.yaml", "2");
    let mut told = Vec::new();
    while bench.objects().len() < 2 || told.is_empty() {
        told.push(bench.change().await.diagnostics);
    }
    assert!(told.iter().all(Vec::is_empty), "{told:?}");
}

#[tokio::test]
async fn what_cannot_be_read_keeps_its_last_good_state() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    // A link to itself: unreadable for root, too.
    symlink("a.yaml", bench.file(".aside")).unwrap();
    fs::rename(bench.file(".aside"), bench.file("a.yaml")).unwrap();
    loop {
        let change = bench.change().await;
        assert_eq!(change.removed, [] as [String; 0]);
        if reasons(&change).iter().any(|reason| reason.contains("cannot be read")) {
            break;
        }
    }
    assert_eq!(bench.objects(), [("a.yaml".to_owned(), "1".to_owned())]);
    bench.replace("a.yaml", "2");
    bench.until(&[("a.yaml", "2")]).await;
}

#[tokio::test]
async fn a_fifo_or_folder_named_like_a_resource_does_not_hang_the_watch() {
    let mut bench = Bench::prepared(|folder| {
        mkfifo(&folder.join("fifo.yaml"), Mode::S_IRWXU).unwrap();
        fs::create_dir(folder.join("folder.yaml")).unwrap();
    })
    .await;
    assert_eq!(reasons(&bench.first), ["no regular file"; 2]);
    bench.write("a.yaml", "1");
    bench.until(&[("a.yaml", "1")]).await;
}

#[tokio::test]
async fn an_object_may_move_to_another_file_in_one_go() {
    for (from, to) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        let mut bench = Bench::new(&[(from, "1")]).await;
        fs::rename(bench.file(from), bench.file(to)).unwrap();
        let change = bench.change().await;
        assert_eq!(
            (change.applied.len(), change.removed.len(), change.diagnostics.len()),
            (1, 1, 0)
        );
        assert_eq!(bench.objects(), [(to.to_owned(), "1".to_owned())]);
    }
}

#[tokio::test]
async fn a_file_refused_for_another_ones_object_gets_it_when_that_is_deleted() {
    let mut bench = Bench::new(&[("a.yaml", "1"), ("b.yaml", "1")]).await;
    assert!(reasons(&bench.first)[0].starts_with("already in"), "{:?}", bench.first);
    fs::remove_file(bench.file("a.yaml")).unwrap();
    bench.until(&[("b.yaml", "1")]).await;
    assert_eq!(bench.source.status().refused, 0);
}

#[tokio::test]
async fn a_nudge_tries_refused_files_again() {
    let mut bench = Bench::new(&[("a.yaml", "1")]).await;
    bench
        .store
        .lock()
        .unwrap()
        .files
        .insert(format!("{}/z", bench.folder.display()), "2".to_owned());
    bench.replace("a.yaml", "2");
    assert!(reasons(&bench.change().await)[0].starts_with("already in"));
    bench
        .store
        .lock()
        .unwrap()
        .files
        .retain(|file, _| !file.ends_with("/z"));
    bench.source.nudge();
    bench.until(&[("a.yaml", "2")]).await;
}

#[tokio::test]
async fn the_watch_ends_with_its_source() {
    let Bench {
        source,
        mut changes,
        root: _root,
        ..
    } = Bench::new(&[]).await;
    drop(source);
    assert_eq!(tokio::time::timeout(LONG, changes.recv()).await.unwrap(), None);
}

/// With the policy's own store: what the folder says is in force, object by object.
#[tokio::test]
async fn the_real_store_keeps_the_last_good_version_of_a_broken_object() {
    let root = tempfile::tempdir().unwrap();
    let service = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  ports:\n  - port: {port}\n"
        )
    };
    fs::write(root.path().join("web.yaml"), service("80")).unwrap();
    let store = Arc::new(Mutex::new(weft_policy::Store::default()));
    let (notify, mut changes) = mpsc::channel(1);
    let _source = FilesSource::spawn(root.path(), store.clone(), notify).unwrap();
    let mut change = async || tokio::time::timeout(LONG, changes.recv()).await.unwrap().unwrap();
    assert_eq!(change().await.diagnostics, []);
    assert_eq!(store.lock().unwrap().objects().count(), 1);

    let aside = root.path().join(".aside");
    fs::write(&aside, service("eighty")).unwrap();
    fs::rename(&aside, root.path().join("web.yaml")).unwrap();
    let told = change().await.diagnostics;
    assert!(
        told.iter()
            .any(|told| told.is_error() && told.line > 1 && told.file.ends_with("web.yaml")),
        "{told:?}"
    );
    assert_eq!(store.lock().unwrap().objects().count(), 1);

    fs::remove_file(root.path().join("web.yaml")).unwrap();
    assert_eq!(change().await.removed.len(), 1);
    assert_eq!(store.lock().unwrap().objects().count(), 0);
}
