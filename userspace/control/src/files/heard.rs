//! What inotify tells of a folder, as the quiet time after which it is worth a look.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};

use super::scan::is_resource;

/// Quiet time after a file that is whole: its writer has closed it, or renamed it into its place. Several files that one command
/// writes are one change.
const WHOLE: Duration = Duration::from_millis(20);

/// Quiet time after anything else. Whoever removes a file may be about to write it anew.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Quiet time while a file is written to that nobody has closed.
const WRITING: Duration = Duration::from_millis(250);

/// The events since the last look.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Resource files with a write after their last close. A writer of another name, as an editor's temporary file has, is nobody's.
    writing: HashSet<PathBuf>,
    /// The last event left a file whole.
    whole: bool,
}

// === impl Heard ===

impl Heard {
    /// Whether it tells of a change: our own listing and reading are events too.
    pub fn note(&mut self, event: &Event) -> bool {
        let paths = event.paths.iter();
        self.whole = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => {
                paths.for_each(|path| _ = self.writing.remove(path));
                true
            }
            EventKind::Access(_) => return false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.writing.extend(paths.filter(|path| is_resource(path)).cloned());
                false
            }
            EventKind::Create(_) => {
                // A link has its content, and nobody closes it.
                let is_empty = |path: &&PathBuf| {
                    is_resource(path) && fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0)
                };
                self.writing.extend(paths.filter(is_empty).cloned());
                false
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                paths.for_each(|path| _ = self.writing.remove(path));
                false
            }
            // Another mode or owner, and what has no name: a writer goes on.
            _ => false,
        };
        true
    }

    /// How long the folder is to be quiet from now on.
    pub fn quiet(&self) -> Duration {
        if !self.writing.is_empty() {
            WRITING
        } else if self.whole {
            WHOLE
        } else {
            DEBOUNCE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, Permissions},
        io::Write as _,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
        sync::mpsc::{Receiver, channel},
    };

    use notify::{RecursiveMode, Watcher as _, recommended_watcher};
    use tempfile::TempDir;

    use super::*;

    /// A folder and the kernel's own events of it.
    struct Bench {
        folder: TempDir,
        _watcher: notify::RecommendedWatcher,
        events: Receiver<notify::Result<Event>>,
        heard: Heard,
    }

    impl Bench {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                fs::write(folder.path().join(file), "1").unwrap();
            }
            let (tell, events) = channel();
            let mut watcher = recommended_watcher(tell).unwrap();
            watcher.watch(folder.path(), RecursiveMode::NonRecursive).unwrap();
            Self {
                folder,
                _watcher: watcher,
                events,
                heard: Heard::default(),
            }
        }

        /// The quiet time after all that `act` did.
        fn after(&mut self, act: impl FnOnce(&Path)) -> Duration {
            act(self.folder.path());
            // Events come in order, and this one is no change.
            let mark = self.folder.path().join("mark");
            fs::create_dir(&mark).unwrap();
            loop {
                let event = self.event();
                if event.paths == [mark.as_path()] {
                    break;
                }
                self.heard.note(&event);
            }
            fs::remove_dir(&mark).unwrap();
            while !matches!(self.event().kind, EventKind::Remove(_)) {}
            self.heard.quiet()
        }

        fn event(&self) -> Event {
            self.events.recv_timeout(Duration::from_secs(30)).unwrap().unwrap()
        }
    }

    #[test]
    fn a_file_is_whole_when_its_writer_closes_it() {
        let mut bench = Bench::new(&["old.yaml"]);
        for name in ["old.yaml", "new.yaml"] {
            let mut writer = None;
            let created = bench.after(|folder| writer = Some(File::create(folder.join(name)).unwrap()));
            assert_eq!(created, WRITING, "{name} is empty");
            let mut writer = writer.unwrap();
            assert_eq!(bench.after(|_| writer.write_all(b"1").unwrap()), WRITING, "{name}");
            let other = bench.after(|folder| fs::write(folder.join("other.yaml"), "1").unwrap());
            assert_eq!(other, WRITING, "{name} is not whole with another");
            let mode = Permissions::from_mode(0o600);
            let changed = bench.after(|folder| fs::set_permissions(folder.join(name), mode).unwrap());
            assert_eq!(changed, WRITING, "{name} is not whole by its mode");
            assert_eq!(bench.after(|_| drop(writer)), WHOLE, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_renamed_into_its_place_is_whole_though_somebody_holds_it() {
        let mut bench = Bench::new(&["a.yaml"]);
        let mut writer = None;
        let aside = bench.after(|folder| {
            let mut file = File::create(folder.join(".a.yaml.tmp")).unwrap();
            file.write_all(b"2").unwrap();
            writer = Some(file);
        });
        assert_eq!(aside, DEBOUNCE, "no resource file was touched");
        let renamed = bench.after(|folder| fs::rename(folder.join(".a.yaml.tmp"), folder.join("a.yaml")).unwrap());
        assert_eq!(renamed, WHOLE);
        drop(writer);
    }

    #[test]
    fn what_nobody_will_close_is_not_waited_for() {
        let mut bench = Bench::new(&["a.yaml"]);
        let quiet = bench.after(|folder| symlink("a.yaml", folder.join("b.yaml")).unwrap());
        assert_eq!(quiet, DEBOUNCE, "a symlink");
        let quiet = bench.after(|folder| fs::hard_link(folder.join("a.yaml"), folder.join("c.yaml")).unwrap());
        assert_eq!(quiet, DEBOUNCE, "a link");
        let mut writer = None;
        let quiet = bench.after(|folder| {
            writer = Some(File::create(folder.join("a.yaml")).unwrap());
            fs::remove_file(folder.join("a.yaml")).unwrap();
        });
        assert_eq!(quiet, DEBOUNCE, "removed under its writer");
    }

    #[test]
    fn listing_and_reading_are_no_change() {
        let mut bench = Bench::new(&["a.yaml"]);
        let whole = bench.after(|folder| fs::write(folder.join("a.yaml"), "2").unwrap());
        let read = bench.after(|folder| {
            fs::read_dir(folder).unwrap().for_each(drop);
            fs::read(folder.join("a.yaml")).unwrap();
        });
        assert_eq!((whole, read), (WHOLE, WHOLE));
    }
}
