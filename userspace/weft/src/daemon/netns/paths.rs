//! Paths that users wrote: to a cgroup, to a network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::Arc,
};

use weft_dataplane::{Cgroup, netns_cookie};
use weft_proxy::{Netns, netns};

/// Namespaces by the path they were opened at. Open, so that a number that the kernel gives twice is not taken for the same.
#[derive(Default)]
pub struct Paths(BTreeMap<String, Opened>);

struct Opened {
    /// Device and inode of the namespace.
    file: (u64, u64),
    netns: Arc<Netns>,
}

/// The cgroup v2 id at a path of a `capture`.
///
/// # Errors
///
/// Why there is none, in words.
pub fn cgroup_id(captured: &Cgroup, written: &str) -> Result<u64, String> {
    let path = captured.of_workload(Path::new(written))?;
    weft_dataplane::id_of(&path).map_err(|error| in_words(&error, "there is no such cgroup"))
}

// === impl Paths ===

impl Paths {
    /// Closes what is at no path of these.
    pub fn keep<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = paths.collect();
        self.0.retain(|path, _| wanted.contains(path.as_str()));
    }

    /// The namespace at a path.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub fn namespace(&mut self, path: &str) -> Result<&Arc<Netns>, String> {
        let gone = |error: io::Error| in_words(&error, "there is no such file");
        let file = match fs::metadata(path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) => {
                self.0.remove(path);
                return Err(gone(error));
            }
        };
        if self.0.get(path).is_none_or(|opened| opened.file != file) {
            self.0.remove(path);
            let netns = open(path).map_err(gone)?;
            self.0.insert(path.to_owned(), Opened { file, netns });
        }
        self.0
            .get(path)
            .map(|opened| &opened.netns)
            .ok_or_else(|| "it could not be kept".to_owned())
    }

    /// A namespace, and where it was opened.
    pub fn by_cookie(&self, cookie: u64) -> Option<(&str, &Arc<Netns>)> {
        self.0
            .iter()
            .map(|(path, opened)| (path.as_str(), &opened.netns))
            .find(|(_, netns)| netns.cookie() == cookie)
    }
}

fn open(path: &str) -> io::Result<Arc<Netns>> {
    // Whatever is there: a FIFO must not hold us up.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    let cookie = netns::visit(file.as_fd(), netns_cookie)
        .map_err(|error| match error.raw_os_error() {
            Some(nix::libc::EINVAL) => io::Error::other("it is no network namespace"),
            _ => error,
        })
        .flatten()?;
    Netns::new(cookie, file.into())
}

fn in_words(error: &io::Error, none: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => none.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        fs::write(at("file"), "").unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut paths = Paths::default();
        let mut reason = |name: &str| paths.namespace(&at(name)).map(drop).unwrap_err();
        assert_eq!(reason("none"), "there is no such file");
        for name in ["file", "fifo"] {
            let said = reason(name);
            // Without CAP_SYS_ADMIN the kernel says that first.
            assert!(
                said == "it is no network namespace" || said.contains("permitted"),
                "{name}: {said}"
            );
        }
    }
}
