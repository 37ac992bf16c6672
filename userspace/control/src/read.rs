//! Bounded reading.

use std::{
    fs::{Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Largest file that is read, the policy's own limit: a resource is a page of YAML, a generated folder some megabytes.
/// A larger one is refused by its size, without being read.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    TooLarge(u64),
}

/// Reads a regular file of at most [`MAX_FILE_BYTES`]; a file that grows meanwhile is not read further either.
pub(crate) fn read_bounded(path: &Path, metadata: &Metadata) -> io::Result<Content> {
    if metadata.len() > MAX_FILE_BYTES {
        return Ok(Content::TooLarge(metadata.len()));
    }
    let mut bytes = Vec::new();
    // A FIFO that took the place of the file must not hang us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        size if size > MAX_FILE_BYTES => Ok(Content::TooLarge(size)),
        _ => Ok(Content::Bytes(bytes)),
    }
}
