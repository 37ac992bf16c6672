//! `--user`: without privileges, and without sight of the files through which a workload could leave the mesh.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{self, Gid, Uid, initgroups, setgid, setgroups, setuid},
};

use crate::registry::mounts_of;

/// File systems that are hidden: writing to the first two moves processes between cgroups, the last holds our pins.
const HIDDEN: [&str; 3] = ["cgroup2", "cgroup", "bpf"];

/// Whom the command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    uid: Uid,
    gid: Gid,
    /// `None`: a number that no entry of the user database has.
    entry: Option<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    home: PathBuf,
}

// === impl User ===

impl User {
    /// By name, or by number, which needs no entry in the user database (its group is the same number then).
    pub fn find(text: &str) -> anyhow::Result<Self> {
        let number = text.parse::<u32>().ok();
        let found = match number {
            Some(number) => unistd::User::from_uid(Uid::from_raw(number)),
            None => unistd::User::from_name(text),
        };
        match (found.with_context(|| format!("look up user `{text}`"))?, number) {
            (Some(user), _) => {
                let entry = Some(Entry {
                    name: user.name,
                    home: user.dir,
                });
                Ok(Self {
                    uid: user.uid,
                    gid: user.gid,
                    entry,
                })
            }
            (None, Some(number)) => Ok(Self {
                uid: Uid::from_raw(number),
                gid: Gid::from_raw(number),
                entry: None,
            }),
            (None, None) => Err(anyhow!("there is no user `{text}`")),
        }
    }

    /// Hides the files, then drops the privileges. Leaving root for another user clears all capabilities.
    pub fn become_them(&self) -> anyhow::Result<()> {
        hide().context("hide the cgroup and bpf file systems")?;
        let name = self.entry.as_ref().map(|entry| entry.name.as_str());
        self.drop_privileges().with_context(|| match name {
            Some(name) => format!("become user `{name}`"),
            None => format!("become user {}", self.uid),
        })
    }

    /// What a login would say.
    pub fn set_environment(&self, command: &mut Command) {
        if let Some(entry) = &self.entry {
            command
                .env("USER", &entry.name)
                .env("LOGNAME", &entry.name)
                .env("HOME", &entry.home);
        }
    }

    fn drop_privileges(&self) -> anyhow::Result<()> {
        match &self.entry {
            Some(entry) => initgroups(&CString::new(entry.name.as_str())?, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        setuid(self.uid)?;
        Ok(())
    }
}

/// In a mount namespace of our own, of which nothing comes back.
fn hide() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("make mounts private")?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    // A mount below one that is hidden already cannot be reached any more.
    let mut hidden: Vec<PathBuf> = Vec::new();
    for point in mounts_of(&mountinfo, &HIDDEN) {
        if !hidden.iter().any(|above| point.starts_with(above)) {
            cover(&point).with_context(|| format!("cover {}", point.display()))?;
            hidden.push(point);
        }
    }
    Ok(())
}

/// With an empty folder that nobody can write to.
fn cover(point: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("none"),
        point,
        Some("tmpfs"),
        flags,
        Some("size=4k,nr_inodes=2,mode=0555"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = User::find("root").expect("there is always root");
        assert_eq!(
            (root.uid, User::find("0").expect("by number")),
            (Uid::from_raw(0), root.clone())
        );
        let nobody_has = User::find("4123456789").expect("a number needs no entry");
        assert_eq!((nobody_has.gid, nobody_has.entry), (Gid::from_raw(4_123_456_789), None));
        assert_eq!(
            User::find("no such user").expect_err("no user").to_string(),
            "there is no user `no such user`"
        );
    }
}
