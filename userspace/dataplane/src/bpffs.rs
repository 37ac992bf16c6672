//! The bpffs directory that holds the pins.

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{error::DataplaneError, lock::make_private};

/// Source of the mounts that we make, by which we know them again.
const SOURCE: &str = "weft";

/// Makes `path` a directory on a bpffs that nobody else can open: if it is not on one, a bpffs is mounted there.
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
    if !path.exists() {
        make_private(path).map_err(fail("make the directory"))?;
    }
    if is_bpffs(path) {
        // One with others' pins is refused later, and stays as it is.
        return match others(path).map_err(fail("list"))? {
            None => make_private(path).map_err(fail("make it private")),
            Some(_) => Ok(()),
        };
    }
    mount(Some(SOURCE), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| fail("mount a bpffs")(errno.into()))
}

/// Whether `path` is on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether a bpffs is mounted at `path` itself, and [`ensure_bpffs`] did it.
pub fn is_our_mount(path: &Path) -> bool {
    let (Ok(path), Ok(mounts)) = (fs::canonicalize(path), fs::read_to_string("/proc/self/mountinfo")) else {
        return false;
    };
    is_mounted_by_us(&mounts, &path.to_string_lossy())
}

/// `mountinfo`: proc_pid_mountinfo(5); the last mount at a place is the one that is seen.
fn is_mounted_by_us(mountinfo: &str, path: &str) -> bool {
    let path = path.replace('\\', "\\134").replace(' ', "\\040");
    let mounts = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let mut at_path = mounts.filter(|(place, _)| place.split(' ').nth(4) == Some(&*path));
    at_path
        .next_back()
        .is_some_and(|(_, kind)| kind.starts_with(&format!("bpf {SOURCE} ")))
}

/// What is in the directory beside our folders and the kernel's own files (`maps.debug`, `progs.debug`), which have dots, as no
/// pin may: another's pins.
///
/// # Errors
///
/// The directory cannot be read.
pub fn others(path: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.contains('.') && name != "links" && name != "maps" {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_ours_are_taken_for_ours() {
        let text = "30 23 0:27 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n\
                    31 30 0:28 / /sys/fs/bpf/weft rw - bpf weft rw\n\
                    32 30 0:29 / /mnt/a\\040b rw - bpf weft rw\n\
                    33 30 0:30 / /mnt/over rw - bpf weft rw\n\
                    34 30 0:31 / /mnt/over rw - bpf none rw\n";
        for (path, ours) in [
            ("/sys/fs/bpf", false),
            ("/sys/fs/bpf/weft", true),
            ("/mnt/a b", true),
            ("/mnt/over", false),
            ("/mnt", false),
        ] {
            assert_eq!(is_mounted_by_us(text, path), ours, "{path}");
        }
    }
}
