//! Random small policies, and steps that real programs take under them.

use std::ops::RangeInclusive;

use proptest::prelude::*;

/// Programs of the mesh. Number 3 is a program outside it.
pub const ACTORS: usize = 3;
pub const OUTSIDER: usize = ACTORS;
pub const NAMESPACES: [&str; 2] = ["default", "other"];
/// Namespace of each actor.
pub const HOME: [usize; ACTORS] = [0, 0, 1];
/// Labels of each actor, beside those that `weft run` sets.
pub const LABELS: [&[(&str, &str)]; ACTORS] = [&[("app", "x")], &[("app", "y"), ("tier", "back")], &[("app", "x")]];
/// Ports of each actor, above [`base`]; those of [`SERVICE_PORTS`] first, then one that no service declares.
pub const OFFSETS: [u16; 3] = [1, 2, 6];
pub const SERVICE_PORTS: [u16; 2] = [81, 82];

pub fn base(actor: usize) -> u16 {
    7000 + 100 * actor as u16
}

pub fn account(actor: usize) -> String {
    format!("s{actor}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
}

/// Everything that is written under one generation.
#[derive(Debug, Clone)]
pub struct World {
    /// Of the mesh, then of each namespace; `None`: not said.
    pub denies: [Option<bool>; 3],
    pub audits: [Option<bool>; 3],
    pub targets: Vec<Target>,
    pub networks: Vec<Network>,
    /// Whether nobody looks at the requests of an actor's service (`l7: none`).
    pub unseen: [bool; ACTORS],
}

/// A TrafficTarget with a route of its own of each kind that it has.
#[derive(Debug, Clone)]
pub struct Target {
    pub destination: usize,
    pub sources: Vec<usize>,
    pub tcp: Option<Vec<u16>>,
    pub udp: Option<Vec<u16>>,
    /// Methods; none: any.
    pub http: Option<Vec<Method>>,
    pub audit: bool,
}

/// A NetworkPolicy.
#[derive(Debug, Clone)]
pub struct Network {
    pub namespace: usize,
    pub audit: bool,
    pub pods: Selector,
    /// Bit 0: Ingress, bit 1: Egress; 0: not said.
    pub types: u8,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

/// One label, or everybody.
pub type Selector = Option<(&'static str, &'static str)>;

#[derive(Debug, Clone)]
pub struct Rule {
    pub peers: Vec<Peer>,
    /// `None`: every port of this protocol.
    pub ports: Vec<(Transport, Option<RangeInclusive<u16>>)>,
}

#[derive(Debug, Clone)]
pub enum Peer {
    Pods(Selector),
    /// By name, and what of it.
    Namespace(usize, Selector),
    /// An ipBlock: no workload's address, and never loopback.
    Block,
}

/// How a program writes the address it dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    Virtual4,
    Virtual6,
    Loopback4,
    Loopback6,
    /// One of the host's own.
    Own,
}

#[derive(Debug, Clone)]
pub enum Step {
    Apply(World),
    Open {
        source: usize,
        destination: usize,
        port: usize,
        transport: Transport,
        address: Address,
    },
    /// On the flow of this number, modulo how many there are.
    Say(usize, Method),
    /// The server sends a datagram that nobody asked for, whether or not the client has sent one.
    Push(usize),
    Close(usize),
}

// === random ones ===

fn selector() -> impl Strategy<Value = Selector> {
    prop::sample::select(vec![
        None,
        Some(("app", "x")),
        Some(("app", "y")),
        Some(("tier", "back")),
        Some(("weft.mesh/service", "s0")),
    ])
}

fn rule() -> impl Strategy<Value = Rule> {
    let bounds = || {
        prop::sample::select(vec![
            7000u16, 7001, 7002, 7005, 7007, 7101, 7102, 7199, 7201, 7206, 65535,
        ])
    };
    let range = (bounds(), bounds()).prop_map(|(a, b)| a.min(b)..=a.max(b));
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let peer = prop_oneof![
        3 => selector().prop_map(Peer::Pods),
        3 => (0..NAMESPACES.len(), selector()).prop_map(|(namespace, pods)| Peer::Namespace(namespace, pods)),
        1 => Just(Peer::Block),
    ];
    (
        prop::collection::vec(peer, 0..3),
        prop::collection::vec((transport, prop::option::weighted(0.8, range)), 0..3),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn target() -> impl Strategy<Value = Target> {
    let ports: Vec<u16> = SERVICE_PORTS
        .into_iter()
        .chain((0..ACTORS).flat_map(|actor| OFFSETS.map(|offset| base(actor) + offset)))
        .collect();
    let route = move || prop::option::of(prop::collection::vec(prop::sample::select(ports.clone()), 0..3));
    let methods = prop::sample::select(vec![vec![], vec![Method::Get], vec![Method::Post]]);
    (
        0..ACTORS,
        prop::collection::vec(0..ACTORS, 1..3),
        route(),
        route(),
        prop::option::of(methods),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(destination, sources, tcp, udp, http, audit)| Target {
            destination,
            sources,
            tcp,
            udp,
            http,
            audit,
        })
}

fn network() -> impl Strategy<Value = Network> {
    let rules = || prop::collection::vec(rule(), 0..3);
    (
        0..NAMESPACES.len(),
        prop::bool::weighted(0.15),
        selector(),
        0..4u8,
        rules(),
        rules(),
    )
        .prop_map(|(namespace, audit, pods, types, ingress, egress)| Network {
            namespace,
            audit,
            pods,
            types,
            ingress,
            egress,
        })
}

pub fn world() -> impl Strategy<Value = World> {
    let denies = |weight| prop::option::weighted(weight, prop::bool::weighted(0.8));
    let audits = |weight| prop::option::weighted(weight, prop::bool::weighted(0.3));
    (
        [denies(0.9), denies(0.3), denies(0.3)],
        [audits(0.3), audits(0.15), audits(0.15)],
        prop::collection::vec(target(), 0..=super::resources::TARGETS),
        prop::collection::vec(network(), 0..=super::resources::NETWORKS),
        prop::array::uniform3(prop::bool::weighted(0.2)),
    )
        .prop_map(|(denies, audits, targets, networks, unseen)| World {
            denies,
            audits,
            targets,
            networks,
            unseen,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let method = prop_oneof![2 => Just(Method::Get), 1 => Just(Method::Post)];
    let addresses = vec![
        Address::Virtual4,
        Address::Virtual6,
        Address::Loopback4,
        Address::Loopback6,
        Address::Own,
    ];
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let open = (
        0..=OUTSIDER,
        0..ACTORS,
        0..OFFSETS.len(),
        transport,
        prop::sample::select(addresses),
    )
        // A workload that talks to itself is nobody's business.
        .prop_filter("to itself", |(source, destination, ..)| source != destination)
        .prop_map(|(source, destination, port, transport, address)| Step::Open {
            source,
            destination,
            port,
            transport,
            address: match address {
                Address::Virtual4 | Address::Virtual6 if source == OUTSIDER || port >= SERVICE_PORTS.len() => {
                    Address::Own
                }
                address => address,
            },
        });
    prop_oneof![
        2 => world().prop_map(Step::Apply),
        5 => open,
        6 => (any::<usize>(), method).prop_map(|(flow, method)| Step::Say(flow, method)),
        2 => any::<usize>().prop_map(Step::Push),
        1 => any::<usize>().prop_map(Step::Close),
    ]
}

/// A policy, then steps.
pub fn story() -> impl Strategy<Value = (World, Vec<Step>)> {
    (world(), prop::collection::vec(step(), 8..40))
}
