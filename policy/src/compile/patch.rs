//! A snapshot made from the one before it, where only addresses of Workloads changed: what [`super::compile()`] would give, at
//! the cost of the services that the workload belongs to.
//!
//! It holds where nothing else speaks of these addresses. So it is not tried where a workload gets its first address or loses
//! its last (its ports become ready, or stop being so), where an address is this machine's own, and where another workload has
//! it before or after: who keeps it, and whose it is then, all of them decide together.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{CompileInput, Compiled, RuntimeWorkload};
use crate::{
    resource::{Object, Spec, weft::WorkloadSpec},
    snapshot::{Acceleration, Captured, Class, Endpoint, EndpointOwner, ServiceName, ServicePort, Snapshot, Workload},
    store::Change,
};

/// What was compiled beside the objects, and what the next patch has to know of it. A patch leaves all of it as it is.
#[derive(Debug)]
pub(super) struct Basis {
    workloads: Vec<RuntimeWorkload>,
    captured: BTreeMap<String, Captured>,
    vip4: Vec<Ipv4Net>,
    vip6: Vec<Ipv6Net>,
    acceleration: Acceleration,
    /// Class of workloads written by hand -> the services that select them, by name.
    joined: HashMap<Class, Vec<Arc<ServiceName>>>,
    /// Addresses that do not belong to one Workload alone.
    contested: HashSet<IpAddr>,
}

/// The same as [`super::compile()`] gives, with what is new in the store since `before` was compiled from it; it would leave the
/// allocations as they are. Shares with `before` whatever stays. `None`: more has changed than addresses of Workloads, or it
/// cannot be told, so all is to be compiled.
pub fn patch(before: &Compiled, input: &CompileInput<'_>) -> Option<Compiled> {
    if !before.basis.is_of(input) {
        return None;
    }
    let changes = input.store.changed_since(before.revision)?;
    let mut snapshot = before.snapshot.clone();
    snapshot.generation = input.generation;
    for change in &changes {
        relocate(&mut snapshot, &before.basis, change)?;
    }
    Some(Compiled {
        snapshot,
        diagnostics: before.diagnostics.clone(),
        revision: input.store.revision(),
        basis: Arc::clone(&before.basis),
    })
}

// === impl Basis ===

impl Basis {
    pub fn new(
        input: &CompileInput<'_>,
        joined: HashMap<Class, Vec<Arc<ServiceName>>>,
        contested: HashSet<IpAddr>,
    ) -> Self {
        Self {
            workloads: input.workloads.to_vec(),
            captured: input.captured.clone(),
            vip4: input.vip4.to_vec(),
            vip6: input.vip6.to_vec(),
            acceleration: input.acceleration,
            joined,
            contested,
        }
    }

    /// Whether all but the objects is the same.
    fn is_of(&self, input: &CompileInput<'_>) -> bool {
        self.workloads == input.workloads
            && self.captured == *input.captured
            && self.vip4 == input.vip4
            && self.vip6 == input.vip6
            && self.acceleration == input.acceleration
    }

    /// Whether the workload may go from these addresses to those without anybody else noticing.
    fn lets_go(&self, snapshot: &Snapshot, from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> bool {
        let own = |address: &IpAddr| !self.contested.contains(address);
        let free = |address: &IpAddr| from.contains(address) || !snapshot.by_address.contains_key(address);
        let mut both = from.iter().chain(to);
        !from.is_empty()
            && !to.is_empty()
            && both.all(|address| !address.is_loopback())
            && from.iter().all(own)
            && to.iter().all(free)
    }
}

/// Brings one workload to its present addresses. `None`: that is not all there is to do.
fn relocate(snapshot: &mut Snapshot, basis: &Basis, change: &Change) -> Option<()> {
    let now = addresses_only(change)?;
    let index = index_of(snapshot, basis, &change.now)?;
    let old = Arc::clone(snapshot.workloads.get(index)?);
    if old.addresses == now.addresses {
        // It stands elsewhere in its file.
        return Some(());
    }
    let from: BTreeSet<IpAddr> = old.addresses.iter().copied().collect();
    let to: BTreeSet<IpAddr> = now.addresses.iter().copied().collect();
    if !basis.lets_go(snapshot, &from, &to) {
        return None;
    }
    let new = Workload {
        addresses: now.addresses.clone(),
        ..(*old).clone()
    };
    *snapshot.workloads.get_mut(index)? = Arc::new(new);
    if from == to {
        return Some(());
    }
    for address in from.difference(&to) {
        snapshot.by_address.remove(address);
    }
    for address in to.difference(&from) {
        snapshot.by_address.insert(*address, old.class);
    }
    for name in basis.joined.get(&old.class).into_iter().flatten() {
        let mut service = (**snapshot.services.get(name)?).clone();
        let mut touched = false;
        for (index, port) in service.ports.iter_mut().enumerate() {
            let Some((gone, come)) = replace(port, &old.name, &to) else {
                continue;
            };
            touched = true;
            for endpoint in gone {
                snapshot.by_endpoint.remove(&(endpoint.address, port.protocol));
            }
            for endpoint in come {
                let key = (endpoint.address, port.protocol);
                // The first port of the first service that leads there, as the compiler has it.
                if !snapshot.by_endpoint.contains_key(&key) {
                    let owner = EndpointOwner {
                        service: Arc::clone(name),
                        port: index,
                        endpoint,
                    };
                    snapshot.by_endpoint.insert(key, owner);
                }
            }
        }
        if touched {
            snapshot.services.insert((**name).clone(), Arc::new(service));
        }
    }
    Some(())
}

/// The present version of a Workload that differs from the one before in addresses, or only in where it is written.
fn addresses_only(change: &Change) -> Option<&WorkloadSpec> {
    let (before, now) = (&*change.before, &*change.now);
    let (Spec::Workload(old), Spec::Workload(new)) = (&before.spec, &now.spec) else {
        return None;
    };
    // Of one that is captured the compiler also says what became of that, with its line.
    let captured = old.capture.is_some() || new.capture.is_some();
    let same = before.id == now.id
        && before.labels == now.labels
        && before.annotations == now.annotations
        && old.ports == new.ports
        && old.service_account == new.service_account;
    (same && !captured).then_some(new)
}

/// Where the workload of an object stands: those of `weft run` come first, then those by hand, by namespace and name.
fn index_of(snapshot: &Snapshot, basis: &Basis, object: &Object) -> Option<usize> {
    let wanted = (object.namespace(), object.id.name.as_str());
    let (mut low, mut high) = (basis.workloads.len(), snapshot.workloads.len());
    while low < high {
        let middle = low.midpoint(high);
        let workload = snapshot.workloads.get(middle)?;
        let name = workload.name.strip_prefix(&*workload.namespace)?.strip_prefix('/')?;
        match (&*workload.namespace, name).cmp(&wanted) {
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
            Ordering::Equal => return Some(middle),
        }
    }
    None
}

/// Endpoints of one workload.
type Endpoints = Vec<Arc<Endpoint>>;

/// Gives a workload's endpoints of a port other addresses, in its place among the others. Which went, and which came; `None`: it
/// does not serve this port.
fn replace(port: &mut ServicePort, workload: &str, to: &BTreeSet<IpAddr>) -> Option<(Endpoints, Endpoints)> {
    let is_own = |endpoint: &Arc<Endpoint>| *endpoint.workload == *workload;
    let first = port.endpoints.iter().position(is_own)?;
    let own = port
        .endpoints
        .iter()
        .skip(first)
        .take_while(|endpoint| is_own(endpoint));
    let old: BTreeMap<IpAddr, Arc<Endpoint>> = own.map(|found| (found.address.ip(), Arc::clone(found))).collect();
    let (_, model) = old.first_key_value()?;
    let mut come = Endpoints::new();
    let new: Endpoints = to
        .iter()
        .map(|ip| match old.get(ip) {
            Some(stays) => Arc::clone(stays),
            None => {
                let endpoint = Arc::new(Endpoint {
                    address: SocketAddr::new(*ip, model.address.port()),
                    ..(**model).clone()
                });
                come.push(Arc::clone(&endpoint));
                endpoint
            }
        })
        .collect();
    let gone = old
        .values()
        .filter(|endpoint| !to.contains(&endpoint.address.ip()))
        .cloned()
        .collect();
    port.endpoints.splice(first..first + old.len(), new);
    Some((gone, come))
}
