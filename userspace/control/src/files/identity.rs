//! Which folder it is.

use std::{fs::Metadata, os::unix::fs::MetadataExt, time::SystemTime};

/// Of a folder, so that another one at its path is known as another. Numbers of inodes are given again at once: what was deleted
/// and made anew has its own most often, and is told apart by when it was made, where the file system knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    made: Option<SystemTime>,
}

impl Identity {
    pub fn of(folder: &Metadata) -> Self {
        Self {
            device: folder.dev(),
            inode: folder.ino(),
            made: folder.created().ok(),
        }
    }
}
