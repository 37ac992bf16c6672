//! The objects that `weft apply` keeps: one file an object, below the daemon's state dir.
//!
//! File names are `NAMESPACE_KIND_NAME.yaml` (`_KIND_NAME.yaml` without namespace); none of the parts may hold an
//! underscore or a slash, so names are unique and stay in the folder. A file is whole or not there: it is written aside,
//! synced and renamed, and the folder is synced after it, so that an object survives a power cut once `weft apply` said so.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use weft_policy::{Diagnostic, ObjectRef};

use crate::{
    error::SourceError,
    read::{Content, MAX_FILE_BYTES, read_bounded},
    source::Sink,
};

/// Longest file name: what Linux' file systems take. With namespace and kind it leaves some 150 bytes for a name.
pub const MAX_FILE_NAME: usize = 255;

/// Files being written begin so; a crash may leave one behind, which [`AppliedObjects::open`] removes.
const PENDING: &str = ".pending-";

/// The folder of applied objects. Not shared: whoever has it (the daemon) serialises its calls.
#[derive(Debug)]
pub struct AppliedObjects {
    folder: PathBuf,
}

/// One object that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub object: ObjectRef,
    pub path: PathBuf,
}

// === impl AppliedObjects ===

impl AppliedObjects {
    /// Opens the folder, makes it (mode 0700) if it is not there, and clears what a crash left half-written.
    ///
    /// # Errors
    /// [`SourceError::State`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, SourceError> {
        let folder = folder.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(at("make the folder of applied objects", &folder))?;
        let this = Self { folder };
        for name in this.names()? {
            if name.starts_with(PENDING) {
                let path = this.folder.join(name);
                fs::remove_file(&path).map_err(at("remove the unfinished file", &path))?;
            }
        }
        Ok(this)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where an object is kept, whether or not it is there.
    ///
    /// # Errors
    /// [`SourceError::Name`]: its name makes no safe file name.
    pub fn path(&self, object: &ObjectRef) -> Result<PathBuf, SourceError> {
        Ok(self.folder.join(file_name(object)?))
    }

    /// Stores an object, replacing an older version. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`SourceError::Name`], [`SourceError::TooLarge`], [`SourceError::State`]; the older version is untouched.
    pub fn put(&self, object: &ObjectRef, yaml: &[u8]) -> Result<PathBuf, SourceError> {
        let size = yaml.len() as u64;
        if size > MAX_FILE_BYTES {
            return Err(SourceError::TooLarge {
                object: object.clone(),
                size,
                max: MAX_FILE_BYTES,
            });
        }
        let name = file_name(object)?;
        let (path, pending) = (
            self.folder.join(&name),
            self.folder.join(format!("{PENDING}{}", std::process::id())),
        );
        let written = write_synced(&pending, yaml)
            .and_then(|()| fs::rename(&pending, &path))
            .and_then(|()| self.sync())
            .map_err(at("store the object", &path));
        if written.is_err() {
            // Nothing more can be done about a file that cannot be removed either; `open` tries again.
            let _ = fs::remove_file(&pending);
        }
        written.map(|()| path)
    }

    /// Removes an object; `None`: it was not there.
    ///
    /// # Errors
    /// [`SourceError::Name`], [`SourceError::State`].
    pub fn delete(&self, object: &ObjectRef) -> Result<Option<PathBuf>, SourceError> {
        let path = self.path(object)?;
        match fs::remove_file(&path) {
            Ok(()) => {
                self.sync()
                    .map_err(at("sync the folder of applied objects", &self.folder))?;
                Ok(Some(path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SourceError::State {
                action: "remove the object",
                path,
                source,
            }),
        }
    }

    /// All objects, by file name. Files that are none of ours are left out.
    ///
    /// # Errors
    /// [`SourceError::State`]: the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Applied>, SourceError> {
        let mut names = self.names()?;
        names.sort_unstable();
        Ok(names
            .into_iter()
            .filter_map(|name| {
                Some(Applied {
                    object: object_of(&name)?,
                    path: self.folder.join(name),
                })
            })
            .collect())
    }

    /// The text of an object; `None`: it is not there.
    ///
    /// # Errors
    /// [`SourceError::Name`], [`SourceError::State`], [`SourceError::TooLarge`].
    pub fn get(&self, object: &ObjectRef) -> Result<Option<Vec<u8>>, SourceError> {
        let path = self.path(object)?;
        let content = fs::metadata(&path).and_then(|metadata| read_bounded(&path, &metadata));
        match content {
            Ok(Content::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Content::TooLarge(size)) => Err(SourceError::TooLarge {
                object: object.clone(),
                size,
                max: MAX_FILE_BYTES,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SourceError::State {
                action: "read the object",
                path,
                source,
            }),
        }
    }

    /// Hands every object to the sink, at the daemon's start. One that cannot be read is told and left out.
    ///
    /// # Errors
    /// [`SourceError::State`]: the folder cannot be read.
    pub fn load(&self, sink: &mut dyn Sink) -> Result<(Vec<Diagnostic>, Vec<SourceError>), SourceError> {
        let (mut diagnostics, mut errors) = (Vec::new(), Vec::new());
        for applied in self.list()? {
            match self.get(&applied.object) {
                Ok(Some(bytes)) => diagnostics.extend(sink.apply_file(&applied.path.to_string_lossy(), &bytes)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        Ok((diagnostics, errors))
    }

    fn names(&self) -> Result<Vec<String>, SourceError> {
        let read = || {
            fs::read_dir(&self.folder)?
                .map(|entry| Ok(entry?.file_name().into_string().ok()))
                .filter_map(Result::transpose)
                .collect::<io::Result<Vec<_>>>()
        };
        read().map_err(at("list the folder of applied objects", &self.folder))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// `NAMESPACE_KIND_NAME.yaml`.
fn file_name(object: &ObjectRef) -> Result<String, SourceError> {
    let namespace = object.namespace.as_deref();
    for (part, text) in [
        ("namespace", namespace),
        ("kind", Some(&*object.kind)),
        ("name", Some(&*object.name)),
    ] {
        let Some(text) = text else { continue };
        let safe = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
        if text.is_empty() || text.starts_with('.') || !safe {
            return Err(name_error(object, part, text));
        }
    }
    let name = format!("{}_{}_{}.yaml", namespace.unwrap_or(""), object.kind, object.name);
    // The pending file's name is shorter than any limit.
    if name.len() > 255 {
        Err(name_error(object, "name", &object.name))
    } else {
        Ok(name)
    }
}

fn name_error(object: &ObjectRef, part: &'static str, found: &str) -> SourceError {
    SourceError::Name {
        object: object.clone(),
        part,
        found: found.to_owned(),
        max: MAX_FILE_NAME,
    }
}

/// The object of a file name; `None`: it is none of ours.
fn object_of(name: &str) -> Option<ObjectRef> {
    let mut parts = name.strip_suffix(".yaml")?.split('_');
    let (namespace, kind, object) = (parts.next()?, parts.next()?, parts.next()?);
    let object = ObjectRef {
        kind: kind.to_owned().into(),
        namespace: (!namespace.is_empty()).then(|| namespace.into()),
        name: object.to_owned(),
    };
    (parts.next().is_none() && file_name(&object).is_ok()).then_some(object)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::State { action, path, source }
}

#[cfg(test)]
mod tests;
