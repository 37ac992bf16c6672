//! The few things we do to cgroups (version 2), all of them plain file operations.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// The captured cgroup if nobody names another; the daemon makes it.
const DEFAULT_CGROUP: &str = "weft.slice";

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup2 file system is mounted here; mount one (mount -t cgroup2 none /sys/fs/cgroup), or enter the namespace that has it (`ip netns exec` hides it, nsenter --net does not)"
    )]
    NotMounted,
    #[error("cgroup {} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("{} is no cgroup that weft may capture; name a directory below {}", path.display(), mount.display())]
    NotBelow { path: PathBuf, mount: PathBuf },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where cgroup2 is mounted: the first such mount of this mount namespace.
pub fn cgroup2_mount() -> Result<PathBuf, CgroupError> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(MOUNTS).map_err(during("read", Path::new(MOUNTS)))?;
    mounts_of(&text, &["cgroup2"])
        .into_iter()
        .next()
        .ok_or(CgroupError::NotMounted)
}

/// Mount points of these file system types in the text of a mountinfo file, in its order.
pub fn mounts_of(mountinfo: &str, types: &[&str]) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            // 36 35 98:0 /root /mount/point options [optional fields] - type source options
            let (mount, rest) = line.split_once(" - ")?;
            types
                .contains(&rest.split(' ').next()?)
                .then(|| unescape(mount.split(' ').nth(4)?))
                .flatten()
        })
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> Option<PathBuf> {
    let mut parts = path.split('\\');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        plain.push(char::from(u8::from_str_radix(part.get(..3)?, 8).ok()?));
        plain.push_str(part.get(3..)?);
    }
    Some(plain.into())
}

/// A captured cgroup that somebody named: it must exist, be on cgroup2, and not be the root of it all.
pub fn named_cgroup(named: &Path) -> Result<PathBuf, CgroupError> {
    let mount = cgroup2_mount()?;
    let path = match fs::canonicalize(named) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CgroupError::Missing { path: named.to_owned() });
        }
        Err(error) => return Err(during("find cgroup", named)(error)),
    };
    let found = statfs(&path).map_err(|errno| during("look at", &path)(errno.into()))?;
    // The root has no such file.
    let below_root = found.filesystem_type() == CGROUP2_SUPER_MAGIC && events_file(&path).exists();
    if below_root {
        Ok(path)
    } else {
        Err(CgroupError::NotBelow { path, mount })
    }
}

/// Where the captured cgroup is if nobody names another, whether or not it exists.
pub fn default_cgroup() -> Result<PathBuf, CgroupError> {
    Ok(cgroup2_mount()?.join(DEFAULT_CGROUP))
}

/// Moves this whole process into a cgroup.
pub fn enter_cgroup(path: &Path) -> Result<(), CgroupError> {
    let procs = path.join("cgroup.procs");
    fs::write(&procs, "0").map_err(during("enter cgroup through", &procs))
}

/// Inode number of this process's network namespace.
pub fn own_netns() -> Result<u64, CgroupError> {
    const NETNS: &str = "/proc/self/ns/net";
    Ok(fs::metadata(NETNS).map_err(during("look at", Path::new(NETNS)))?.ino())
}

/// The kernel's number of a cgroup: on cgroup2 the inode number of its directory.
pub fn id(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// The file that changes (inotify: modified) when the first process enters and when the last one leaves.
pub fn events_file(path: &Path) -> PathBuf {
    path.join("cgroup.events")
}

/// Whether a process is in the cgroup or below it. One that is removed is empty; one that cannot be read now (no
/// descriptor is free, say) counts as populated: what lives there must not lose its identity.
pub fn is_populated(path: &Path) -> bool {
    match fs::read_to_string(events_file(path)) {
        Ok(text) => text.lines().any(|line| line == "populated 1"),
        Err(error) => !(error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)),
    }
}

/// Removes an empty cgroup, what its processes made below it, and then the parents that became empty, up to `root`.
/// What is not empty stays. False: somebody is in `path` itself.
pub fn remove(root: &Path, path: &Path) -> bool {
    if let Err(error) = remove_tree(path) {
        tracing::debug!(path = %path.display(), %error, "cgroup not removed");
        return false;
    }
    for parent in path
        .ancestors()
        .skip(1)
        .take_while(|parent| *parent != root && parent.starts_with(root))
    {
        if fs::remove_dir(parent).is_err() {
            break; // others are in there
        }
    }
    true
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes all cgroups below `root` that hold no process; `(removed, still there)`.
pub fn prune_empty(root: &Path) -> (usize, Vec<PathBuf>) {
    let mut removed = 0;
    let mut left = Vec::new();
    for child in children(root) {
        let (below, mut stay) = prune_empty(&child);
        removed += below;
        match fs::remove_dir(&child) {
            Ok(()) => removed += 1,
            Err(_) if stay.is_empty() => left.push(child),
            Err(_) => left.append(&mut stay),
        }
    }
    (removed, left)
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn during(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mounts_by_type_also_with_spaces() {
        let text = "29 23 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 none rw\n\
                    30 23 0:27 / /sys/fs/bpf rw - bpf none rw\n\
                    31 23 0:28 / /mnt/a\\040b\\134 rw - cgroup2 none rw\n\
                    garbage\n";
        assert_eq!(
            mounts_of(text, &["cgroup2"]),
            [Path::new("/sys/fs/cgroup/unified"), Path::new("/mnt/a b\\")]
        );
        assert_eq!(mounts_of(text, &["cgroup2", "bpf"]).len(), 3);
    }

    #[test]
    fn only_a_cgroup_below_the_root_may_be_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let Ok(mount) = cgroup2_mount() else {
            eprintln!("skipped: needs a cgroup2 file system");
            return;
        };
        let missing = named_cgroup(&dir.path().join("none")).expect_err("missing").to_string();
        assert!(missing.ends_with("none does not exist"), "{missing}");
        for refused in [dir.path(), &mount] {
            let error = named_cgroup(refused).expect_err("not below").to_string();
            assert!(error.contains("name a directory below"), "{error}");
        }
    }
}
