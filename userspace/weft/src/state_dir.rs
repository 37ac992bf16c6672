//! Where the daemon keeps what must survive it, and how it makes sure to be alone there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

const RUN_DIR: &str = "/run/weft";
const LIB_DIR: &str = "/var/lib/weft";

/// The files of one daemon. `--state-dir S` stands for both directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    run: PathBuf,
    lib: PathBuf,
}

/// Held by the daemon as long as it lives; the kernel releases it when the process ends, however it ends. It belongs to the
/// open file, not to the process: whoever is passed the descriptor holds it, too.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

/// Where a daemon has its kernel side, which outlives it: absolute paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub bpffs: PathBuf,
    pub cgroup: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state directory {} is in use by another weft daemon (process {pid}); stop it, or give this one its own --state-dir", dir.display())]
    InUse { dir: PathBuf, pid: String },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

// === impl StateDir ===

impl Default for StateDir {
    fn default() -> Self {
        Self {
            run: RUN_DIR.into(),
            lib: LIB_DIR.into(),
        }
    }
}

impl StateDir {
    /// `None`: the system's places, /run/weft and /var/lib/weft.
    pub fn new(state_dir: Option<&Path>) -> Self {
        state_dir.map_or_else(Self::default, |dir| Self {
            run: dir.into(),
            lib: dir.into(),
        })
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("weft.sock")
    }

    /// What [`StateDir::lock`] locks.
    pub fn lock_file(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// One JSON file a workload of `weft run`. They end with the machine, as their processes do.
    pub fn workloads(&self) -> PathBuf {
        self.run.join("workloads")
    }

    /// One JSON file a pod's network namespace in which servers see their clients' addresses: what was put there.
    pub fn namespaces(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// [`Places`] of the last daemon. They end with the machine, as what is there does.
    pub fn places_file(&self) -> PathBuf {
        self.run.join("places.json")
    }

    /// Modules of adapters that `weft adapter load` brought, by digest.
    pub fn modules(&self) -> PathBuf {
        self.lib.join("modules")
    }

    /// Generations of adapters that were rolled back, and why.
    pub fn rolled_back(&self) -> PathBuf {
        self.lib.join("rolled-back.json")
    }

    /// Numbers and virtual IPs that must stay the same across restarts.
    pub fn allocations(&self) -> PathBuf {
        self.lib.join("allocations.json")
    }

    /// What was in force last, for a start that finds broken files: one JSON file a source file, named by a hash of its path.
    pub fn last_good(&self) -> PathBuf {
        self.lib.join("last-good")
    }

    /// Where daemons had all of that before each source file had a file of its own. Read once, then removed.
    pub fn last_good_file(&self) -> PathBuf {
        self.lib.join("last-good.json")
    }

    /// What `weft apply` stored, one file an object.
    pub fn applied(&self) -> PathBuf {
        self.lib.join("resources")
    }

    /// The directories themselves; twice the same with `--state-dir`.
    pub fn dirs(&self) -> [&Path; 2] {
        [&self.run, &self.lib]
    }

    /// Makes the directories (0700) and takes the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::InUse`] names the process that holds it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        for dir in self.dirs() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(io("create state directory", dir))?;
        }
        let path = self.lock_file();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open lock file", &path))?;
        let mut lock = self.hold(file)?;
        lock.write_pid().map_err(io("write lock file", &path))?;
        Ok(lock)
    }

    /// The lock that another daemon handed over; it goes on holding it until it closes its descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor is of another file, or that daemon did not hold the lock.
    pub fn handed_over(&self, lock: OwnedFd) -> Result<StateLock, StateError> {
        let path = self.lock_file();
        let file = File::from(lock);
        let (theirs, ours) = file
            .metadata()
            .and_then(|theirs| Ok((theirs, fs::metadata(&path)?)))
            .map_err(io("look at lock file", &path))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            let other = io::Error::other("the lock that was handed over is of another file");
            return Err(io("take over", &path)(other));
        }
        self.hold(file)
    }

    /// Where the last daemon had its kernel side; `None`: no daemon has said.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn places(&self) -> Result<Option<Places>, StateError> {
        let path = self.places_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let places = serde_json::from_slice(&text).map_err(|error| io("read", &path)(error.into()))?;
        Ok(Some(places))
    }

    /// Writes down where this daemon has it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn keep_places(&self, places: &Places) -> Result<(), StateError> {
        let path = self.places_file();
        let text = serde_json::to_vec(places).map_err(io::Error::from);
        text.and_then(|text| write_atomically(&path, &text))
            .map_err(io("write", &path))
    }

    fn hold(&self, mut file: File) -> Result<StateLock, StateError> {
        match file.try_lock() {
            Ok(()) => Ok(StateLock { file }),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                Err(StateError::InUse {
                    dir: self.run.clone(),
                    pid: pid.trim().to_owned(),
                })
            }
            Err(TryLockError::Error(source)) => Err(io("lock", &self.lock_file())(source)),
        }
    }
}

// === impl StateLock ===

impl StateLock {
    /// Tells the next daemon that this process holds the lock.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_pid(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }
}

impl AsFd for StateLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { doing, path, source }
}

/// Replaces a file so that a reader, or a crash, sees the old text or the new.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_stands_for_both() {
        let state = StateDir::new(Some(Path::new("/s")));
        assert_eq!(state.socket(), Path::new("/s/weft.sock"));
        assert_eq!(state.applied(), Path::new("/s/resources"));
        assert_eq!(StateDir::new(None).socket(), Path::new("/run/weft/weft.sock"));
        assert_eq!(StateDir::new(None).applied(), Path::new("/var/lib/weft/resources"));
    }

    #[test]
    fn places_are_told_as_they_were_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::new(Some(dir.path()));
        assert_eq!(state.places().expect("none is no error"), None);
        let places = Places {
            bpffs: "/bpf".into(),
            cgroup: "/cgroup".into(),
        };
        state.keep_places(&places).expect("written");
        assert_eq!(state.places().expect("read"), Some(places));
        fs::write(state.places_file(), "damaged").expect("written");
        let error = state.places().expect_err("damaged").to_string();
        assert!(error.contains("places.json"), "{error}");
    }

    #[test]
    fn the_second_daemon_is_told_who_was_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::new(Some(&dir.path().join("made")));
        let held = state.lock().expect("free");
        let error = state.lock().expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        state.lock().expect("free again");
    }
}
