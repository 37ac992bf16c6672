//! Compiled NetworkPolicies agree with a naive judge that reads the policies as Kubernetes tells them: no classes, no
//! ranges, each workload and each address looked at by itself.

mod world;

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;
use weft_policy::{Allocations, Class, Decision, Diagnostic, Protocol, SERVICE_LABEL, Snapshot, Store, Verdict};

use self::world::{
    ADDRESSES, Labelled, NAMESPACES, Operator, PORTS, Peer, Policy, Port, Rule, Selector, VALUES, World, net, running,
    world, yaml,
};
use crate::support;

// === as a naive judge reads it ===

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
enum End {
    Running(usize),
    Far(usize),
    /// Of no workload.
    Address(&'static str),
}

impl World {
    fn ends(&self) -> Vec<End> {
        let free = |address: &&&'static str| !self.far.iter().any(|(_, at)| ADDRESSES[*at] == **address);
        let addresses = ADDRESSES.iter().filter(free).map(|address| End::Address(address));
        let workloads = (0..self.running.len())
            .map(End::Running)
            .chain((0..self.far.len()).map(End::Far));
        workloads.chain(addresses).collect()
    }

    /// Namespace and labels; `None`: it is no workload.
    fn workload(&self, end: End) -> Option<(usize, BTreeMap<String, String>)> {
        let owned = |labelled: &Labelled| -> BTreeMap<String, String> {
            let labels = labelled.labels.iter();
            labels
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        match end {
            End::Running(i) => {
                let mut labels = owned(&self.running[i]);
                labels.insert(SERVICE_LABEL.to_owned(), format!("w{i}"));
                Some((self.running[i].namespace, labels))
            }
            End::Far(i) => Some((self.far[i].0.namespace, owned(&self.far[i].0))),
            End::Address(_) => None,
        }
    }

    fn namespace_labels(&self, namespace: usize) -> BTreeMap<String, String> {
        let name = (
            "kubernetes.io/metadata.name".to_owned(),
            NAMESPACES[namespace].to_owned(),
        );
        let team = self.teams[namespace].map(|team| ("team".to_owned(), VALUES[team].to_owned()));
        [name].into_iter().chain(team).collect()
    }

    fn peer_matches(&self, policy: &Policy, peer: &Peer, other: End) -> bool {
        match (peer, self.workload(other), other) {
            (Peer::Pods(pods), Some((namespace, labels)), _) => namespace == policy.namespace && selects(pods, &labels),
            (Peer::Namespaces(of, pods), Some((namespace, labels)), _) => {
                selects(of, &self.namespace_labels(namespace))
                    && pods.as_ref().is_none_or(|pods| selects(pods, &labels))
            }
            (Peer::Block(cidr, except), None, End::Address(address)) => {
                let address: IpAddr = address.parse().expect(address);
                !address.is_loopback()
                    && net(cidr).contains(&address)
                    && !except.iter().any(|except| net(except).contains(&address))
            }
            _ => false,
        }
    }

    fn rule_allows(&self, policy: &Policy, rule: &Rule, other: End, destination: End, call: (Protocol, u16)) -> bool {
        let (protocol, number) = call;
        let port_matches = |(of, port): &(Option<Protocol>, Port)| {
            *of == Some(protocol)
                && match port {
                    Port::Every => true,
                    Port::Numbers(range) => range.contains(&number),
                    // The Services name TCP ports.
                    Port::Http => {
                        matches!(destination, End::Running(i) if protocol == Protocol::Tcp && number == 8000 + i as u16)
                    }
                }
        };
        (rule.peers.is_empty() || rule.peers.iter().any(|peer| self.peer_matches(policy, peer, other)))
            && (rule.ports.is_empty() || rule.ports.iter().any(port_matches))
    }

    /// What is decided at one end, and the policies that a denial may name.
    fn at(&self, own: End, other: End, is_ingress: bool, call: (Protocol, u16)) -> (Verdict, Vec<usize>) {
        let Some((namespace, labels)) = self.workload(own) else {
            return (Verdict::Allow, Vec::new());
        };
        let destination = if is_ingress { own } else { other };
        let isolates = |policy: &&(usize, &Policy)| {
            let policy = policy.1;
            let in_types = match (policy.types, is_ingress) {
                (0, true) => true,
                (0, false) => !policy.egress.is_empty(),
                (types, true) => types & 1 != 0,
                (types, false) => types & 2 != 0,
            };
            policy.namespace == namespace && selects(&policy.pods, &labels) && in_types
        };
        let policies: Vec<(usize, &Policy)> = self.policies.iter().enumerate().collect();
        let isolating: Vec<&(usize, &Policy)> = policies.iter().filter(isolates).collect();
        if isolating.is_empty() {
            return (Verdict::Allow, Vec::new());
        }
        let allowed = isolating.iter().any(|(_, policy)| {
            let rules = if is_ingress { &policy.ingress } else { &policy.egress };
            rules
                .iter()
                .any(|rule| self.rule_allows(policy, rule, other, destination, call))
        });
        let enforcing = isolating
            .iter()
            .filter(|(_, policy)| !policy.audit && !self.audited[policy.namespace]);
        let enforcing: Vec<usize> = enforcing.map(|(i, _)| *i).collect();
        if allowed {
            (Verdict::Allow, Vec::new())
        } else if enforcing.is_empty() {
            (Verdict::Audit, isolating.iter().map(|(i, _)| *i).collect())
        } else {
            (Verdict::Deny, enforcing)
        }
    }

    fn judge(&self, source: End, destination: End, call: (Protocol, u16)) -> (Verdict, Vec<usize>) {
        let (egress, ingress) = (
            self.at(source, destination, false, call),
            self.at(destination, source, true, call),
        );
        // Of two denials the source's, of two reports the destination's.
        for (verdict, ends) in [
            (Verdict::Deny, [&egress, &ingress]),
            (Verdict::Audit, [&ingress, &egress]),
        ] {
            if let Some(found) = ends.into_iter().find(|(found, _)| *found == verdict) {
                return found.clone();
            }
        }
        (Verdict::Allow, Vec::new())
    }
}

fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, operator, values)| {
        let value = labels.get(*key).map(String::as_str);
        match operator {
            Operator::Is | Operator::In => value.is_some_and(|value| values.contains(&value)),
            Operator::NotIn => !value.is_some_and(|value| values.contains(&value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    })
}

// === agreement ===

fn compile(world: &World) -> Snapshot {
    let mut store = Store::default();
    let found = store.apply_file("world", yaml(world).as_bytes());
    assert!(!found.iter().any(Diagnostic::is_error), "{found:?}\n{}", yaml(world));
    support::compile_with(&store, &running(world), &mut Allocations::default()).snapshot
}

fn class(snapshot: &Snapshot, world: &World, end: End) -> Class {
    match end {
        End::Running(i) => snapshot
            .class_of_workload_cgroup(100 + i as u64)
            .expect("a running workload"),
        End::Far(i) => snapshot.class_of_address(ADDRESSES[world.far[i].1].parse().unwrap()),
        End::Address(address) => snapshot.class_of_address(address.parse().unwrap()),
    }
}

fn named(snapshot: &Snapshot, decision: Decision) -> Option<String> {
    decision
        .rule
        .and_then(|rule| snapshot.rule(rule))
        .map(|object| object.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn network_policies_agree_with_a_naive_judge(world in world()) {
        let snapshot = compile(&world);
        for source in world.ends() {
            for destination in world.ends() {
                for call in [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| PORTS.map(|port| (p, port))) {
                    let (verdict, culprits) = world.judge(source, destination, call);
                    let (from, to) = (class(&snapshot, &world, source), class(&snapshot, &world, destination));
                    let found = snapshot.authorize_network(from, to, call.0, call.1);
                    let context = || format!("{source:?} -> {destination:?} {call:?}\n{}", yaml(&world));
                    prop_assert_eq!(found.verdict, verdict, "{}", context());
                    if verdict != Verdict::Allow {
                        let first = culprits.iter().min().map(|i| {
                            format!("NetworkPolicy {}/p{i}", NAMESPACES[world.policies[*i].namespace])
                        });
                        prop_assert_eq!(named(&snapshot, found), first, "{}", context());
                    }
                }
            }
        }
    }

    /// A policy that goes and comes again finds the same numbers, so that tables and events keep their meaning.
    #[test]
    fn classes_survive_a_restart_and_a_change_of_policies(world in world()) {
        let mut store = Store::default();
        let mut allocations = Allocations::default();
        store.apply_file("world", yaml(&world).as_bytes());
        let first = support::compile_with(&store, &running(&world), &mut allocations).snapshot;
        store.remove_file("world");
        support::compile_with(&store, &running(&world), &mut allocations);
        let mut read: Allocations = serde_json::from_str(&serde_json::to_string(&allocations).unwrap()).unwrap();
        store.apply_file("world", yaml(&world).as_bytes());
        let again = support::compile_with(&store, &running(&world), &mut read).snapshot;
        prop_assert_eq!(&first.classes, &again.classes);
        prop_assert_eq!(&first.network.ranges, &again.network.ranges);
        for end in world.ends() {
            prop_assert_eq!(class(&first, &world, end), class(&again, &world, end));
        }
    }
}
