//! Random small meshes with NetworkPolicies, and their resources.

use std::{collections::BTreeMap, fmt::Write as _, ops::RangeInclusive};

use ipnet::IpNet;
use proptest::prelude::*;
use weft_policy::{Protocol, RuntimeWorkload, SERVICE_LABEL};

use crate::support;

pub const NAMESPACES: [&str; 2] = ["n0", "n1"];
pub const KEYS: [&str; 3] = ["app", "tier", SERVICE_LABEL];
pub const VALUES: [&str; 3] = ["a", "b", "w0"];
/// Nested, apart, touching, of one address, of both families.
pub const PREFIXES: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/17",
    "10.1.2.3/32",
    "192.0.2.0/24",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
];
pub const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.1.0.1",
    "10.1.2.3",
    "10.1.200.1",
    "192.0.2.1",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db8:1::1",
    "127.0.0.1",
];
pub const PORTS: [u16; 6] = [80, 8000, 8001, 8003, 8090, 443];

#[derive(Debug, Clone)]
pub struct World {
    /// Label `team` of each namespace; `None`: no Namespace declares it.
    pub teams: [Option<usize>; 2],
    /// Number `i` is of service `w{i}`, whose port `http` is port 8000 + i of the workload.
    pub running: Vec<Labelled>,
    /// Written by hand, at an address of [`ADDRESSES`]: one that no other has.
    pub far: Vec<(Labelled, usize)>,
    pub policies: Vec<Policy>,
    /// Namespaces under audit.
    pub audited: [bool; 2],
}

#[derive(Debug, Clone)]
pub struct Labelled {
    pub namespace: usize,
    pub labels: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Clone)]
pub struct Policy {
    pub namespace: usize,
    pub audit: bool,
    pub pods: Selector,
    /// Bit 0: ingress, bit 1: egress; 0: not said.
    pub types: u8,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

#[derive(Debug, Clone)]
pub struct Rule {
    pub peers: Vec<Peer>,
    pub ports: Vec<(Option<Protocol>, Port)>,
}

#[derive(Debug, Clone)]
pub enum Peer {
    Pods(Selector),
    Namespaces(Selector, Option<Selector>),
    Block(&'static str, Vec<&'static str>),
}

#[derive(Debug, Clone)]
pub enum Port {
    Every,
    Numbers(RangeInclusive<u16>),
    Http,
}

pub type Selector = Vec<(&'static str, Operator, Vec<&'static str>)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `matchLabels`.
    Is,
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

// === random meshes ===

pub fn selector() -> impl Strategy<Value = Selector> {
    let operators = [
        Operator::Is,
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
    ];
    let one = (
        prop::sample::select(&KEYS[..]),
        prop::sample::select(operators.to_vec()),
        prop::sample::subsequence(&VALUES, 1..=2),
    )
        .prop_map(|(key, operator, mut values)| {
            match operator {
                Operator::Is => values.truncate(1),
                Operator::Exists | Operator::DoesNotExist => values.clear(),
                Operator::In | Operator::NotIn => {}
            }
            (key, operator, values)
        });
    prop::collection::vec(one, 0..3)
}

/// About the labels that namespaces have.
pub fn namespace_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(Vec::new()),
        prop::sample::select(&NAMESPACES[..]).prop_map(|name| vec![(
            "kubernetes.io/metadata.name",
            Operator::Is,
            vec![name]
        )]),
        prop::sample::select(&VALUES[..]).prop_map(|team| vec![("team", Operator::NotIn, vec![team])]),
        Just(vec![("team", Operator::Exists, Vec::new())]),
    ]
}

pub fn peer() -> impl Strategy<Value = Peer> {
    let block = prop::sample::select(&PREFIXES[..]).prop_flat_map(|cidr| {
        let inner: Vec<&'static str> = PREFIXES
            .into_iter()
            .filter(|other| *other != cidr && net(cidr).contains(&net(other)))
            .collect();
        let most = inner.len().min(2);
        prop::sample::subsequence(inner, 0..=most).prop_map(move |except| Peer::Block(cidr, except))
    });
    prop_oneof![
        selector().prop_map(Peer::Pods),
        (namespace_selector(), prop::option::of(selector())).prop_map(|(of, pods)| Peer::Namespaces(of, pods)),
        block,
    ]
}

pub fn rule() -> impl Strategy<Value = Rule> {
    let number = prop::sample::select(&PORTS[..]);
    let port = prop_oneof![
        Just(Port::Every),
        (number.clone(), number).prop_map(|(a, b)| Port::Numbers(a.min(b)..=a.max(b))),
        Just(Port::Http),
    ];
    let protocol = prop_oneof![
        3 => Just(Some(Protocol::Tcp)),
        2 => Just(Some(Protocol::Udp)),
        1 => Just(None),
    ];
    (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec((protocol, port), 0..3),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

pub fn labelled() -> impl Strategy<Value = Labelled> {
    let value = || prop::option::of(prop::sample::select(&VALUES[..2]));
    (0..2usize, value(), value()).prop_map(|(namespace, app, tier)| Labelled {
        namespace,
        labels: [("app", app), ("tier", tier)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
    })
}

pub fn world() -> impl Strategy<Value = World> {
    let rules = || prop::collection::vec(rule(), 0..3);
    let policy = (0..2usize, any::<bool>(), selector(), 0..4u8, rules(), rules()).prop_map(
        |(namespace, audit, pods, types, ingress, egress)| Policy {
            namespace,
            audit,
            pods,
            types,
            ingress,
            egress,
        },
    );
    let far = prop::sample::subsequence(vec![0usize, 2, 4, 6], 0..3)
        .prop_flat_map(|at| at.into_iter().map(|at| (labelled(), Just(at))).collect::<Vec<_>>());
    (
        prop::array::uniform2(prop::option::of(0..2usize)),
        prop::collection::vec(labelled(), 1..5),
        far,
        prop::collection::vec(policy, 0..5),
        prop::array::uniform2(prop::bool::weighted(0.2)),
    )
        .prop_map(|(teams, running, far, policies, audited)| World {
            teams,
            running,
            far,
            policies,
            audited,
        })
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

// === as resources ===

pub fn yaml(world: &World) -> String {
    let mut out = String::new();
    for (n, namespace) in NAMESPACES.iter().enumerate() {
        if let Some(team) = world.teams[n] {
            let _ = writeln!(
                out,
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {}}}}}\n---",
                VALUES[team]
            );
        }
        if world.audited[n] {
            let _ = writeln!(
                out,
                "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {{name: own, namespace: {namespace}}}\n\
                 spec: {{enforcement: audit}}\n---"
            );
        }
    }
    for (i, workload) in world.running.iter().enumerate() {
        let _ = writeln!(
            out,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: w{i}, namespace: {}}}\n\
             spec: {{ports: [{{name: http, port: 80, targetPort: {}}}]}}\n---",
            NAMESPACES[workload.namespace],
            8000 + i
        );
    }
    for (i, (workload, address)) in world.far.iter().enumerate() {
        let _ = writeln!(
            out,
            "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: far{i}, namespace: {}, labels: {}}}\n\
             spec: {{address: \"{}\"}}\n---",
            NAMESPACES[workload.namespace],
            flow_map(&workload.labels),
            ADDRESSES[*address]
        );
    }
    for (i, policy) in world.policies.iter().enumerate() {
        let _ = writeln!(
            out,
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{i}, namespace: {}, \
             annotations: {{weft.mesh/audit: \"{}\"}}}}\nspec:\n  podSelector: {}",
            NAMESPACES[policy.namespace],
            policy.audit,
            selector_yaml(&policy.pods)
        );
        let types = ["[]", "[Ingress]", "[Egress]", "[Egress, Ingress]"][usize::from(policy.types)];
        let _ = writeln!(out, "  policyTypes: {types}");
        for (name, peers, rules) in [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)] {
            let rules: Vec<String> = rules.iter().map(|rule| rule_yaml(peers, rule)).collect();
            let _ = writeln!(out, "  {name}: [{}]", rules.join(", "));
        }
        out.push_str("---\n");
    }
    out
}

pub fn flow_map(labels: &BTreeMap<&str, &str>) -> String {
    let entries: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", entries.join(", "))
}

pub fn selector_yaml(selector: &Selector) -> String {
    let mut labels = BTreeMap::new();
    let mut expressions = Vec::new();
    for (key, operator, values) in selector {
        // A second value of one label goes beside it.
        if *operator == Operator::Is && !labels.contains_key(key) {
            labels.insert(*key, values[0]);
        } else {
            let operator = if *operator == Operator::Is {
                Operator::In
            } else {
                *operator
            };
            let values = if values.is_empty() {
                String::new()
            } else {
                format!(", values: [{}]", values.join(", "))
            };
            expressions.push(format!("{{key: {key}, operator: {operator:?}{values}}}"));
        }
    }
    format!(
        "{{matchLabels: {}, matchExpressions: [{}]}}",
        flow_map(&labels),
        expressions.join(", ")
    )
}

pub fn rule_yaml(name: &str, rule: &Rule) -> String {
    let peers: Vec<String> = rule
        .peers
        .iter()
        .map(|peer| match peer {
            Peer::Pods(pods) => format!("{{podSelector: {}}}", selector_yaml(pods)),
            Peer::Namespaces(of, None) => format!("{{namespaceSelector: {}}}", selector_yaml(of)),
            Peer::Namespaces(of, Some(pods)) => format!(
                "{{namespaceSelector: {}, podSelector: {}}}",
                selector_yaml(of),
                selector_yaml(pods)
            ),
            Peer::Block(cidr, except) => {
                let except: Vec<String> = except.iter().map(|net| format!("\"{net}\"")).collect();
                format!("{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}", except.join(", "))
            }
        })
        .collect();
    let ports: Vec<String> = rule
        .ports
        .iter()
        .map(|(protocol, port)| {
            let protocol = match protocol {
                Some(Protocol::Tcp) => "TCP",
                Some(Protocol::Udp) => "UDP",
                None => "SCTP",
            };
            let port = match port {
                Port::Every => String::new(),
                Port::Numbers(range) => format!(", port: {}, endPort: {}", range.start(), range.end()),
                Port::Http => ", port: http".to_owned(),
            };
            format!("{{protocol: {protocol}{port}}}")
        })
        .collect();
    format!("{{{name}: [{}], ports: [{}]}}", peers.join(", "), ports.join(", "))
}

pub fn running(world: &World) -> Vec<RuntimeWorkload> {
    let workload = |(i, workload): (usize, &Labelled)| {
        let labels: Vec<String> = workload.labels.iter().map(|(k, v)| format!("label={k}={v}")).collect();
        let options: Vec<&str> = labels.iter().map(String::as_str).collect();
        let name = format!("{}/w{i}/1", NAMESPACES[workload.namespace]);
        support::workload(&name, &options, 100 + i as u64)
    };
    world.running.iter().enumerate().map(workload).collect()
}
