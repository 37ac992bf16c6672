//! Clients' addresses in pods: what [`weft_dataplane::sources`] puts into a namespace is written down before, one file a
//! namespace, so that whoever comes after a daemon that was killed can take it back.

use std::{
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use weft_dataplane::{netns_cookie, sources};
use weft_proxy::{Netns, netns};

use crate::state_dir::write_atomically;

/// The folder of these files.
pub struct Sources {
    folder: PathBuf,
}

/// What [`Sources::put`] did.
pub struct Put {
    /// Why servers in the namespace do not see their clients' addresses; `None`: they do.
    pub unseen: Option<String>,
    /// What [`Sources::take_back`] needs to know; `None`: nothing was put there.
    before: Option<String>,
}

/// What is in a file; its name is the namespace's cookie.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Where the namespace was found.
    path: PathBuf,
    device: u64,
    inode: u64,
    /// `net.ipv4.tcp_fwmark_accept` as it was.
    tcp_fwmark_accept: String,
}

// === impl Sources ===

impl Sources {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Puts all that is needed into a namespace, which was opened at `path`.
    pub fn put(&self, netns: &Netns, path: &str) -> Put {
        let before = self.before(netns, path);
        let (put, before) = match before.and_then(|before| Ok((netns.visit(sources::put)?, before))) {
            Ok((put, before)) => (put, Some(before)),
            Err(error) => {
                let problem = format!("{error:#}");
                let put = sources::Sources {
                    problem,
                    ..sources::Sources::default()
                };
                (put, None)
            }
        };
        let unseen = in_force(netns, put);
        Put { unseen, before }
    }

    /// Puts back what somebody else took away, where all was well. Returns why servers in the namespace do not see their clients'
    /// addresses, if so.
    pub fn put_again(&self, netns: &Netns) -> Option<String> {
        let put = netns.visit(sources::put_again);
        let put = put.unwrap_or_else(|error| sources::Sources {
            problem: error.to_string(),
            ..sources::Sources::default()
        });
        in_force(netns, put)
    }

    /// Takes it back; connections with a client's address end. Nothing happens where nothing was put.
    pub fn take_back(&self, netns: &Netns) {
        let file = self.file(netns.cookie());
        let before = read(&file).map(|record| record.map(|record| record.tcp_fwmark_accept));
        self.take_back_to(netns, before);
    }

    /// The same for what was put into a namespace that was left at that moment: its file may be gone.
    pub fn undo(&self, netns: &Netns, put: Put) {
        self.take_back_to(netns, Ok(put.before));
    }

    fn take_back_to(&self, netns: &Netns, before: io::Result<Option<String>>) {
        netns.keep_sources(0, false, false);
        let taken = before.and_then(|before| {
            let Some(before) = before else { return Ok(()) };
            netns.visit(|| sources::take_back(&before)).flatten()?;
            match fs::remove_file(self.file(netns.cookie())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        });
        if let Err(error) = taken {
            tracing::warn!(netns = netns.cookie(), %error, "a rule and a route for clients' addresses stay behind");
        }
    }

    /// Takes back what an earlier daemon put into namespaces that are not among those `kept`; returns where.
    ///
    /// # Errors
    ///
    /// The first that failed; the others are gone. Files of namespaces that have ended are removed.
    pub fn clean(&self, kept: impl Fn(u64) -> bool) -> anyhow::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.folder.display())),
        };
        let mut cleaned = Vec::new();
        let mut failed = None;
        for file in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let cookie = file.file_stem().and_then(|name| name.to_str()?.parse().ok());
            if cookie.is_some_and(&kept) {
                continue;
            }
            let done = clean(&file, cookie).and_then(|place| {
                fs::remove_file(&file)?;
                Ok(place)
            });
            match done {
                Ok(place) => cleaned.extend(place),
                Err(error) => {
                    let error = anyhow::Error::from(error).context(format!("take back what {} says", file.display()));
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(cleaned), Err)
    }

    /// `net.ipv4.tcp_fwmark_accept` as it was before weft came, which is written down.
    fn before(&self, netns: &Netns, path: &str) -> anyhow::Result<String> {
        let file = self.file(netns.cookie());
        // By an earlier daemon, too.
        if let Some(record) = read(&file).with_context(|| format!("read {}", file.display()))? {
            return Ok(record.tcp_fwmark_accept);
        }
        let found = fs::metadata(path).with_context(|| format!("look at {path}"))?;
        // Only where all is the workload's: never a rule that the whole machine has.
        let machines = fs::metadata("/proc/1/ns/net");
        if machines.is_ok_and(|machines| (machines.dev(), machines.ino()) == (found.dev(), found.ino())) {
            anyhow::bail!("it is the machine's own, in which no rule is made");
        }
        let record = Record {
            path: path.into(),
            device: found.dev(),
            inode: found.ino(),
            tcp_fwmark_accept: netns
                .visit(sources::inherits_mark)
                .flatten()
                .context("read net.ipv4.tcp_fwmark_accept")?,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .with_context(|| format!("make {}", self.folder.display()))?;
        write_atomically(&file, &serde_json::to_vec(&record)?).with_context(|| format!("write {}", file.display()))?;
        Ok(record.tcp_fwmark_accept)
    }

    fn file(&self, cookie: u64) -> PathBuf {
        self.folder.join(format!("{cookie}.json"))
    }
}

/// What is not there is not relied on.
fn in_force(netns: &Netns, put: sources::Sources) -> Option<String> {
    netns.keep_sources(sources::MARK, put.v4, put.v6);
    (!put.problem.is_empty()).then_some(put.problem)
}

fn read(file: &Path) -> io::Result<Option<Record>> {
    match fs::read(file) {
        // A file that nobody can read says nothing; what it said cannot be known.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where it was taken back; `None`: the namespace has ended, or the file is not ours.
fn clean(file: &Path, cookie: Option<u64>) -> io::Result<Option<PathBuf>> {
    let (Some(record), Some(cookie)) = (read(file)?, cookie) else {
        return Ok(None);
    };
    let Some(found) = find(&record, cookie) else {
        return Ok(None);
    };
    netns::visit(found.as_fd(), || sources::take_back(&record.tcp_fwmark_accept)).flatten()?;
    Ok(Some(record.path))
}

/// The namespace, at its path or as that of a process: one that lives may have lost its path.
fn find(record: &Record, cookie: u64) -> Option<fs::File> {
    let of_processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let places = of_processes.map(|entry| entry.path().join("ns/net"));
    std::iter::once(record.path.clone())
        .chain(places)
        .filter(|place| {
            fs::metadata(place).is_ok_and(|found| (found.dev(), found.ino()) == (record.device, record.inode))
        })
        .filter_map(|place| fs::File::open(place).ok())
        // Numbers of files are given again; cookies are not.
        .find(|file| matches!(netns::visit(file.as_fd(), netns_cookie), Ok(Ok(found)) if found == cookie))
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, process::Command, sync::mpsc, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn files_of_namespaces_that_ended_go_and_kept_ones_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let sources = Sources::new(dir.path().join("netns"));
        assert!(sources.clean(|_| false).expect("nothing is no error").is_empty());
        fs::create_dir(&sources.folder).expect("made");
        let record = Record {
            path: "/nowhere".into(),
            device: 0,
            inode: 0,
            tcp_fwmark_accept: "0".into(),
        };
        for cookie in [1, 2] {
            write_atomically(&sources.file(cookie), &serde_json::to_vec(&record).expect("json")).expect("written");
        }
        fs::write(sources.folder.join("3.json"), "{").expect("written");
        assert!(sources.clean(|cookie| cookie == 2).expect("cleaned").is_empty());
        let left: Vec<_> = fs::read_dir(&sources.folder).expect("listed").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(sources.file(2).exists());
    }

    #[test]
    fn what_was_put_where_we_had_left_is_taken_back_without_its_file() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root (cargo xtask test)");
            return;
        }
        // A namespace as long as this thread.
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            tell.send(path).expect("somebody waits");
            let _ = ended.recv();
        });
        let path = told.recv().expect("it is there");
        let descriptor: OwnedFd = fs::File::open(&path).expect("opened").into();
        let netns = Netns::new(7, descriptor).expect("a namespace");
        let state = || {
            let rules = || {
                Command::new("ip")
                    .arg("rule")
                    .output()
                    .expect("iproute2 is there")
                    .stdout
            };
            let seen = netns.visit(|| (rules(), sources::inherits_mark().expect("/proc")));
            let (rules, inherits) = seen.expect("entered");
            (String::from_utf8_lossy(&rules).into_owned(), inherits)
        };
        let before = state();
        let dir = tempfile::tempdir().expect("a directory");
        let sources = Sources::new(dir.path().join("netns"));
        let put = sources.put(&netns, &path);
        assert_ne!(state(), before);
        fs::remove_file(sources.file(7)).expect("who left it removed it");
        sources.undo(&netns, put);
        assert_eq!(state(), before);
        drop(end);
    }
}
