//! The bpffs directory that holds the pins.

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::error::DataplaneError;

/// Makes `path` a directory on a bpffs: if it is not on one, a bpffs is mounted there.
///
/// # Errors
///
/// Not a directory, not permitted; nothing is left half done.
pub fn ensure_bpffs(path: &Path) -> Result<(), DataplaneError> {
    let fail = |what: &'static str| {
        move |source: io::Error| DataplaneError::Bpffs {
            path: path.to_path_buf(),
            what,
            source,
        }
    };
    fs::create_dir_all(path).map_err(fail("make the directory"))?;
    if is_bpffs(path) {
        return Ok(());
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| fail("mount a bpffs")(errno.into()))
}

/// Whether `path` is on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether `path` itself is a mount point of a bpffs (rather than a directory on one).
pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (Ok(here), Some(Ok(above))) = (fs::metadata(path), path.parent().map(fs::metadata)) else {
        return false;
    };
    is_bpffs(path) && here.dev() != above.dev()
}
