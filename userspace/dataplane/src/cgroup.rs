//! The cgroup v2 tree of captured workloads.
//!
//! ```text
//! CGROUP/                           programs are attached here
//!   .daemon/                        the daemon itself: its sockets are the proxy's; locked, so private
//!   .canary/                        where `weft doctor` proves that the programs decide; likewise
//!   <namespace>/<service>/<instance>/   one workload of `weft run` each
//!   anything else/                      workloads whose `capture` names it, at most weft_abi::MAX_DEPTH levels deep
//! ```

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use weft_abi::MAX_DEPTH;

use crate::{
    error::DataplaneError,
    lock::{Lock, make_private},
};

/// The daemon's own cgroup below CGROUP.
const DAEMON: &str = ".daemon";
/// That of `weft doctor`'s canary.
pub(crate) const CANARY: &str = ".canary";
/// Cgroups below the captured one that are weft's own.
pub const OWN: [&str; 2] = [DAEMON, CANARY];

/// The captured cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    mount: PathBuf,
}

/// Mount point of the cgroup v2 hierarchy, from /proc/self/mountinfo (hybrid hosts have it beside v1).
///
/// # Errors
///
/// [`DataplaneError::NoCgroup2`].
pub fn find_cgroup2() -> Result<PathBuf, DataplaneError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|source| DataplaneError::Os {
        what: "read /proc/self/mountinfo",
        source,
    })?;
    mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, kind)| kind.starts_with("cgroup2 "))
        .filter_map(|(place, _)| place.split(' ').nth(4))
        .map(PathBuf::from)
        .next()
        .ok_or(DataplaneError::NoCgroup2)
}

/// cgroup v2 id of a cgroup directory: its inode number (kernfs).
///
/// # Errors
///
/// The directory cannot be read.
pub fn id_of(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.ino())
}

impl Cgroup {
    /// The operator's cgroup, which must exist, or the default one, which is made.
    ///
    /// # Errors
    ///
    /// It does not exist, or is not below the cgroup v2 mount, or is the root cgroup.
    pub fn open(path: Option<&Path>) -> Result<Self, DataplaneError> {
        let mount = find_cgroup2()?;
        let path = match path {
            Some(path) => {
                if !path.is_dir() {
                    return Err(DataplaneError::NoCgroup {
                        path: path.to_path_buf(),
                    });
                }
                path.canonicalize().map_err(fail(path, "resolve"))?
            }
            None => {
                let path = mount.join("weft.slice");
                fs::create_dir_all(&path).map_err(fail(&path, "make"))?;
                path
            }
        };
        if !path.starts_with(&mount) || path == mount {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "name a cgroup below {}, not its root and not elsewhere",
                    mount.display()
                ),
            );
            return Err(DataplaneError::Cgroup {
                path,
                what: "not a cgroup to capture",
                source,
            });
        }
        Ok(Self { path, mount })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where cgroup v2 is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The daemon's own cgroup, whether or not it is there.
    pub fn daemon(&self) -> PathBuf {
        self.path.join(DAEMON)
    }

    /// Depth of the captured cgroup below the hierarchy's root.
    pub(crate) fn level(&self) -> u32 {
        let below = self
            .path
            .strip_prefix(&self.mount)
            .map_or(0, |rest| rest.components().count());
        u32::try_from(below).unwrap_or(u32::MAX - MAX_DEPTH)
    }

    /// The directory of a workload's own cgroup by the path that a user wrote: below the mount point if absolute, else
    /// below the captured cgroup. It need not exist.
    ///
    /// # Errors
    ///
    /// Why this cgroup cannot be a workload's, in words.
    pub fn of_workload(&self, written: &Path) -> Result<PathBuf, String> {
        let captured = self.path.display();
        let path = self.path.join(written);
        let Ok(below) = path.strip_prefix(&self.path) else {
            return Err(format!("it is not below the captured cgroup, {captured}"));
        };
        // A workload made of `..` may be anywhere.
        if below.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err("it has `.` or `..` in it".to_owned());
        }
        let depth = below.components().count();
        if depth == 0 {
            return Err("it is the captured cgroup itself, in which all workloads live".to_owned());
        }
        if OWN.iter().any(|own| below.starts_with(own)) {
            return Err("it is the daemon's own".to_owned());
        }
        if depth > MAX_DEPTH as usize {
            return Err(format!(
                "it is {depth} levels below {captured}; {MAX_DEPTH} are looked at"
            ));
        }
        Ok(path)
    }

    /// Moves the calling process into `CGROUP/.daemon`, made if need be; its id.
    ///
    /// # Errors
    ///
    /// Not permitted.
    pub fn enter_daemon(&self) -> Result<u64, DataplaneError> {
        let path = self.make_daemon()?;
        fs::write(path.join("cgroup.procs"), std::process::id().to_string()).map_err(fail(&path, "enter"))?;
        id_of(&path).map_err(fail(&path, "read"))
    }

    /// The lock of the captured cgroup, see [`lock`](crate::lock).
    pub(crate) fn lock(&self) -> Result<Lock, DataplaneError> {
        Lock::exclusive(&self.make_daemon()?)
    }

    fn make_daemon(&self) -> Result<PathBuf, DataplaneError> {
        let path = self.daemon();
        make_private(&path).map_err(fail(&path, "make"))?;
        Ok(path)
    }

    /// The captured cgroup, opened, to attach programs to.
    pub(crate) fn file(&self) -> Result<fs::File, DataplaneError> {
        fs::File::open(&self.path).map_err(fail(&self.path, "open"))
    }
}

fn fail<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> DataplaneError + 'a {
    move |source| DataplaneError::Cgroup {
        path: path.to_path_buf(),
        what,
        source,
    }
}
