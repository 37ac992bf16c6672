//! The folder: a file for each source, written where its text changed.
//!
//! A file is `HEX.json`, where HEX is the begin of the SHA-256 of the source's path, which may be longer than a file name; the path
//! itself is in it. All that changed is written aside and synced before the first of it takes its place, so that a crash leaves each
//! source as it was before or after, and (but for the moment between two renames) all of them. Of texts hashes are kept in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use weft_control::MAX_FILE_BYTES;

/// Longest text of a source that is kept: of a longer one the next daemon would read nothing.
const MAX_TEXT: usize = MAX_FILE_BYTES as usize;
/// Longest file that is read: JSON may make six bytes of one, and the path is in it, too.
const MAX_FILE: u64 = 6 * MAX_FILE_BYTES + (64 << 10);
/// Longest file that daemons before this version wrote, which had all sources in it.
const MAX_SINGLE: u64 = 1 << 30;
/// So many files are synced each by itself; of more the whole file system is, once. A sync of it waits for what others write, one of a
/// file costs a millisecond or more.
const SYNCED_EACH: usize = 16;

const SUFFIX: &str = ".json";
/// Of a file that is being written. A crash may leave one behind.
const ASIDE: &str = ".new";

/// Half of a SHA-256. No two texts of an operator's have the same.
type Hash = [u8; 16];

/// Of a file that is there and cannot be read.
const UNREAD: Hash = [0; 16];

#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Where daemons before this version kept all sources.
    single: PathBuf,
    /// By hash of the source's path: hash of the text that is there.
    saved: BTreeMap<Hash, Hash>,
    /// Not all that is there was compared since the folder was read.
    is_unsettled: bool,
}

/// What is to be written, and removed, so that the folder is as what is in force.
#[derive(Debug, Default)]
pub struct Changes {
    written: Vec<Written>,
    gone: Vec<Hash>,
}

#[derive(Debug)]
struct Written {
    name: Hash,
    hash: Hash,
    source: Source,
}

/// What is in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Source {
    /// Its path.
    file: Arc<str>,
    /// Documents in force.
    text: String,
}

// === impl Changes ===

impl Changes {
    fn is_empty(&self) -> bool {
        self.written.is_empty() && self.gone.is_empty()
    }
}

// === impl Folder ===

impl Folder {
    pub fn new(path: PathBuf, single: PathBuf) -> Self {
        Self {
            path,
            single,
            saved: BTreeMap::new(),
            is_unsettled: true,
        }
    }

    /// What is kept, by path of the source. What cannot be read is said, left out, and written anew or removed with the next changes.
    pub fn read(&mut self) -> BTreeMap<Arc<str>, String> {
        self.saved.clear();
        self.is_unsettled = true;
        let mut sources = BTreeMap::new();
        for entry in self.entries() {
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().and_then(of_file_name) else {
                forget_unfinished(&path);
                continue;
            };
            let read = read_json(&path, MAX_FILE).and_then(|source: Source| match hash(&source.file) == name {
                true => Ok(source),
                false => Err(io::Error::other("it is of another source than its name says")),
            });
            match read {
                Ok(source) => {
                    self.saved.insert(name, hash(&source.text));
                    sources.insert(source.file, source.text);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "last good resources of a file cannot be read");
                    self.saved.insert(name, UNREAD);
                }
            }
        }
        // A daemon before this version was the last to write: else it would be gone.
        match read_json(&self.single, MAX_SINGLE) {
            Ok(all) => all,
            Err(error) if error.kind() == io::ErrorKind::NotFound => sources,
            Err(error) => {
                tracing::warn!(path = %self.single.display(), %error, "last good resources of an earlier version cannot be read");
                sources
            }
        }
    }

    /// What of these is not as it is kept. They are those that may have changed; the first time after the folder was read, all.
    pub fn compare(&self, sources: impl Iterator<Item = (Arc<str>, String)>) -> Changes {
        let mut changes = Changes::default();
        let mut there = BTreeSet::new();
        for (file, text) in sources {
            let name = hash(&file);
            if text.is_empty() || text.len() > MAX_TEXT {
                if text.len() > MAX_TEXT {
                    let size = text.len();
                    tracing::warn!(%file, size, max = MAX_TEXT, "too long to be kept for the next start");
                }
                if self.saved.contains_key(&name) {
                    changes.gone.push(name);
                }
                continue;
            }
            if self.is_unsettled {
                there.insert(name);
            }
            let hash = hash(&text);
            if self.saved.get(&name) != Some(&hash) {
                let source = Source { file, text };
                changes.written.push(Written { name, hash, source });
            }
        }
        if self.is_unsettled {
            changes.gone = self
                .saved
                .keys()
                .filter(|name| !there.contains(*name))
                .copied()
                .collect();
        }
        changes
    }

    /// Makes them on disk. When this returns they are there.
    ///
    /// # Errors
    ///
    /// Some of them may have been made: whoever compares again finds the others.
    pub fn make(&mut self, changes: &Changes) -> io::Result<()> {
        if !changes.is_empty() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            let folder = File::open(&self.path)?;
            self.write_aside(&folder, &changes.written)?;
            for written in &changes.written {
                fs::rename(self.aside(&written.name), self.file(&written.name))?;
                self.saved.insert(written.name, written.hash);
            }
            for name in &changes.gone {
                remove(&self.file(name))?;
                self.saved.remove(name);
            }
            folder.sync_all()?;
        }
        if self.is_unsettled {
            remove(&self.single)?;
            // The folder itself may be new; and should the single file come back by a crash, it would be taken for newer.
            if let Some(parent) = self.single.parent() {
                File::open(parent)?.sync_all()?;
            }
            self.is_unsettled = false;
        }
        Ok(())
    }

    fn entries(&self) -> impl Iterator<Item = fs::DirEntry> + use<> {
        let entries = fs::read_dir(&self.path).inspect_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %self.path.display(), %error, "last good resources cannot be read");
            }
        });
        entries.into_iter().flatten().flatten()
    }

    fn write_aside(&self, folder: &File, all: &[Written]) -> io::Result<()> {
        for written in all {
            let bytes = serde_json::to_vec(&written.source)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(self.aside(&written.name))?;
            file.write_all(&bytes)?;
            if all.len() <= SYNCED_EACH {
                file.sync_all()?;
            }
        }
        if all.len() > SYNCED_EACH {
            nix::unistd::syncfs(folder)?;
        }
        Ok(())
    }

    fn file(&self, name: &Hash) -> PathBuf {
        self.path.join(file_name(name))
    }

    fn aside(&self, name: &Hash) -> PathBuf {
        self.path.join(file_name(name) + ASIDE)
    }
}

/// Whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Others' files are left alone.
fn forget_unfinished(path: &Path) {
    let name = path.file_name().and_then(|name| name.to_str());
    let is_ours = name
        .and_then(|name| name.strip_suffix(ASIDE))
        .and_then(of_file_name)
        .is_some();
    if is_ours && let Err(error) = remove(path) {
        tracing::warn!(path = %path.display(), %error, "a file that was not written to its end stays");
    }
}

fn read_json<T: DeserializeOwned>(path: &Path, max: u64) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is longer than {max} bytes")));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

fn hash(text: &str) -> Hash {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let mut half = Hash::default();
    half.copy_from_slice(&digest[..16]);
    half
}

fn file_name(name: &Hash) -> String {
    format!("{:032x}{SUFFIX}", u128::from_be_bytes(*name))
}

fn of_file_name(name: &str) -> Option<Hash> {
    let hex = name.strip_suffix(SUFFIX)?;
    let hash = u128::from_str_radix(hex, 16).ok()?.to_be_bytes();
    (file_name(&hash) == name).then_some(hash)
}
