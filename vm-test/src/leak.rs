//! What weft may leave behind on a machine, listed before and after.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, bail};
use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};

use crate::{cgroup, poll};

/// Kernel objects named `weft_*`, cgroups and network namespaces of labs, mounts of theirs, and the network devices of
/// this process's own namespace, at one moment.
///
/// The whole machine's: a daemon that starts or ends elsewhere in between shows up too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// Every object of ours begins with this in the kernel.
const PREFIX: &str = "weft_";
/// Every lab's namespace, cgroup and folder begins with this.
const LAB: &str = "weft-t-";

// === impl Snapshot ===

impl Snapshot {
    /// Lists all of it.
    ///
    /// # Errors
    /// The kernel does not answer: no root.
    pub fn take() -> Result<Self> {
        let mut found = BTreeSet::new();
        let mut programs = BTreeSet::new();
        for program in loaded_programs() {
            // An object may go away between its number and its description.
            let Ok(program) = program else { continue };
            if let Some(name) = program.name_as_str().filter(|name| name.starts_with(PREFIX)) {
                programs.insert(program.id());
                found.insert(format!("program {name} (id {})", program.id()));
            }
        }
        for map in loaded_maps().flatten() {
            if let Some(name) = map.name_as_str().filter(|name| name.starts_with(PREFIX)) {
                found.insert(format!("map {name} (id {})", map.id()));
            }
        }
        for link in loaded_links()
            .flatten()
            .filter(|link| programs.contains(&link.program_id()))
        {
            found.insert(format!("link {} (program id {})", link.id(), link.program_id()));
        }
        found.extend(
            names_in(&cgroup::mount_point()?)?
                .into_iter()
                .map(|name| format!("cgroup {name}")),
        );
        if let Ok(namespaces) = names_in("/run/netns".as_ref()) {
            found.extend(namespaces.into_iter().map(|name| format!("network namespace {name}")));
        }
        let devices = fs::read_dir("/sys/class/net").context("list network devices")?;
        found.extend(
            devices
                .flatten()
                .map(|device| format!("network device {}", device.file_name().display())),
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let ours = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| point.contains(LAB));
        found.extend(
            ours.filter(|point| !point.starts_with("/run/netns/"))
                .map(|point| format!("mount {point}")),
        );
        Ok(Self(found))
    }

    /// What is there now and was not `before`.
    pub fn since<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }

    /// Whether there is a kernel program, map or link of ours.
    pub fn has_kernel_objects(&self) -> bool {
        self.0
            .iter()
            .any(|line| line.starts_with("program ") || line.starts_with("map ") || line.starts_with("link "))
    }
}

/// Waits until nothing is there that was not `before`: the kernel frees objects a moment after their last user.
///
/// # Errors
/// Something stays: names it.
pub fn nothing_since(before: &Snapshot) -> Result<()> {
    poll::regardless(poll::PATIENCE, "nothing to be left behind", || {
        let now = Snapshot::take()?;
        let left = now.since(before);
        if !left.is_empty() {
            bail!("left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    })
}

fn names_in(dir: &std::path::Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with(LAB)).collect())
}
