use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::sys::inotify::WatchDescriptor;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;
use weft_adapters::Peer;
use weft_policy::{Protocol, RuntimePort, RuntimeWorkload, SERVICE_LABEL};

use crate::admin::api::{RegisterRequest, WorkloadState, WorkloadView};

/// A record larger than this is not ours.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// What the next daemon must know of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub namespace: String,
    pub service: String,
    pub instance: String,
    pub account: String,
    pub ports: Vec<RuntimePort>,
    pub labels: BTreeMap<String, String>,
    pub command: Vec<String>,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    /// Milliseconds since 1970.
    pub started_ms: u64,
}

#[derive(Debug, Clone, Copy)]
pub enum Phase {
    Starting { until: Instant },
    Running,
}

#[derive(Debug)]
pub struct Entry {
    pub record: Record,
    pub phase: Phase,
    /// Sorted.
    pub listening: Vec<(SocketAddr, Protocol)>,
    /// `None`: none could be had; it is looked at now and then.
    pub watch: Option<WatchDescriptor>,
}

/// `NAMESPACE/SERVICE/INSTANCE`
pub fn name(namespace: &str, service: &str, instance: &str) -> String {
    format!("{namespace}/{service}/{instance}")
}

/// Names have no dots, so the file's name is unique.
pub fn file(folder: &Path, record: &Record) -> PathBuf {
    folder.join(format!(
        "{}.{}.{}.json",
        record.namespace, record.service, record.instance
    ))
}

/// All records of a folder. What does not read is logged and left alone.
pub fn read_all(folder: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for dirent in fs::read_dir(folder)? {
        let path = dirent?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path) {
            Ok(record) if file(folder, &record) == path => records.push(record),
            Ok(_) => tracing::warn!(path = %path.display(), "workload record ignored: its name is that of another"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "workload record ignored"),
        }
    }
    Ok(records)
}

fn read(path: &Path) -> io::Result<Record> {
    if fs::metadata(path)?.len() > MAX_RECORD_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any record"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

// === impl Record ===

impl Record {
    pub fn new(request: RegisterRequest, instance: String, cgroup: PathBuf, cgroup_id: u64) -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let RegisterRequest {
            namespace,
            service,
            account,
            ports,
            labels,
            command,
        } = request;
        Self {
            namespace,
            service,
            instance,
            account,
            ports,
            labels,
            command,
            cgroup,
            cgroup_id,
            started_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// `NAMESPACE/SERVICE/INSTANCE`
    pub fn name(&self) -> String {
        name(&self.namespace, &self.service, &self.instance)
    }

    pub fn peer(&self) -> Peer {
        Peer {
            namespace: self.namespace.clone(),
            service: Some(self.service.clone()),
            account: self.account.clone(),
        }
    }

    fn started(&self) -> Option<String> {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.started_ms))?;
        OffsetDateTime::UNIX_EPOCH
            .checked_add(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.try_into().ok()?)?
            .format(&Rfc3339)
            .ok()
    }
}

// === impl Entry ===

impl Entry {
    pub fn runtime(&self) -> RuntimeWorkload {
        let record = &self.record;
        let mut labels = record.labels.clone();
        labels.insert(SERVICE_LABEL.to_owned(), record.service.clone());
        RuntimeWorkload {
            name: record.name(),
            namespace: record.namespace.clone(),
            service: record.service.clone(),
            account: record.account.clone(),
            labels: labels.into(),
            cgroup: record.cgroup_id,
            ports: record.ports.clone(),
            listening: self.listening.clone(),
        }
    }

    pub fn view(&self) -> WorkloadView {
        let record = &self.record;
        WorkloadView {
            name: record.name(),
            namespace: record.namespace.clone(),
            service: Some(record.service.clone()),
            account: record.account.clone(),
            identity: None,
            state: match self.phase {
                Phase::Starting { .. } => WorkloadState::Starting,
                Phase::Running => WorkloadState::Running,
            },
            ports: record.ports.clone(),
            listening: self.listening.clone(),
            labels: record.labels.clone(),
            cgroup: Some(record.cgroup.clone()),
            cgroup_id: Some(record.cgroup_id),
            netns: None,
            started: record.started(),
            command: record.command.clone(),
        }
    }
}
