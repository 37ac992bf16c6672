//! What the kernel's tables shall hold for a snapshot: pure, compared and written by `publish`.

pub mod addrs;
pub mod basis;
pub mod canary;
pub mod errs;
pub mod netns;
pub mod policy;
pub mod rules;
pub mod services;
pub mod telemetry;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use weft_abi::{
    AddrOwner, Backend, BackendKey, Dest, DestKey, External, PolicyKey, PolicyValue, Workload, class, direction,
    identity, workload_flags,
};
use weft_policy::{FailureMode, Snapshot};

pub use addrs::Prefix;
pub use basis::{Basis, Changes};
pub use telemetry::Edge;

use crate::canary::Cgroups;

/// Numbers of namespaces, for the DNS redirection (127.53.X.Y). Only ever appended to while the daemon lives.
#[derive(Debug, Clone)]
pub struct Namespaces(Arc<RwLock<Vec<String>>>);

impl Default for Namespaces {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(vec!["default".to_owned()])))
    }
}

impl Namespaces {
    /// As an earlier daemon numbered them ([`Namespaces::names`]).
    pub fn known(mut names: Vec<String>) -> Self {
        names.truncate(usize::from(u16::MAX) + 1);
        if names.is_empty() {
            return Self::default();
        }
        Self(Arc::new(RwLock::new(names)))
    }

    /// All of them, by number.
    pub fn names(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of a namespace; 0 (`default`) when all 65,536 are taken.
    pub fn number(&self, namespace: &str) -> u16 {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = names.iter().position(|name| name == namespace) {
            return u16::try_from(found).unwrap_or(0);
        }
        match u16::try_from(names.len()) {
            Ok(number) => {
                names.push(namespace.to_owned());
                number
            }
            Err(_) => 0,
        }
    }

    /// The namespace of a number; `default` for one that was never given.
    pub fn name(&self, number: u16) -> String {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names
            .get(usize::from(number))
            .cloned()
            .unwrap_or_else(|| "default".to_owned())
    }
}

/// Foreign proxies' cgroups as policies name them, and the ids of those that are there.
pub type ForeignCgroups = HashMap<PathBuf, u64>;

/// Whether the service of a workload (its own, where it belongs to several) declares that it is to be reached without us.
fn fails_open(snapshot: &Snapshot, workload: &weft_policy::Workload) -> bool {
    let own = workload
        .service
        .as_deref()
        .and_then(|service| snapshot.service(&workload.namespace, service));
    own.is_some_and(|service| service.failure_mode == Some(FailureMode::Open))
}

/// All tables of one generation, but for the [`workloads`].
#[derive(Debug, Default)]
pub struct Tables {
    pub dests: HashMap<DestKey, Dest>,
    pub backends: HashMap<BackendKey, Backend>,
    pub policy: HashMap<PolicyKey, PolicyValue>,
    pub addrs: HashMap<Prefix, AddrOwner>,
    pub externals: HashMap<u32, External>,
}

/// What of a table is to be another: new values, and keys that are to be in it no more.
pub type Delta<K, V> = HashMap<K, Option<V>>;

/// Who lives where, by cgroup: workloads of this node, foreign proxies, the canary.
pub fn workloads(
    snapshot: &Snapshot,
    namespaces: &Namespaces,
    foreign: &ForeignCgroups,
    canary: Cgroups,
) -> HashMap<u64, Workload> {
    let mut workloads = HashMap::new();
    for (cgroup, workload) in &snapshot.by_cgroup {
        let entry = Workload {
            identity: workload.identity.0,
            class: workload.class.0,
            namespace: namespaces.number(&workload.namespace),
            flags: if fails_open(snapshot, workload) {
                workload_flags::FAIL_OPEN
            } else {
                0
            },
        };
        workloads.insert(*cgroup, entry);
    }
    // Who is named as a proxy is one, whatever else runs there.
    for cgroup in foreign.values() {
        let entry = Workload {
            identity: identity::PROXY,
            class: class::PROXY,
            ..Workload::default()
        };
        workloads.insert(*cgroup, entry);
    }
    canary::enrol(canary, &mut workloads);
    workloads
}

impl Tables {
    pub fn of(snapshot: &Snapshot, foreign: &ForeignCgroups) -> Self {
        let mut tables = Self {
            policy: policy::entries(snapshot),
            addrs: addrs::owners(snapshot),
            ..Self::default()
        };
        services::fill(snapshot, foreign, &mut tables);
        canary::fill(&mut tables);
        tables
    }

    /// Whether some network policy isolates somebody.
    pub fn network(&self) -> bool {
        self.policy.keys().any(|key| key.direction >= direction::NET_INGRESS)
    }

    /// Bit n set: some entry has port prefix length n.
    pub fn port_prefixes(&self) -> u32 {
        self.policy
            .keys()
            .filter(|key| key.protocol != 0)
            .fold(0, |bits, key| bits | 1 << key.prefix)
    }
}
