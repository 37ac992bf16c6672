//! Who runs: workloads of `weft run` and those written by hand, seen alike.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{Allocations, RuntimeWorkload, capture, services::Drafts, sources::Sources};
use crate::{
    labels::Labels,
    resource::weft::WorkloadSpec,
    snapshot::{Account, Captured, Class, ClassName, Identity, Protocol, ServiceName, SharedVec, Workload},
};

const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

pub(super) struct Members<'a> {
    pub all: Vec<Member<'a>>,
    /// Accounts that some workload runs as.
    pub accounts: BTreeMap<Account, Identity>,
    /// Namespace, label and value -> members.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
    /// Members that name this service.
    by_service: BTreeMap<ServiceName, Vec<usize>>,
}

pub(super) struct Member<'a> {
    pub name: Arc<str>,
    pub namespace: &'a str,
    pub identity: Identity,
    pub class: Class,
    pub labels: &'a Labels,
    pub origin: Origin<'a>,
}

pub(super) enum Origin<'a> {
    Run(&'a RuntimeWorkload),
    Hand(&'a WorkloadSpec),
}

/// The account a workload of `weft run` has.
pub(super) fn account_of(workload: &RuntimeWorkload) -> Account {
    Account {
        namespace: workload.namespace.clone(),
        name: workload.account.clone(),
    }
}

fn class_of(allocations: &mut Allocations, namespace: &str, labels: &Labels) -> Class {
    allocations.class(&ClassName::Workloads {
        namespace: namespace.into(),
        labels: labels.clone(),
    })
}

// === impl Members ===

impl<'a> Members<'a> {
    pub fn gather(sources: &Sources<'a>, running: &'a [RuntimeWorkload], allocations: &mut Allocations) -> Self {
        let mut accounts = BTreeMap::new();
        let mut identify = |account: Account, allocations: &mut Allocations| {
            let identity = allocations.identity(&account);
            accounts.insert(account, identity);
            identity
        };
        let mut all: Vec<Member<'a>> = Vec::with_capacity(running.len() + sources.workloads.len());
        for workload in running {
            all.push(Member {
                name: workload.name.as_str().into(),
                namespace: &workload.namespace,
                identity: identify(account_of(workload), allocations),
                class: class_of(allocations, &workload.namespace, &workload.labels),
                labels: &workload.labels,
                origin: Origin::Run(workload),
            });
        }
        for (object, spec) in &sources.workloads {
            let account = Account {
                namespace: object.namespace().to_owned(),
                name: spec.service_account.to_string(),
            };
            all.push(Member {
                name: format!("{}/{}", object.namespace(), object.id.name).into(),
                namespace: object.namespace(),
                identity: identify(account, allocations),
                class: class_of(allocations, object.namespace(), &object.labels),
                labels: &object.labels,
                origin: Origin::Hand(spec),
            });
        }
        let mut members = Self {
            all,
            accounts,
            by_label: HashMap::new(),
            by_service: BTreeMap::new(),
        };
        for (index, member) in members.all.iter().enumerate() {
            for (label, value) in member.labels.iter() {
                members
                    .by_label
                    .entry((member.namespace, label, value))
                    .or_default()
                    .push(index);
            }
            if let Origin::Run(workload) = member.origin {
                let name = ServiceName {
                    namespace: workload.namespace.as_str().into(),
                    name: workload.service.as_str().into(),
                };
                members.by_service.entry(name).or_default().push(index);
            }
        }
        members
    }

    /// Services that workloads name.
    pub fn named_services(&self) -> impl Iterator<Item = &ServiceName> {
        self.by_service.keys()
    }

    /// Members that belong to a service: those that name it and those that its selector picks.
    pub fn of(&self, service: &ServiceName, selector: &Labels) -> Vec<&Member<'a>> {
        let mut found: BTreeSet<usize> = self.by_service.get(service).into_iter().flatten().copied().collect();
        if let Some((label, value)) = selector.iter().next() {
            let candidates = self.by_label.get(&(&*service.namespace, label, value));
            let fits = |i: &&usize| {
                selector
                    .iter()
                    .all(|(label, value)| self.all[**i].labels.get(label) == Some(value))
            };
            found.extend(candidates.into_iter().flatten().filter(fits));
        }
        found.into_iter().map(|i| &self.all[i]).collect()
    }

    /// As the snapshot has them; the first service of one by hand is looked up in what was drafted.
    pub fn workloads(self, drafts: &Drafts, captured: &BTreeMap<String, Captured>) -> SharedVec<Arc<Workload>> {
        let mut namespaces: HashMap<&str, Arc<str>> = HashMap::new();
        let workload = |member: Member<'a>| {
            let namespace = namespaces.entry(member.namespace);
            let namespace = namespace.or_insert_with(|| member.namespace.into()).clone();
            let (service, account, cgroup, addresses, capture) = match member.origin {
                Origin::Run(workload) => (
                    Some(workload.service.as_str().into()),
                    workload.account.as_str().into(),
                    Some(workload.cgroup),
                    Arc::default(),
                    None,
                ),
                Origin::Hand(spec) => {
                    let capture = capture::of(spec, captured.get(&*member.name));
                    let cgroup = capture.as_ref().and_then(|capture| capture.found.as_ref()?.cgroup);
                    let service = drafts.first_service.get(&member.name).cloned();
                    let (account, addresses) = (spec.service_account.clone(), spec.addresses.clone());
                    (service, account, cgroup, addresses, capture.map(Box::new))
                }
            };
            Arc::new(Workload {
                name: member.name,
                namespace,
                service,
                account,
                identity: member.identity,
                class: member.class,
                labels: member.labels.clone(),
                cgroup,
                addresses,
                capture,
            })
        };
        self.all.into_iter().map(workload).collect()
    }
}

// === impl Member ===

impl Member<'_> {
    /// The port on which it serves a service port: what it says itself, else the service's target port.
    pub fn target(&self, port: u16, protocol: Protocol, of_service: Option<u16>) -> Option<u16> {
        let own = match self.origin {
            Origin::Run(workload) => workload
                .ports
                .iter()
                .find(|p| p.port == port && p.protocol == protocol)
                .map(|p| p.target),
            Origin::Hand(spec) => spec
                .ports
                .iter()
                .find(|p| p.port == port && p.protocol == protocol)
                .map(|p| p.target_port),
        };
        own.or(of_service)
    }

    /// Whether it is there to serve this port, so that callers wait for it: it said so, or it said nothing at all.
    pub fn promises(&self, port: u16, protocol: Protocol) -> bool {
        match self.origin {
            Origin::Run(workload) => {
                workload.ports.is_empty() || workload.ports.iter().any(|p| p.port == port && p.protocol == protocol)
            }
            Origin::Hand(spec) => !spec.addresses.is_empty(),
        }
    }

    /// Where it can be reached on a target port now.
    pub fn ready(&self, target: u16, protocol: Protocol) -> Vec<SocketAddr> {
        let addresses: BTreeSet<IpAddr> = match &self.origin {
            Origin::Hand(spec) => spec.addresses.iter().copied().collect(),
            Origin::Run(workload) => workload
                .listening
                .iter()
                .filter(|(address, p)| *p == protocol && address.port() == target)
                .flat_map(|(address, _)| reachable(address.ip()))
                .collect(),
        };
        addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, target))
            .collect()
    }
}

/// Addresses at which a socket bound to `bound` is reached from this machine.
fn reachable(bound: IpAddr) -> Vec<IpAddr> {
    match bound.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![LOCAL[0]],
        IpAddr::V6(ip) if ip.is_unspecified() => LOCAL.to_vec(),
        specific => vec![specific],
    }
}
