//! NetworkPolicies: which classes they isolate, and what they allow each.
//!
//! Selectors are resolved here, over the workloads that exist: what is left are numbers. Workloads of one namespace with
//! the same labels are one class, for no selector can tell them apart. Of addresses there is a class for each prefix that
//! some policy names (`cidr` or `except`), and the longest prefix that has an address gives its class; an ipBlock stands
//! for the classes of all prefixes inside its `cidr` and inside none of its `except`s. So one look-up finds the class, and
//! what a policy excepts never matches by a shorter prefix.
//!
//! Whom a policy names but who does not exist (yet) matches nothing: it never makes the rest allow more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Allocations, members::Members, report::Report, services::Drafts, sources::Sources};
use crate::{
    labels::Labels,
    resource::{
        Object,
        k8s::{NetworkPolicySpec, PolicyPeer, PolicyPort, PolicyRule, PortMatch},
    },
    snapshot::{Class, ClassName, Isolation, Network, NetworkAllow, ObjectState, Protocol, RuleId, range_key},
};

/// Label of every namespace, with its name, as Kubernetes sets it.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub(super) fn compile(
    sources: &Sources<'_>,
    members: &Members<'_>,
    drafts: &Drafts,
    allocations: &mut Allocations,
    report: &mut Report,
) -> Network {
    let mut network = Network::default();
    if sources.network_policies.is_empty() {
        return network;
    }
    let world = World::of(sources, members, drafts, allocations);
    for (object, spec) in &sources.network_policies {
        let policy = Policy {
            object,
            rule: allocations.rule(&object.id),
            audit: is_audited(object, sources),
        };
        let selected: Vec<Class> = world
            .classes_in(object.namespace())
            .filter(|(_, labels)| spec.pods.matches(labels))
            .map(|(class, _)| class)
            .collect();
        if selected.is_empty() {
            report.status(&object.id, ObjectState::Accepted, "it selects no workload now");
            continue;
        }
        let mut lost = Vec::new();
        if let Some(rules) = &spec.ingress {
            let rules = world.resolve(rules, object.namespace());
            policy.check_ports(&world, &rules, Direction::Ingress(&selected), &mut lost, report);
            for class in &selected {
                let isolation = &mut network.isolation.entry(*class).or_default().ingress;
                policy.join(
                    isolation,
                    rules.iter().flat_map(|rule| world.ingress(rule, policy.rule, *class)),
                );
            }
        }
        if let Some(rules) = &spec.egress {
            let rules = world.resolve(rules, object.namespace());
            policy.check_ports(&world, &rules, Direction::Egress, &mut lost, report);
            let allow: Vec<NetworkAllow> = rules.iter().flat_map(|rule| world.egress(rule, policy.rule)).collect();
            for class in &selected {
                let isolation = &mut network.isolation.entry(*class).or_default().egress;
                policy.join(isolation, allow.iter().cloned());
            }
        }
        policy.report(spec, &lost, report);
    }
    network.ranges = world.ranges.into_iter().collect();
    network.ranges.sort_by_key(|(net, _)| range_key(net));
    network
}

fn is_audited(object: &Object, sources: &Sources<'_>) -> bool {
    object.is_audited() || sources.is_audited(object.id.namespace.as_deref())
}

/// Who there is to select.
struct World<'a> {
    /// Namespace -> classes of its workloads, and their labels.
    classes: BTreeMap<&'a str, BTreeMap<Class, &'a Labels>>,
    /// Labels of all namespaces with workloads.
    namespaces: BTreeMap<&'a str, Labels>,
    ranges: BTreeMap<IpNet, Class>,
    /// Class, protocol and name -> target ports of the service ports that have this name and lead to this class.
    named: HashMap<(Class, Protocol), BTreeMap<&'a str, BTreeSet<u16>>>,
}

/// A rule whose peers are found.
struct Resolved<'a> {
    peers: Option<Arc<BTreeSet<Class>>>,
    ports: &'a [PolicyPort],
}

struct Policy<'a> {
    object: &'a Object,
    rule: RuleId,
    audit: bool,
}

/// Whose port names count: those of the destinations.
enum Direction<'a> {
    /// The classes that the policy selects.
    Ingress(&'a [Class]),
    /// The peers of the rule.
    Egress,
}

// === impl World ===

impl<'a> World<'a> {
    fn of(sources: &Sources<'a>, members: &Members<'a>, drafts: &'a Drafts, allocations: &mut Allocations) -> Self {
        let mut world = Self {
            classes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            ranges: BTreeMap::new(),
            named: HashMap::new(),
        };
        for member in &members.all {
            let classes = world.classes.entry(member.namespace).or_default();
            classes.insert(member.class, member.labels);
        }
        for namespace in world.classes.keys() {
            let declared = sources.namespaces.get(namespace);
            let mut labels = declared.map(|labels| labels.to_map()).unwrap_or_default();
            labels.insert(NAMESPACE_LABEL.to_owned(), (*namespace).to_owned());
            world.namespaces.insert(namespace, labels.into());
        }
        for (_, spec) in &sources.network_policies {
            let rules = spec.ingress.iter().chain(&spec.egress).flatten();
            for peer in rules.flat_map(|rule| &rule.peers) {
                let PolicyPeer::Block { cidr, except } = peer else {
                    continue;
                };
                for net in except.iter().chain([cidr]) {
                    world
                        .ranges
                        .entry(*net)
                        .or_insert_with(|| allocations.class(&ClassName::Range(*net)));
                }
            }
        }
        for port in drafts.services.values().flat_map(|draft| &draft.ports) {
            let Some(name) = &port.name else { continue };
            for (class, target) in &port.class_targets {
                let names = world.named.entry((*class, port.protocol)).or_default();
                names.entry(name).or_default().insert(*target);
            }
        }
        world
    }

    fn classes_in(&self, namespace: &str) -> impl Iterator<Item = (Class, &'a Labels)> {
        let found = self.classes.get(namespace).into_iter().flatten();
        found.map(|(class, labels)| (*class, *labels))
    }

    fn resolve<'r>(&self, rules: &'r [PolicyRule], namespace: &str) -> Vec<Resolved<'r>> {
        let resolve = |rule: &'r PolicyRule| {
            let mut found = BTreeSet::new();
            for peer in &rule.peers {
                self.add_classes(peer, namespace, &mut found);
            }
            Resolved {
                peers: (!rule.peers.is_empty()).then(|| Arc::new(found)),
                ports: &rule.ports,
            }
        };
        rules.iter().map(resolve).collect()
    }

    fn add_classes(&self, peer: &PolicyPeer, namespace: &str, found: &mut BTreeSet<Class>) {
        match peer {
            PolicyPeer::Workloads { namespaces, pods } => {
                let meant = self.namespaces.iter().filter(|(name, labels)| match namespaces {
                    Some(selector) => selector.matches(labels),
                    None => **name == namespace,
                });
                let classes = meant.flat_map(|(name, _)| self.classes_in(name));
                let fits = |labels| pods.as_ref().is_none_or(|selector| selector.matches(labels));
                found.extend(classes.filter(|(_, labels)| fits(labels)).map(|(class, _)| class));
            }
            PolicyPeer::Block { cidr, except } => {
                let mut inside: BTreeMap<IpNet, Class> = self.inside(cidr).map(|(net, class)| (*net, *class)).collect();
                for (net, _) in except.iter().flat_map(|net| self.inside(net)) {
                    inside.remove(net);
                }
                found.extend(inside.into_values());
            }
        }
    }

    /// The prefix itself and all longer ones in it. They stand together: prefixes are sorted by address, then length.
    fn inside(&self, net: &IpNet) -> impl Iterator<Item = (&IpNet, &Class)> {
        self.ranges.range(*net..=IpNet::from(net.broadcast()))
    }

    /// What a rule lets in to one class.
    fn ingress(&self, resolved: &Resolved<'_>, rule: RuleId, class: Class) -> Vec<NetworkAllow> {
        let named = |protocol, name: &str| {
            let ports = self.named.get(&(class, protocol)).and_then(|names| names.get(name));
            ports.into_iter().flatten().map(|port| *port..=*port).collect()
        };
        resolved.allow(rule, named)
    }

    /// What a rule lets out. A named port is another number with each peer.
    fn egress(&self, resolved: &Resolved<'_>, rule: RuleId) -> Vec<NetworkAllow> {
        let mut allow = resolved.allow(rule, |_, _| Vec::new());
        let mut by_ports: BTreeMap<(Protocol, &BTreeSet<u16>), BTreeSet<Class>> = BTreeMap::new();
        for (protocol, name) in resolved.named_ports() {
            for class in self.peers_of(resolved) {
                let ports = self.named.get(&(class, protocol)).and_then(|names| names.get(name));
                if let Some(ports) = ports {
                    by_ports.entry((protocol, ports)).or_default().insert(class);
                }
            }
        }
        allow.extend(by_ports.into_iter().map(|((protocol, ports), peers)| NetworkAllow {
            rule,
            peers: Some(Arc::new(peers)),
            protocol: Some(protocol),
            ports: Some(merge(ports.iter().map(|port| *port..=*port).collect())),
        }));
        allow
    }

    /// Peers that have named ports: workloads; those of everybody are all there are.
    fn peers_of(&self, resolved: &Resolved<'_>) -> Vec<Class> {
        let all = self.classes.values().flat_map(|classes| classes.keys().copied());
        match &resolved.peers {
            Some(peers) => peers.iter().copied().collect(),
            None => all.collect(),
        }
    }
}

// === impl Resolved ===

impl<'a> Resolved<'a> {
    /// One entry a protocol that it speaks of. `named` gives the numbers of a named port.
    fn allow(&self, rule: RuleId, named: impl Fn(Protocol, &str) -> Vec<RangeInclusive<u16>>) -> Vec<NetworkAllow> {
        if self.peers.as_ref().is_some_and(|peers| peers.is_empty()) {
            return Vec::new();
        }
        let entry = |protocol, ports| NetworkAllow {
            rule,
            peers: self.peers.clone(),
            protocol,
            ports,
        };
        if self.ports.is_empty() {
            return vec![entry(None, None)];
        }
        let mut allow = Vec::new();
        for protocol in PROTOCOLS {
            let mut found = Vec::new();
            let mut every = false;
            for port in self.ports.iter().filter(|port| port.protocol == Some(protocol)) {
                match &port.port.value {
                    PortMatch::Every => every = true,
                    PortMatch::Numbers(range) => found.push(range.clone()),
                    PortMatch::Named(name) => found.extend(named(protocol, name)),
                }
            }
            if every {
                allow.push(entry(Some(protocol), None));
            } else if !found.is_empty() {
                allow.push(entry(Some(protocol), Some(merge(found))));
            }
        }
        allow
    }

    fn named_ports(&self) -> impl Iterator<Item = (Protocol, &'a str)> {
        self.ports.iter().filter_map(|port| match &port.port.value {
            PortMatch::Named(name) => Some((port.protocol?, name.as_str())),
            _ => None,
        })
    }
}

// === impl Policy ===

impl Policy<'_> {
    /// Adds this policy to what isolates a class in one direction.
    fn join(&self, isolation: &mut Option<Isolation>, allow: impl Iterator<Item = NetworkAllow>) {
        let isolation = isolation.get_or_insert_with(|| Isolation {
            default_rule: self.rule,
            audit: true,
            allow: Vec::new(),
        });
        if isolation.audit && !self.audit {
            isolation.default_rule = self.rule;
            isolation.audit = false;
        }
        isolation.allow.extend(allow);
    }

    /// Says which named ports nobody has.
    fn check_ports(
        &self,
        world: &World<'_>,
        rules: &[Resolved<'_>],
        direction: Direction<'_>,
        lost: &mut Vec<String>,
        report: &mut Report,
    ) {
        for rule in rules {
            let (classes, whose) = match direction {
                Direction::Ingress(selected) => (selected.to_vec(), "the workloads it selects"),
                Direction::Egress => (world.peers_of(rule), "its peers"),
            };
            for port in rule.ports {
                let (PortMatch::Named(name), Some(protocol)) = (&port.port.value, port.protocol) else {
                    continue;
                };
                let has = |class: &Class| {
                    let names = world.named.get(&(*class, protocol));
                    names.is_some_and(|names| names.contains_key(name.as_str()))
                };
                if classes.is_empty() || classes.iter().any(has) {
                    continue;
                }
                report.warn(
                    self.object,
                    &port.port,
                    format!("no Service of {whose} has a {protocol} port of this name"),
                    "name it in the Service, or write the port's number",
                );
                lost.push(format!("port `{name}`/{protocol} of {whose}"));
            }
        }
    }

    fn report(&self, spec: &NetworkPolicySpec, lost: &[String], report: &mut Report) {
        let rules = spec.ingress.iter().chain(&spec.egress).flatten();
        let sctp = rules
            .flat_map(|rule| &rule.ports)
            .filter(|port| port.protocol.is_none());
        let fields: Vec<&str> = sctp.map(|port| port.port.field.as_str()).collect();
        let (state, text) = if !lost.is_empty() {
            (ObjectState::Pending, format!("missing: {}", lost.join(", ")))
        } else if !fields.is_empty() {
            let text = format!("the mesh carries no SCTP ({})", fields.join(", "));
            (ObjectState::NotEnforced, text)
        } else if self.audit {
            let text = "audited: what it does not allow is let through and reported".to_owned();
            (ObjectState::Accepted, text)
        } else {
            (ObjectState::Accepted, "enforced".to_owned())
        };
        report.status(&self.object.id, state, text);
    }
}

/// The same numbers in as few ranges as there can be, in order.
fn merge(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(merge(vec![80..=80, 1..=3, 4..=9, 2..=5, 81..=90]), [1..=9, 80..=90]);
        assert_eq!(merge(vec![65535..=65535, 1..=65535]), [1..=65535]);
        assert_eq!(merge(vec![5..=9, 1..=3]), [1..=3, 5..=9]);
    }
}
