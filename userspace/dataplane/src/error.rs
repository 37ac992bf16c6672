//! What can go wrong with the kernel side, and what the operator can do about it.

use std::{io, path::PathBuf, time::Duration};

use crate::{doctor, sizes::Shape};

/// What lets a daemon start over kernel tables of another layout, and what that does to what runs; both who refuse say it.
pub const AFTER_A_CHANGED_LAYOUT: &str = "`weft uninstall --kernel-only`: until the next daemon runs nothing is \
     enforced, and programs that listen by then must be started again to be in the mesh (without --kernel-only all workloads must)";

/// Errors of loading, attaching, publishing and reading.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error("this binary was built without kernel programs: build it with `cargo xtask build`")]
    NoObject,
    #[error("load `{program}`: refused by the kernel: {log_tail}")]
    Refused {
        program: String,
        log_tail: String,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error("load the kernel programs: {reason}")]
    Load {
        reason: String,
        #[source]
        source: Box<aya::EbpfError>,
    },
    #[error("the kernel object has no {what} `{name}`: binary and kernel programs are of different builds")]
    Missing { what: &'static str, name: &'static str },
    #[error("attach `{program}` to {target}")]
    Attach {
        program: &'static str,
        target: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is pinned with layout {found}, this binary has {expected}: start the version that made it, or run {}",
        AFTER_A_CHANGED_LAYOUT
    )]
    Layout { path: PathBuf, found: u32, expected: u32 },
    #[error(
        "{path} is pinned with {found}, this binary has {expected}: start the version that made it, or run {}",
        AFTER_A_CHANGED_LAYOUT
    )]
    Shape {
        path: PathBuf,
        found: Shape,
        expected: Shape,
    },
    /// Of a publication, found before anything is written.
    #[error(
        "weft_{map} has room for {room} entries, and {needed} would be in it during this change ({leaving} of them leave with it): \
         make it larger with `--map-size {map}={}`, which counts when the kernel tables are made anew: after {}",
        enough(*needed),
        AFTER_A_CHANGED_LAYOUT
    )]
    Full {
        /// Without the prefix.
        map: &'static str,
        room: usize,
        needed: usize,
        /// Entries that are in force and will not be after this change.
        leaving: usize,
    },
    #[error("pin {path}")]
    Pin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{map}: {what}")]
    Map {
        map: &'static str,
        what: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("no cgroup v2 mount found; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    #[error("cgroup {path}: {what}")]
    Cgroup {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "cgroup {path} does not exist; make it, or leave --cgroup out (under `ip netns exec` /sys is remounted and hides it: use `nsenter --net=...`)"
    )]
    NoCgroup { path: PathBuf },
    #[error("bpffs {path}: {what}")]
    Bpffs {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} is in use by another weft daemon; stop it, or give this one its own --bpffs and --cgroup")]
    InUse { path: PathBuf },
    #[error(
        "{path} was locked for {patience:?}, by examinations that take long or a process that keeps it; `fuser -v {path}` names it"
    )]
    Held { path: PathBuf, patience: Duration },
    #[error("lock {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("needs {what}; run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    Privilege { what: &'static str },
    #[error("{what}")]
    Os {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The smallest size that has room for so many and costs no more than they do: tables are made for powers of two.
fn enough(needed: usize) -> usize {
    needed.checked_next_power_of_two().unwrap_or(needed)
}

impl DataplaneError {
    /// Whether privileges or kernel features are missing (exit code 3) rather than something having failed. Where a
    /// program or a map was refused the errno does not say (EINVAL may be a mistake of ours): the kernel is asked what
    /// it has.
    pub fn is_environment(&self) -> bool {
        match self {
            Self::Privilege { .. } | Self::NoCgroup2 => true,
            Self::Refused { .. } | Self::Load { .. } => !doctor::lacking().is_empty(),
            Self::Attach { source, .. } | Self::Bpffs { source, .. } | Self::Cgroup { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}
