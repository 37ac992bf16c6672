//! A cgroup of the lab's own below the machine's cgroup v2 mount, wherever that is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::poll;

/// Where cgroup v2 is mounted: `/sys/fs/cgroup` on most machines, `/sys/fs/cgroup/unified` on hybrid ones.
///
/// # Errors
/// There is no such mount.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let Some(point) = mounts.lines().find_map(mount_of_line) else {
        bail!("no cgroup2 mount in /proc/self/mountinfo");
    };
    Ok(point)
}

/// `36 35 98:0 / /sys/fs/cgroup rw - cgroup2 none rw`: the mount point if the type behind ` - ` is cgroup2.
fn mount_of_line(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    (kind.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
}

/// A cgroup that is removed, with all below it and all processes in it, when this is dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

// === impl Cgroup ===

impl Cgroup {
    /// Makes `NAME` below the cgroup v2 mount.
    ///
    /// # Errors
    /// No mount, or no permission; an existing cgroup is not taken over.
    pub fn new(name: &str) -> Result<Self> {
        let path = mount_point()?.join(name);
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills what runs in it and removes it with all below it.
    ///
    /// # Errors
    /// Something in it does not go away in time.
    pub fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        // cgroup.kill reaches exactly the processes of this subtree, which are this lab's.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        poll::regardless(poll::PATIENCE, "the lab's cgroups to empty", || remove_tree(&self.path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("remove cgroup {} by hand: {error:#}", self.path.display());
        }
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("list cgroup {}", path.display()))? {
        let entry = entry.with_context(|| format!("list cgroup {}", path.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("remove cgroup {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_by_its_type() {
        let hybrid = "36 35 0:32 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_of_line(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let v1 = "37 35 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        assert_eq!(mount_of_line(v1), None);
    }
}
