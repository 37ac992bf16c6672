//! From objects in force and running workloads to one [`Snapshot`].
//!
//! ```text
//! Store ----> Sources (by kind) --+-> members: who runs where, as whom
//! weft run -> RuntimeWorkload ----+      |
//!                                        v
//!                        services: names, virtual IPs, ports, endpoints
//!                                        |
//!       smi: TrafficTargets -> Grant ----+-> access: one policy an identity
//!       (further dialects lower to       |
//!        Grants and splits too)          +-> network: NetworkPolicies, one policy a class
//!                                        v
//!       adapters: whose requests each looks at, in which order
//!                                        |
//!                        splits, what works per request, what visits the proxy
//! ```
//!
//! The same input and allocations give the same snapshot. Nothing is guessed from which objects exist. Where all that
//! changed are addresses of Workloads, [`patch()`] gives it without all this work.

mod access;
mod adapters;
mod allocations;
mod capture;
mod l7;
mod members;
mod network;
mod patch;
mod report;
mod services;
mod smi;
mod sources;
mod split;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use self::{
    access::Access,
    adapters::Adapters,
    members::{Members, Origin},
    patch::Basis,
    report::Report,
    services::Drafts,
    sources::Sources,
};
pub use self::{
    adapters::adapter_configs,
    allocations::{Allocations, DEFAULT_VIP4, DEFAULT_VIP6},
    capture::captures,
    patch::patch,
};
use crate::{
    diagnostic::Diagnostic,
    labels::Labels,
    snapshot::{
        Acceleration, Adapter, Captured, Class, EndpointOwner, Identity, Listener, Network, Protocol, Service,
        ServiceName, SharedMap, SharedVec, Snapshot, Workload,
    },
    store::Store,
};

/// Label of every workload of `weft run`, with the name of its service, so that policies can select it by that.
pub const SERVICE_LABEL: &str = "weft.mesh/service";

/// Everything a [`Snapshot`] is made of.
#[derive(Debug, Clone, Copy)]
pub struct CompileInput<'a> {
    pub store: &'a Store,
    /// What `weft run` registered and is still alive.
    pub workloads: &'a [RuntimeWorkload],
    /// What became of each of [`captures`], by workload.
    pub captured: &'a BTreeMap<String, Captured>,
    /// Ranges of virtual IPs; empty: [`DEFAULT_VIP4`].
    pub vip4: &'a [Ipv4Net],
    /// Ranges of virtual IPs; empty: [`DEFAULT_VIP6`].
    pub vip6: &'a [Ipv6Net],
    /// Of services whose policy does not say.
    pub acceleration: Acceleration,
    pub generation: u64,
}

static NOTHING_FOUND: BTreeMap<String, Captured> = BTreeMap::new();

// === impl CompileInput ===

impl<'a> CompileInput<'a> {
    /// The objects by themselves, as `weft check` has them: nothing runs, nobody has looked where workloads are captured, and all else
    /// is the default.
    pub fn of(store: &'a Store) -> Self {
        Self {
            store,
            workloads: &[],
            captured: &NOTHING_FOUND,
            vip4: &[],
            vip6: &[],
            acceleration: Acceleration::Off,
            generation: 1,
        }
    }
}

/// A workload that `weft run` started. It joins the service of its name, which is made if no resource defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeWorkload {
    /// `NAMESPACE/SERVICE/INSTANCE`, unique.
    pub name: String,
    pub namespace: String,
    pub service: String,
    pub account: String,
    /// With [`SERVICE_LABEL`].
    pub labels: Labels,
    /// cgroup v2 id.
    pub cgroup: u64,
    /// What `--port` said; empty: the service's ports on their target ports.
    pub ports: Vec<RuntimePort>,
    /// Addresses that something in its cgroup listens on now, as bound.
    pub listening: Vec<(SocketAddr, Protocol)>,
}

/// `--port PORT[:TARGET][/PROTOCOL]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimePort {
    /// Port of the service.
    pub port: u16,
    /// Port the workload listens on.
    pub target: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone)]
pub struct Compiled {
    pub snapshot: Snapshot,
    /// What can only be said about the objects together: dangling references, clashes. Those about the text of a file
    /// are the store's.
    pub diagnostics: Vec<Diagnostic>,
    /// Of the store.
    revision: u64,
    basis: Arc<Basis>,
}

/// Compiles all of it. What is new gets its numbers and addresses from `allocations`.
pub fn compile(input: &CompileInput<'_>, allocations: &mut Allocations) -> Compiled {
    let sources = Sources::gather(input.store);
    let mut report = Report::default();
    let members = Members::gather(&sources, input.workloads, allocations);
    let drafts = services::draft(input, &sources, &members, allocations, &mut report);
    let access = Access::compile(&sources, &members, &drafts, allocations, &mut report);
    let network = network::compile(&sources, &members, &drafts, allocations, &mut report);
    capture::report(&sources, input.captured, &mut report);
    let adapters = Adapters::compile(&sources, &drafts, &mut report);
    let services = split::finish(
        (&sources, input.acceleration),
        &drafts,
        (&access, &adapters),
        allocations,
        &mut report,
    );
    report.services(&sources, &services);
    report.refusals(input.store);
    let policies = (access, network, adapters.all);
    assemble(input, allocations, members, drafts, policies, services, report)
}

fn assemble(
    input: &CompileInput<'_>,
    allocations: &Allocations,
    members: Members<'_>,
    drafts: Drafts,
    (access, network, adapters): (Access, Network, Vec<Arc<Adapter>>),
    services: BTreeMap<ServiceName, Arc<Service>>,
    report: Report,
) -> Compiled {
    let listeners = listeners(&members);
    let (by_address, contested) = by_address(&members);
    let workloads = members.workloads(&drafts, input.captured);
    let mut by_vip = HashMap::with_capacity(2 * services.len());
    for service in services.values() {
        by_vip.insert(IpAddr::V4(service.vip4), service.name.clone());
        by_vip.insert(IpAddr::V6(service.vip6), service.name.clone());
    }
    let mut accounts = BTreeMap::new();
    let mut identities = HashMap::new();
    for (account, identity) in allocations.accounts() {
        accounts.insert(identity, account.clone());
        identities.insert(account, identity);
    }
    let snapshot = Snapshot {
        generation: input.generation,
        by_endpoint: owners(&services, &workloads),
        guards: guards(&services).into(),
        by_cgroup: workloads.iter().filter_map(|w| Some((w.cgroup?, w.clone()))).collect(),
        by_address,
        listeners: listeners.into(),
        services: services.into_iter().collect(),
        workloads,
        accounts: accounts.into(),
        identities: identities.into(),
        access: access.policies.into(),
        outbound_default: access.outbound_default,
        outbound_audit: access.outbound_audit,
        network: network.into(),
        adapters,
        classes: allocations
            .classes()
            .map(|(name, class)| (*class, name.clone()))
            .collect(),
        rules: allocations
            .rules()
            .map(|(object, rule)| (*rule, object.clone()))
            .collect(),
        by_vip: by_vip.into(),
        statuses: report.statuses().into(),
    };
    Compiled {
        snapshot,
        diagnostics: report.diagnostics,
        revision: input.store.revision(),
        basis: Arc::new(Basis::new(input, drafts.joined, contested)),
    }
}

/// Whose an endpoint address is; the workload's own service before others that it belongs to.
fn owners(
    services: &BTreeMap<ServiceName, Arc<Service>>,
    workloads: &SharedVec<Arc<Workload>>,
) -> SharedMap<(SocketAddr, Protocol), EndpointOwner> {
    let own: HashMap<&str, Option<&str>> = workloads.iter().map(|w| (&*w.name, w.service.as_deref())).collect();
    let mut owners: HashMap<(SocketAddr, Protocol), EndpointOwner> = HashMap::new();
    for service in services.values() {
        let name = Arc::new(service.name.clone());
        for (index, port) in service.ports.iter().enumerate() {
            for endpoint in &port.endpoints {
                let is_own = own.get(&*endpoint.workload).copied().flatten() == Some(&*service.name.name);
                let owner = || EndpointOwner {
                    service: Arc::clone(&name),
                    port: index,
                    endpoint: endpoint.clone(),
                };
                let entry = owners.entry((endpoint.address, port.protocol));
                entry
                    .and_modify(|old| {
                        if is_own && old.endpoint.workload == endpoint.workload && old.service != name {
                            *old = owner();
                        }
                    })
                    .or_insert_with(owner);
            }
        }
    }
    owners.into_iter().collect()
}

fn guards(services: &BTreeMap<ServiceName, Arc<Service>>) -> BTreeMap<(Identity, u16), (ServiceName, usize)> {
    let mut guards = BTreeMap::new();
    for service in services.values() {
        for (index, port) in service.ports.iter().enumerate().filter(|(_, port)| port.guarded) {
            for target in &port.targets {
                guards.entry(*target).or_insert_with(|| (service.name.clone(), index));
            }
        }
    }
    guards
}

fn listeners(members: &Members<'_>) -> BTreeMap<(SocketAddr, Protocol), Listener> {
    let mut found = BTreeMap::new();
    for member in &members.all {
        let Origin::Run(workload) = member.origin else { continue };
        let listener = Listener {
            identity: member.identity,
            class: member.class,
        };
        for (address, protocol) in &workload.listening {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            found.entry((address, *protocol)).or_insert(listener);
        }
    }
    found
}

/// And those that more than one has, or one more than once: who goes from there does not tell whose they are then.
fn by_address(members: &Members<'_>) -> (SharedMap<IpAddr, Class>, HashSet<IpAddr>) {
    let mut found: HashMap<IpAddr, Class> = HashMap::new();
    let mut contested = HashSet::new();
    let mut add = |address: IpAddr, class| {
        let address = address.to_canonical();
        match found.entry(address) {
            Entry::Vacant(free) => {
                free.insert(class);
            }
            Entry::Occupied(mut one) => {
                contested.insert(address);
                if *one.get() != class {
                    one.insert(Class::UNKNOWN);
                }
            }
        }
    };
    for member in &members.all {
        match member.origin {
            Origin::Hand(spec) => spec.addresses.iter().for_each(|address| add(*address, member.class)),
            // The machine's own: others here dial from it, too.
            Origin::Run(workload) => workload
                .listening
                .iter()
                .map(|(address, _)| address.ip())
                .filter(|ip| !ip.is_unspecified() && !ip.to_canonical().is_loopback())
                .for_each(|ip| add(ip, Class::UNKNOWN_LOCAL)),
        }
    }
    (found.into_iter().collect(), contested)
}
