//! One look at the folder: what is there, compared with what was applied.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tracing::info;
use weft_policy::{Diagnostic, Severity};

use super::identity::Identity;
use crate::{
    read::{Content, MAX_FILE_BYTES, read_bounded},
    source::{Change, Sink, SourceStatus},
};

/// Files of a folder that are looked at; one resource a file is the usual way, and this is ten times a large mesh.
pub const MAX_FILES: usize = 50_000;

/// A file changed this shortly before it was read may change again without a new time stamp (file systems count in
/// ticks, some in seconds): it is read again at the next look.
const RACY: Duration = Duration::from_secs(2);

/// The folder as it was applied.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// By full path, as in messages.
    files: BTreeMap<String, Known>,
    /// Of the folder that was last listed.
    identity: Option<Identity>,
    /// What is odd about what is in it, as it was told.
    odd: Vec<Diagnostic>,
    /// [`MAX_FILES`].
    most: usize,
    /// Why the last look removed nothing.
    problem: Option<String>,
    /// Some file was in the middle of a write, or the folder was not there.
    unsettled: bool,
}

/// A file that was seen.
#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    /// Of the bytes that were handed to the sink; `None`: none ever were.
    content: Option<u64>,
    /// The sink had it before the first look.
    earlier: bool,
    racy: bool,
    /// The file could not be read since; it is handed over again when it can.
    kept: bool,
    diagnostics: Vec<Diagnostic>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How looking at a file ended.
enum Seen {
    /// As it was applied.
    Same,
    /// Handed to the sink.
    Applied(Vec<Diagnostic>),
    /// Not handed over; what was applied before stays.
    Kept(Diagnostic),
    /// Somebody is writing it.
    Moving,
}

// === impl Folder ===

impl Folder {
    /// `had`: files that the sink has already, of an earlier daemon. Those of this folder are missed like files that
    /// were read.
    pub fn new(path: &Path, had: Vec<String>) -> Self {
        let earlier = || Known {
            earlier: true,
            ..Known::default()
        };
        let here = had.into_iter().filter(|file| Path::new(file).parent() == Some(path));
        Self {
            path: path.to_owned(),
            files: here.map(|file| (file, earlier())).collect(),
            identity: None,
            odd: Vec::new(),
            most: MAX_FILES,
            problem: None,
            unsettled: false,
        }
    }

    pub fn unsettled(&self) -> bool {
        self.unsettled
    }

    pub fn status(&self) -> SourceStatus {
        SourceStatus {
            files: self.files.values().filter(|file| file.in_force()).count(),
            refused: self.files.values().filter(|file| file.refused()).count(),
            unread: self
                .files
                .values()
                .filter(|file| file.kept)
                .flat_map(|file| file.diagnostics.clone())
                .collect(),
            problem: self.problem.clone(),
        }
    }

    /// As [`Self::scan`]; a folder that cannot be read changes nothing and is told once.
    pub fn scan_or_keep(&mut self, sink: &mut dyn Sink, retry: bool) -> Change {
        match self.scan(sink, retry) {
            Ok(change) => change,
            Err(error) => {
                self.unsettled = true;
                self.trouble(format!(
                    "the folder cannot be read ({error}); nothing is removed until it is back"
                ))
            }
        }
    }

    /// Brings the sink in step with the folder. `retry`: files with errors are applied again, changed or not.
    ///
    /// # Errors
    /// The folder cannot be listed; nothing was changed.
    pub fn scan(&mut self, sink: &mut dyn Sink, retry: bool) -> io::Result<Change> {
        let identity = Some(Identity::of(&fs::metadata(&self.path)?));
        let (listed, odd) = self.list()?;
        if listed.is_empty() && !self.files.is_empty() && identity != self.identity {
            self.unsettled = true;
            let what = match self.identity {
                Some(_) => "another folder, without resources, is there now",
                None => "the folder has no resources, but had some when the last daemon ran",
            };
            return Ok(self.trouble(format!(
                "{what} (unmounted?); nothing is removed until it has some (a file without objects will do)"
            )));
        }
        self.identity = identity;
        if let Some(problem) = self.problem.take() {
            info!(path = %self.path.display(), problem, "resources folder is back");
        }
        self.unsettled = false;

        let mut change = Change::default();
        self.remove_missing(&listed, sink, &mut change);
        let (listed, odd) = self.cut(listed, odd);
        // What is odd stays odd: told once.
        if odd != self.odd {
            change.diagnostics.clone_from(&odd);
            self.odd = odd;
        }
        for path in &listed {
            let again = retry && self.files.get(path).is_some_and(Known::refused);
            self.visit(path, again, sink, &mut change);
        }
        self.retry_refused(sink, &mut change);
        Ok(change)
    }

    /// Full paths of the resource files, sorted, and what is wrong with the others.
    fn list(&self) -> io::Result<(Vec<String>, Vec<Diagnostic>)> {
        let (mut listed, mut odd) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let path = self.path.join(entry?.file_name());
            if !is_resource(&path) {
                continue;
            }
            match path.into_os_string().into_string() {
                Ok(path) => listed.push(path),
                Err(path) => odd.push(warning(&path.to_string_lossy(), "its name is no UTF-8", "rename it")),
            }
        }
        listed.sort_unstable();
        Ok((listed, odd))
    }

    /// Leaves out what is too much, and says so: of files that are not known yet.
    fn cut(&self, mut listed: Vec<String>, mut odd: Vec<Diagnostic>) -> (Vec<String>, Vec<Diagnostic>) {
        if listed.len() > self.most {
            let mut room = self.most.saturating_sub(self.files.len());
            listed.retain(|path| {
                let known = self.files.contains_key(path);
                let stays = known || room > 0;
                room -= usize::from(stays && !known);
                stays
            });
            let most = self.most;
            odd.push(warning(
                &self.path.to_string_lossy(),
                &format!("more than {most} files; what came after the {most}th is left out"),
                "put several documents into a file",
            ));
        }
        (listed, odd)
    }

    /// Removals come first, so that an object may move from one file to another in one go.
    fn remove_missing(&mut self, listed: &[String], sink: &mut dyn Sink, change: &mut Change) {
        self.files.retain(|path, known| {
            let there = listed.binary_search(path).is_ok();
            if !there && known.in_force() {
                sink.remove_file(path);
                change.removed.push(path.clone());
            }
            there
        });
    }

    fn visit(&mut self, path: &str, again: bool, sink: &mut dyn Sink, change: &mut Change) {
        let known = self.files.entry(path.to_owned()).or_default();
        let diagnostics = match known.look(path, again, sink) {
            Seen::Same => return,
            Seen::Moving => {
                self.unsettled = true;
                return;
            }
            Seen::Applied(diagnostics) => {
                // Only one that is tried again may be there already.
                if !again || !change.applied.iter().any(|applied| applied == path) {
                    change.applied.push(path.to_owned());
                }
                diagnostics
            }
            Seen::Kept(diagnostic) => {
                known.kept = true;
                vec![diagnostic]
            }
        };
        if known.diagnostics != diagnostics {
            change.diagnostics.retain(|told| told.file != path);
            change.diagnostics.extend(diagnostics.iter().cloned());
            known.diagnostics = diagnostics;
        }
    }

    /// A file may have been refused only because another one still had its object: after a change the refused ones are
    /// given a second chance.
    fn retry_refused(&mut self, sink: &mut dyn Sink, change: &mut Change) {
        if change.applied.is_empty() && change.removed.is_empty() {
            return;
        }
        let refused: Vec<String> = self
            .files
            .iter()
            .filter(|(path, known)| {
                let alone = change.removed.is_empty() && change.applied == [path.as_str()];
                known.refused() && known.content.is_some() && !alone
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in refused {
            self.visit(&path, true, sink, change);
        }
    }

    fn trouble(&mut self, problem: String) -> Change {
        if self.problem.as_ref() == Some(&problem) {
            return Change::default();
        }
        let told = warning(&self.path.to_string_lossy(), &problem, "check the folder");
        self.problem = Some(problem);
        Change {
            diagnostics: vec![told],
            ..Change::default()
        }
    }
}

// === impl Known ===

impl Known {
    /// The sink may have objects of it.
    fn in_force(&self) -> bool {
        self.earlier || self.content.is_some()
    }

    fn refused(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    fn look(&mut self, path: &str, again: bool, sink: &mut dyn Sink) -> Seen {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Seen::Kept(warning(path, "no regular file", "move it elsewhere, or rename it")),
            Err(error) => return Seen::Kept(self.unreadable(path, &error)),
        };
        let stamp = Stamp::of(&metadata);
        if self.stamp == Some(stamp) && !self.racy && !again {
            return Seen::Same;
        }
        let read_at = SystemTime::now();
        let bytes = match read_bounded(Path::new(path), &metadata) {
            Ok(Content::Bytes(bytes)) => bytes,
            Ok(Content::TooLarge(size)) => {
                self.stamp = Some(stamp);
                return Seen::Kept(too_large(path, size));
            }
            Err(error) => return Seen::Kept(self.unreadable(path, &error)),
        };
        if fs::metadata(path).map(|after| Stamp::of(&after)).ok() != Some(stamp) {
            return Seen::Moving;
        }
        self.stamp = Some(stamp);
        self.racy = metadata
            .modified()
            .is_ok_and(|modified| modified.checked_add(RACY).is_none_or(|until| until > read_at));
        let content = hash(&bytes);
        if self.content == Some(content) && !again && !self.kept {
            return Seen::Same;
        }
        self.content = Some(content);
        self.kept = false;
        Seen::Applied(sink.apply_file(path, &bytes))
    }

    /// Read again as soon as it can be.
    fn unreadable(&mut self, path: &str, error: &io::Error) -> Diagnostic {
        self.stamp = None;
        warning(
            path,
            &format!("cannot be read ({error}); what it said before stays in force"),
            "check its permissions",
        )
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Whether a path of the folder names a file that is read.
pub(super) fn is_resource(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden
        && path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn warning(file: &str, reason: &str, instead: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        file: file.to_owned(),
        line: 0,
        column: 0,
        object: None,
        field: String::new(),
        reason: reason.to_owned(),
        instead: Some(instead.to_owned()),
    }
}

fn too_large(path: &str, size: u64) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        ..warning(
            path,
            &format!("{size} bytes are too many, at most {MAX_FILE_BYTES}; what it said before stays in force"),
            "split it into several files",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All is taken.
    #[derive(Default)]
    struct Names(Vec<String>);

    impl Sink for Names {
        fn apply_file(&mut self, path: &str, _bytes: &[u8]) -> Vec<Diagnostic> {
            self.0.push(path.to_owned());
            Vec::new()
        }

        fn remove_file(&mut self, path: &str) {
            self.0.retain(|known| known != path);
        }

        fn files(&self) -> Vec<String> {
            self.0.clone()
        }
    }

    #[test]
    fn a_file_too_many_is_left_out_and_removes_no_other() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(root.path().join(name), "").unwrap();
        let (mut folder, mut names) = (Folder::new(root.path(), Vec::new()), Names::default());
        folder.most = 2;
        write("b.yaml");
        write("c.yaml");
        assert_eq!(folder.scan(&mut names, false).unwrap().diagnostics, []);
        write("a.yaml");
        let change = folder.scan(&mut names, false).unwrap();
        assert_eq!((&*change.applied, &*change.removed), (&[][..], &[][..]));
        assert_eq!(change.diagnostics.len(), 1, "{:?}", change.diagnostics);
        assert_eq!(folder.scan(&mut names, false).unwrap().diagnostics, []);
        fs::remove_file(root.path().join("c.yaml")).unwrap();
        folder.scan(&mut names, false).unwrap();
        let file = |name| root.path().join(name).display().to_string();
        assert_eq!(names.0, [file("b.yaml"), file("a.yaml")]);
    }

    #[test]
    fn a_name_that_cannot_be_told_is_told_when_it_comes() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let root = tempfile::tempdir().unwrap();
        let (mut folder, mut names) = (Folder::new(root.path(), Vec::new()), Names::default());
        folder.scan(&mut names, false).unwrap();
        fs::write(root.path().join(OsStr::from_bytes(b"\xff.yaml")), "").unwrap();
        let told = |folder: &mut Folder, names: &mut Names| folder.scan(names, false).unwrap().diagnostics.len();
        assert_eq!((told(&mut folder, &mut names), told(&mut folder, &mut names)), (1, 0));
    }

    #[test]
    fn a_time_that_no_clock_shows_is_read() {
        let Ok(root) = tempfile::tempdir_in("/dev/shm") else {
            println!("skipped: there is no tmpfs at /dev/shm");
            return;
        };
        let path = root.path().join("a.yaml");
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        fs::File::create(&path).unwrap().set_modified(latest).unwrap();
        let (mut folder, mut names) = (Folder::new(root.path(), Vec::new()), Names::default());
        folder.scan(&mut names, false).unwrap();
        assert_eq!(names.0, [path.display().to_string()]);
    }
}
