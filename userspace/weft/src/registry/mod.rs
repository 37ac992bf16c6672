//! The workloads of `weft run`: who they are, in which cgroup, and whether they live.
//!
//! A workload is *starting* from its registration until a process enters its cgroup (at most [`ENTER_GRACE`]), then
//! *running* until the last process has left; then its cgroup is removed and it is *gone*: no more part of what is
//! compiled, but still known by name to flow events that come late. Each is one JSON file below the state directory, so
//! that the next daemon takes over what still runs.

mod cgroup;
mod entry;
mod gone;
mod names;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::{
    sync::{Notify, watch as tokio_watch},
    time::Instant,
};
use weft_adapters::Peer;
use weft_policy::{Protocol, RuntimeWorkload};

pub use cgroup::{
    CgroupError, cgroup2_mount, default_cgroup, enter_cgroup, is_populated, mounts_of, named_cgroup, own_netns,
    prune_empty, remove as remove_cgroup,
};
pub use entry::{Record, read_all as read_records};

use crate::{
    admin::{
        ControlError,
        api::{RegisterRequest, WorkloadView},
    },
    state_dir,
};
use entry::{Entry, Phase};
use gone::Gone;

/// A registered workload that no process entered for so long is dropped: its command was never started.
pub const ENTER_GRACE: Duration = Duration::from_secs(10);

/// A workload that inotify does not watch is looked at so often: that long it is listed after its end.
const LOOK: Duration = Duration::from_secs(1);

/// Workloads of one node. Bounds memory and kernel tables; a node runs out of processes long before.
pub const MAX_WORKLOADS: usize = 10_000;

/// Workloads that ended and are still known by name; their last flow events arrive within a second.
pub const GONE_KEPT: usize = 1_024;

/// All workloads of this daemon's `weft run`.
#[derive(Debug)]
pub struct Registry {
    records: PathBuf,
    root: PathBuf,
    inotify: Inotify,
    inner: Mutex<Inner>,
    /// Tells [`Registry::watch`] that a new grace began.
    registered: Notify,
    version: tokio_watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    live: BTreeMap<String, Entry>,
    watched: BTreeMap<WatchDescriptor, String>,
    gone: Gone,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{field} `{value}`: expected {expected}")]
    Invalid {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("no room for another workload: {MAX_WORKLOADS} are registered on this node")]
    Full,
    #[error("workload `{name}` is not registered")]
    NotFound { name: String },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

// === impl Registry ===

impl Registry {
    /// Takes over the workloads that an earlier daemon recorded in `records`, if they still run below the cgroup `root`.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made or read, or inotify is exhausted. A single bad record is logged and left alone.
    pub fn open(records: &Path, root: &Path) -> Result<Self, RegistryError> {
        std::fs::create_dir_all(records).map_err(during("create folder", records))?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|errno| {
            during("watch (is fs.inotify.max_user_instances reached?) cgroups below", root)(errno.into())
        })?;
        let registry = Self {
            records: records.to_owned(),
            root: root.to_owned(),
            inotify,
            inner: Mutex::new(Inner {
                live: BTreeMap::new(),
                watched: BTreeMap::new(),
                gone: Gone::new(GONE_KEPT),
            }),
            registered: Notify::new(),
            version: tokio_watch::Sender::new(0),
        };
        for record in entry::read_all(records).map_err(during("read folder", records))? {
            registry.adopt(record);
        }
        Ok(registry)
    }

    /// Checks the request, makes the cgroup `ROOT/NAMESPACE/SERVICE/INSTANCE` and records the workload.
    ///
    /// # Errors
    ///
    /// Nothing is left behind.
    pub fn register(&self, request: RegisterRequest) -> Result<Record, RegistryError> {
        names::check(&request)?;
        let mut inner = self.lock();
        if inner.live.len() >= MAX_WORKLOADS {
            return Err(RegistryError::Full);
        }
        let (instance, cgroup) = self.make_cgroup(&inner, &request)?;
        let made = cgroup::id(&cgroup)
            .map_err(during("stat cgroup", &cgroup))
            .and_then(|id| {
                let record = Record::new(request, instance, cgroup.clone(), id);
                self.save(&record)?;
                Ok(record)
            })
            .and_then(|record| {
                let watch = self.add_watch(&record).inspect_err(|_| self.forget_file(&record))?;
                Ok((record, watch))
            });
        let (record, watch) = made.inspect_err(|_| {
            cgroup::remove(&self.root, &cgroup);
        })?;
        inner.insert(record.clone(), Some(watch));
        drop(inner);
        self.registered.notify_one();
        self.changed();
        Ok(record)
    }

    /// Drops a workload that no process has entered. One that runs stays until its last process ends: what is in its
    /// cgroup must not lose its identity.
    pub fn deregister(&self, name: &str) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        let entry = inner
            .live
            .get(name)
            .ok_or_else(|| RegistryError::NotFound { name: name.to_owned() })?;
        if !is_populated(&entry.record.cgroup) {
            self.remove(&mut inner, name);
            drop(inner);
            self.changed();
        }
        Ok(())
    }

    /// What the compiler is given.
    pub fn runtime(&self) -> Vec<RuntimeWorkload> {
        self.lock().live.values().map(Entry::runtime).collect()
    }

    /// What `weft status` shows; without identities, which only a snapshot knows.
    pub fn views(&self) -> Vec<WorkloadView> {
        self.lock().live.values().map(Entry::view).collect()
    }

    /// Whether the workload of this cgroup said (`--port`) that it serves this target port.
    pub fn declares(&self, cgroup: u64, protocol: Protocol, port: u16) -> bool {
        let inner = self.lock();
        let entry = inner.live.values().find(|entry| entry.record.cgroup_id == cgroup);
        entry.is_some_and(|entry| {
            let mut ports = entry.record.ports.iter();
            ports.any(|declared| declared.target == port && declared.protocol == protocol)
        })
    }

    /// Sets where a workload listens (as the kernel saw it). True if that is news; then [`Registry::changes`] wakes.
    pub fn set_listening(&self, cgroup: u64, mut listening: Vec<(SocketAddr, Protocol)>) -> bool {
        listening.sort_unstable();
        listening.dedup();
        let mut inner = self.lock();
        let Some(entry) = inner.live.values_mut().find(|entry| entry.record.cgroup_id == cgroup) else {
            return false;
        };
        let news = entry.listening != listening;
        entry.listening = listening;
        drop(inner);
        if news {
            self.changed();
        }
        news
    }

    /// Whose a cgroup is, or was until lately.
    pub fn peer_by_cgroup(&self, cgroup: u64) -> Option<Arc<Peer>> {
        self.lock().gone.peer(cgroup)
    }

    /// A number that grows with every change of [`Registry::runtime`].
    pub fn changes(&self) -> tokio_watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// The first free `SERVICE-N`. A directory that nobody knows and nobody is in (a crash left it) is made anew.
    fn make_cgroup(&self, inner: &Inner, request: &RegisterRequest) -> Result<(String, PathBuf), RegistryError> {
        let service = self.root.join(&request.namespace).join(&request.service);
        std::fs::create_dir_all(&service).map_err(during("create cgroup", &service))?;
        for number in 1.. {
            let instance = format!("{}-{number}", request.service);
            let path = service.join(&instance);
            if inner
                .live
                .contains_key(&entry::name(&request.namespace, &request.service, &instance))
            {
                continue;
            }
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok((instance, path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if std::fs::remove_dir(&path)
                        .and_then(|()| std::fs::create_dir(&path))
                        .is_ok()
                    {
                        return Ok((instance, path));
                    }
                }
                Err(error) => return Err(during("create cgroup", &path)(error)),
            }
        }
        Err(RegistryError::Full)
    }

    fn adopt(&self, record: Record) {
        let name = record.name();
        let found = names::check_record(&record).is_ok()
            && record.cgroup
                == self
                    .root
                    .join(&record.namespace)
                    .join(&record.service)
                    .join(&record.instance)
            && cgroup::id(&record.cgroup).is_ok_and(|id| id == record.cgroup_id);
        if !found {
            tracing::info!(workload = name, "recorded workload is gone");
            self.forget_file(&record);
            return;
        }
        // What runs keeps its identity, watched or not.
        let watch = self.add_watch(&record).inspect_err(|error| {
            tracing::warn!(workload = name, %error, "workload not watched; it is looked at");
        });
        tracing::info!(workload = name, "workload taken over");
        let populated = is_populated(&record.cgroup);
        let mut inner = self.lock();
        inner.insert(record, watch.ok());
        if populated && let Some(entry) = inner.live.get_mut(&name) {
            entry.phase = Phase::Running;
        }
    }

    fn add_watch(&self, record: &Record) -> Result<WatchDescriptor, RegistryError> {
        let events = cgroup::events_file(&record.cgroup);
        self.inotify
            .add_watch(&events, AddWatchFlags::IN_MODIFY)
            .map_err(|errno| during("watch (is fs.inotify.max_user_watches reached?)", &events)(errno.into()))
    }

    fn save(&self, record: &Record) -> Result<(), RegistryError> {
        let path = entry::file(&self.records, record);
        let write = |text: Vec<u8>| state_dir::write_atomically(&path, &text);
        serde_json::to_vec_pretty(record)
            .map_err(io::Error::from)
            .and_then(write)
            .map_err(during("write", &path))
    }

    fn forget_file(&self, record: &Record) {
        let path = entry::file(&self.records, record);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "record not removed");
        }
    }

    /// Only a cgroup that is gone ends a workload: as long as a process can be in there it keeps its identity.
    fn remove(&self, inner: &mut Inner, name: &str) -> bool {
        let Some(cgroup) = inner.live.get(name).map(|entry| entry.record.cgroup.clone()) else {
            return false;
        };
        if !cgroup::remove(&self.root, &cgroup) {
            return false;
        }
        if let Some(entry) = inner.remove(name) {
            if let Some(watch) = entry.watch {
                // Fails if the kernel dropped the watch with the file, which is the same to us.
                let _ = self.inotify.rm_watch(watch);
            }
            self.forget_file(&entry.record);
            tracing::info!(workload = name, "workload is gone");
        }
        true
    }
}

// === impl Inner ===

impl Inner {
    fn insert(&mut self, record: Record, watch: Option<WatchDescriptor>) {
        let name = record.name();
        self.gone.live(record.cgroup_id, record.peer());
        if let Some(watch) = watch {
            self.watched.insert(watch, name.clone());
        }
        let phase = Phase::Starting {
            until: Instant::now() + ENTER_GRACE,
        };
        self.live.insert(
            name,
            Entry {
                record,
                phase,
                listening: Vec::new(),
                watch,
            },
        );
    }

    fn remove(&mut self, name: &str) -> Option<Entry> {
        let entry = self.live.remove(name)?;
        if let Some(watch) = entry.watch {
            self.watched.remove(&watch);
        }
        self.gone.gone(entry.record.cgroup_id);
        Some(entry)
    }
}

// === impl RegistryError ===

impl From<RegistryError> for ControlError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Invalid { .. } => Self::Invalid {
                reason: error.to_string(),
                details: Vec::new(),
            },
            RegistryError::NotFound { name } => Self::NotFound {
                what: format!("workload `{name}`"),
            },
            RegistryError::Full => Self::Unavailable {
                reason: error.to_string(),
            },
            RegistryError::Io { .. } => Self::Failed {
                doing: "register the workload",
                source: error.into(),
            },
        }
    }
}

fn during(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::Io { doing, path, source }
}
