//! What a snapshot changes in the tables, at the price of how it differs from the one in force.
//!
//! Snapshots share what is the same in both, so a pointer tells what is not. [`Basis::changes`] speaks where some services and
//! workloads are others of the same names, and all else is the same that tables are made of. It is silent where somebody who
//! is the same as before has a say in an entry too (an address of two workloads, an endpoint at a virtual IP): then all
//! tables are to be computed.
//!
//! Believed of a snapshot is what the compiler promises: services are found by their names, and have virtual IPs and numbers
//! of ports that no other has; `by_endpoint`, `by_vip` and `by_address` are made of services, of workloads (names, services,
//! classes, addresses) and of listeners, and leave none out; addresses are canonical.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    iter,
    net::SocketAddr,
    sync::Arc,
};

use weft_abi::{AddrOwner, Backend, BackendKey, Dest, DestKey};
use weft_policy::{AccessPolicy, Identity, Protocol, Service, ServiceName, ServicePort, Snapshot};

use super::{Delta, ForeignCgroups, Prefix, Tables, addrs, services};
use crate::canary::{VIP4, VIP6};

/// Services that are compared one by one. The entries of more, as they were and as they are, cost as much time and memory as all
/// tables.
const MAX_CHANGED: usize = 1_000;

/// What the tables in force were made of.
pub struct Basis {
    snapshot: Arc<Snapshot>,
    foreign: ForeignCgroups,
    /// Services with a split, by each that it leads to: their backends are its endpoints.
    roots: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
}

/// What is to be another in the tables; the others stay as they are.
#[derive(Debug)]
pub struct Changes {
    pub dests: Delta<DestKey, Dest>,
    pub backends: Delta<BackendKey, Backend>,
    pub addrs: Delta<Prefix, AddrOwner>,
}

// === impl Basis ===

impl Basis {
    /// Of tables that are [`Tables::of`] this.
    pub fn of(snapshot: Arc<Snapshot>, foreign: &ForeignCgroups) -> Self {
        let mut roots = BTreeMap::<ServiceName, BTreeSet<ServiceName>>::new();
        for service in snapshot.services.values() {
            let splits = service.ports.iter().filter_map(|port| port.split.as_ref());
            for backend in splits.flat_map(|split| &split.backends) {
                let leads = roots.entry(backend.service.clone()).or_default();
                leads.insert(service.name.clone());
            }
        }
        Self {
            snapshot,
            foreign: foreign.clone(),
            roots,
        }
    }

    /// Goes on with a snapshot whose changes [`Basis::changes`] told: splits are as they were.
    pub fn follow(self, snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, ..self }
    }

    /// How [`Tables::of`] another snapshot differ; `None`: only all of them tell. Costs a look at the pointers of all services,
    /// workloads and access policies, and the entries of those services and workloads that are others.
    pub fn changes(&self, snapshot: &Snapshot, foreign: &ForeignCgroups) -> Option<Changes> {
        if *foreign != self.foreign || !is_same_but_for_places(&self.snapshot, snapshot) {
            return None;
        }
        let addrs = addrs::changes(&self.snapshot, snapshot)?;
        let (dests, backends) = self.changes_of_services(snapshot)?;
        Some(Changes { dests, backends, addrs })
    }

    fn changes_of_services(&self, new: &Snapshot) -> Option<(Delta<DestKey, Dest>, Delta<BackendKey, Backend>)> {
        let old = &*self.snapshot;
        let changed = changed_services(old, new)?;
        let affected: BTreeSet<&ServiceName> = changed
            .iter()
            .flat_map(|(service, _)| {
                let roots = self.roots.get(&service.name).into_iter().flatten();
                iter::once(&service.name).chain(roots)
            })
            .collect();
        // Whose an endpoint was and is must be among those that are looked at.
        let is_ours = |address: SocketAddr, protocol: Protocol| {
            let [before, now] = [old, new].map(|snapshot| services::owner(snapshot, address, protocol));
            let is_vip = new.by_vip.contains_key(&address.ip()) || address.ip() == VIP4 || address.ip() == VIP6;
            let known = |owner: &ServiceName| affected.contains(owner);
            !is_vip && (before == now || before.is_none_or(known) && now.is_none_or(known))
        };
        let mut ports = changed
            .iter()
            .flat_map(|(before, now)| before.ports.iter().chain(&now.ports));
        let ours = ports.all(|port| {
            let mut endpoints = port.endpoints.iter();
            endpoints.all(|endpoint| is_ours(endpoint.address, port.protocol))
        });
        if !ours {
            return None;
        }
        let entries = |snapshot: &Snapshot| {
            let mut tables = Tables::default();
            for service in affected.iter().filter_map(|name| snapshot.services.get(*name)) {
                services::add(snapshot, &self.foreign, &mut tables, service);
            }
            tables
        };
        let (before, now) = (entries(old), entries(new));
        Some((delta(&before.dests, &now.dests), delta(&before.backends, &now.backends)))
    }
}

/// Whether all is the same that tables are made of, but for services, and workloads and their addresses.
fn is_same_but_for_places(old: &Snapshot, new: &Snapshot) -> bool {
    let stands = |(identity, policy): (&Identity, &Arc<AccessPolicy>)| {
        let now = new.access.get(identity);
        now.is_some_and(|now| Arc::ptr_eq(policy, now))
    };
    (old.outbound_default, old.outbound_audit) == (new.outbound_default, new.outbound_audit)
        && old.network == new.network
        && old.listeners == new.listeners
        && old.guards.keys().eq(new.guards.keys())
        && old.access.len() == new.access.len()
        && old.access.iter().all(stands)
}

/// The services that are others, as they were and as they are; `None`: their keys in the tables differ, or what else does not
/// follow from endpoints; or too many are others.
fn changed_services<'a>(old: &'a Snapshot, new: &'a Snapshot) -> Option<Vec<(&'a Service, &'a Service)>> {
    if old.services.len() != new.services.len() {
        return None;
    }
    let pairs = old.services.values().zip(new.services.values());
    let changed: Option<Vec<_>> = pairs
        .filter(|(before, now)| !Arc::ptr_eq(before, now))
        .map(|(before, now)| has_same_keys(before, now).then_some((&**before, &**now)))
        .collect();
    changed.filter(|changed| changed.len() <= MAX_CHANGED)
}

fn has_same_keys(old: &Service, new: &Service) -> bool {
    let same_port = |(old, new): (&ServicePort, &ServicePort)| {
        let same_split = match (&old.split, &new.split) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        same_split && (old.id, old.port, old.protocol) == (new.id, new.port, new.protocol)
    };
    (&old.name, old.vip4, old.vip6, &old.l7) == (&new.name, new.vip4, new.vip6, &new.l7)
        && old.ports.len() == new.ports.len()
        && old.ports.iter().zip(&new.ports).all(same_port)
}

fn delta<K: Copy + Eq + Hash, V: Copy + PartialEq>(old: &HashMap<K, V>, new: &HashMap<K, V>) -> Delta<K, V> {
    let keys = old.keys().chain(new.keys());
    keys.filter(|key| old.get(*key) != new.get(*key))
        .map(|key| (*key, new.get(key).copied()))
        .collect()
}
