//! Captured workloads whose programs listened before they were captured: said in the log, in `weft status` and by `weft doctor`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
};

use weft_dataplane::{OpenSocket, open_sockets};
use weft_policy::Snapshot;

use super::engine::Engine;
use crate::admin::api::Degraded;

/// Addresses of one workload that are named.
const NAMED: usize = 5;
/// Cgroups below those of all workloads that are looked at.
const MAX_CGROUPS: usize = 50_000;

/// Sockets by workload: its cgroup, its name.
pub type Found = BTreeMap<u64, (String, Vec<OpenSocket>)>;
/// Workload by each cgroup at or below its own: its cgroup, its name.
type Owners = HashMap<u64, (u64, String)>;

/// What of it was said already.
#[derive(Debug, Default)]
pub struct Told {
    /// Somebody was enrolled since it was last looked at.
    stale: bool,
    /// By cgroups of workloads.
    of: BTreeSet<u64>,
}

// === impl Told ===

impl Told {
    /// Another snapshot is in force: whoever it enrols is to be looked at.
    pub fn enrolled(&mut self, before: &Snapshot, now: &Snapshot) {
        let mut cgroups = now.by_cgroup.keys();
        self.stale |= cgroups.any(|cgroup| !before.by_cgroup.contains_key(cgroup));
        self.of.retain(|cgroup| now.by_cgroup.contains_key(cgroup));
    }

    /// Whether to look.
    pub fn is_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// Logs what was not said of a workload before.
    pub fn tell(&mut self, found: Found) {
        for (cgroup, (workload, sockets)) in found {
            if self.of.insert(cgroup) {
                tracing::warn!(workload, listens = words(&sockets), "{WHY}: {INSTEAD}");
            }
        }
    }
}

const WHY: &str =
    "it listens there since before it was captured, so nobody judges who connects, and no service leads there";
const INSTEAD: &str = "start its program again";

/// For `weft status` and `weft doctor`.
pub fn degraded(engine: &Engine) -> Vec<Degraded> {
    let degraded = |(workload, sockets): (String, Vec<OpenSocket>)| Degraded {
        what: format!("workload {workload} at {}", words(&sockets)),
        why: WHY.to_owned(),
        instead: INSTEAD.to_owned(),
    };
    find(engine).into_values().map(degraded).collect()
}

fn words(sockets: &[OpenSocket]) -> String {
    let named = sockets.iter().take(NAMED);
    let mut words: Vec<String> = named
        .map(|socket| format!("{}/{}", socket.address, socket.protocol))
        .collect();
    if let Some(more) = sockets.len().checked_sub(NAMED).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

/// What listens without a record, by workload.
pub fn find(engine: &Engine) -> Found {
    let owners = owners(engine, &engine.in_force().snapshot);
    let mut found = Found::new();
    if owners.is_empty() {
        return found;
    }
    let mut look = |netns: u64, sockets: Vec<OpenSocket>| {
        let captured = |socket: &OpenSocket| owners.contains_key(&socket.cgroup);
        let sockets: Vec<_> = sockets.into_iter().filter(captured).collect();
        if sockets.is_empty() {
            return;
        }
        match engine.dataplane.unrecorded(netns, sockets) {
            Ok(sockets) => {
                for socket in sockets {
                    let (cgroup, workload) = &owners[&socket.cgroup];
                    let entry = found.entry(*cgroup).or_insert_with(|| (workload.clone(), Vec::new()));
                    entry.1.push(socket);
                }
            }
            Err(error) => tracing::warn!(%error, "whether all listeners are known cannot be told"),
        }
    };
    match open_sockets() {
        Ok(sockets) => look(engine.dataplane.home(), sockets),
        Err(error) => tracing::warn!(%error, "listeners cannot be listed (sock_diag)"),
    }
    for (netns, sockets) in engine.pods.visit(open_sockets) {
        match sockets {
            Ok(sockets) => look(netns, sockets),
            Err(error) => tracing::warn!(netns, %error, "listeners of a pod cannot be listed (sock_diag)"),
        }
    }
    found
}

fn owners(engine: &Engine, snapshot: &Snapshot) -> Owners {
    let mut running: HashMap<u64, PathBuf> = engine
        .registry
        .views()
        .into_iter()
        .filter_map(|view| Some((view.cgroup_id?, view.cgroup?)))
        .collect();
    let mut paths: Vec<(PathBuf, &str)> = snapshot
        .by_cgroup
        .iter()
        .filter_map(|(id, workload)| {
            let path = match &workload.capture {
                Some(capture) => engine.pods.cgroup_of(&capture.cgroup)?,
                None => running.remove(id)?,
            };
            Some((path, &*workload.name))
        })
        .collect();
    // What is below another workload's is the nearest one's: those come last.
    paths.sort_by_key(|(path, _)| path.components().count());
    let mut owners = Owners::new();
    for (path, workload) in paths {
        if let Ok(id) = weft_dataplane::id_of(&path) {
            owners.insert(id, (id, workload.to_owned()));
            below(&path, (id, workload), &mut owners);
        }
    }
    owners
}

fn below(cgroup: &Path, (id, workload): (u64, &str), owners: &mut Owners) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if owners.len() < MAX_CGROUPS && child.file_type().is_ok_and(|kind| kind.is_dir()) {
            owners.insert(child.ino(), (id, workload.to_owned()));
            below(&child.path(), (id, workload), owners);
        }
    }
}
