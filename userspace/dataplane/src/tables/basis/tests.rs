//! Snapshots as the compiler makes them, of which the later one shares with the earlier what is the same; what differs of their
//! tables must be what [`Basis::changes`] says, where it says something.

use std::{
    fmt::Debug,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use proptest::prelude::*;
use weft_policy::{Acceleration, Allocations, CompileInput, L7, RuntimeWorkload, Severity, Store, compile};

use super::*;

/// Two that share endpoints with the others, before and after them by name; one of two ports and protocols.
const SERVICES: [&str; 6] = [
    "{name: a}\nspec: {selector: {tier: front}, ports: [{port: 80, targetPort: 8080}]}",
    "{name: b}\nspec: {selector: {app: b}, ports: [{port: 80, targetPort: 8080}, {port: 81, targetPort: 8080}, \
     {port: 53, targetPort: 8080, protocol: UDP}]}",
    "{name: c}\nspec: {selector: {app: c}, ports: [{port: 80, targetPort: 8080}]}",
    "{name: d}\nspec: {selector: {app: d}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}",
    "{name: root}\nspec: {ports: [{port: 80}]}",
    "{name: z}\nspec: {selector: {tier: back}, ports: [{port: 90, targetPort: 8080}]}",
];

/// A Workload that is written by hand.
#[derive(Debug, Clone)]
struct Hand {
    app: &'static str,
    tier: &'static str,
    account: &'static str,
    addresses: BTreeSet<IpAddr>,
}

/// What is said of services and workloads.
#[derive(Debug, Clone, Default)]
struct Rules {
    /// Of root, to `b` and `c`.
    split: Option<[u32; 2]>,
    deny: bool,
    ranges: bool,
    adapter: bool,
    external: bool,
    open: bool,
}

#[derive(Debug, Clone)]
struct World {
    hands: Vec<Hand>,
    /// Where a workload of `weft run` listens, of `b`.
    listens: BTreeSet<IpAddr>,
    rules: Rules,
}

/// A world and what is known of it.
struct Mesh {
    world: World,
    allocations: Allocations,
    snapshot: Arc<Snapshot>,
    basis: Basis,
}

#[derive(Debug, Clone)]
enum Edit {
    Move(usize, BTreeSet<IpAddr>),
    Replace(usize, Hand),
    Listen(BTreeSet<IpAddr>),
    Rule(Rules),
}

// === impl World ===

impl World {
    /// Two workloads of `b`, one of `c`, one of `d`.
    fn small() -> Self {
        let hand = |app, number| Hand {
            app,
            tier: "middle",
            account: "s0",
            addresses: BTreeSet::from([v4(number)]),
        };
        Self {
            hands: vec![hand("b", 1), hand("b", 2), hand("c", 3), hand("d", 4)],
            listens: BTreeSet::new(),
            rules: Rules {
                split: Some([1, 3]),
                ..Rules::default()
            },
        }
    }

    fn text(&self) -> String {
        let mut documents: Vec<String> = SERVICES
            .iter()
            .map(|service| format!("apiVersion: v1\nkind: Service\nmetadata: {service}\n"))
            .collect();
        for (number, hand) in self.hands.iter().enumerate() {
            let Hand { app, tier, account, .. } = hand;
            let addresses: Vec<String> = hand.addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
            documents.push(format!(
                "apiVersion: weft.mesh/v1alpha1\nkind: Workload\n\
                 metadata: {{name: w{number}, labels: {{app: {app}, tier: {tier}}}}}\n\
                 spec: {{addresses: [{}], serviceAccount: {account}}}\n",
                addresses.join(", ")
            ));
        }
        self.rules.text(&mut documents);
        documents.join("---\n")
    }

    fn compiled(&self, allocations: &mut Allocations) -> Snapshot {
        let mut store = Store::default();
        let found = store.apply_file("mesh.yaml", self.text().as_bytes());
        assert!(found.iter().all(|found| found.severity != Severity::Error), "{found:?}");
        let listening = self
            .listens
            .iter()
            .map(|ip| (SocketAddr::new(*ip, 8080), Protocol::Tcp));
        let runs = RuntimeWorkload {
            name: "default/b/1".to_owned(),
            namespace: "default".to_owned(),
            service: "b".to_owned(),
            account: "s0".to_owned(),
            labels: Default::default(),
            cgroup: 100,
            ports: Vec::new(),
            listening: listening.collect(),
        };
        let input = CompileInput {
            workloads: &[runs],
            ..CompileInput::of(&store)
        };
        compile(&input, allocations).snapshot
    }
}

impl Rules {
    fn text(&self, documents: &mut Vec<String>) {
        let mut add = |text: &str| documents.push(format!("{text}\n"));
        if let Some([b, c]) = self.split {
            add(&format!(
                "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: s}}\n\
                 spec: {{service: root, backends: [{{service: b, weight: {b}}}, {{service: c, weight: {c}}}]}}"
            ));
        }
        if self.deny {
            add(
                "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessDefault: deny}",
            );
            add(
                "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: t}\nspec:\n  \
                 destination: {kind: ServiceAccount, name: s0}\n  \
                 sources: [{kind: ServiceAccount, name: s1}]\n  \
                 rules: [{kind: TCPRoute, name: r}]",
            );
            add(
                "apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {name: r}\n\
                 spec: {matches: {ports: [8080]}}",
            );
        }
        if self.ranges {
            add(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: n}\nspec:\n  \
                 podSelector: {matchLabels: {app: b}}\n  policyTypes: [Ingress]\n  \
                 ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/32}}, {ipBlock: {cidr: \"fd00::/16\"}}]}]",
            );
        }
        if self.adapter {
            add(
                "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {name: seen, namespace: default}\n\
                 spec: {backend: wasm, target: {services: [d]}, wasm: {module: /opt/seen.wasm}}",
            );
        }
        if self.external {
            add(
                "apiVersion: weft.mesh/v1alpha1\nkind: ServicePolicy\nmetadata: {name: c}\n\
                 spec: {service: c, l7: {mode: external, address: \"127.0.0.1:15101\", cgroup: /envoy}}",
            );
        }
        if self.open {
            add(
                "apiVersion: weft.mesh/v1alpha1\nkind: ServicePolicy\nmetadata: {name: b}\n\
                 spec: {service: b, failureMode: open}",
            );
        }
    }
}

// === impl Mesh ===

impl Mesh {
    fn of(world: World) -> Self {
        let mut allocations = Allocations::default();
        let snapshot = Arc::new(world.compiled(&mut allocations));
        Self {
            basis: Basis::of(Arc::clone(&snapshot), &foreign()),
            world,
            allocations,
            snapshot,
        }
    }

    /// What is told of a change, which is compared with the tables.
    fn change(&mut self, edit: impl FnOnce(&mut World)) -> Option<Changes> {
        edit(&mut self.world);
        let new = self.world.compiled(&mut self.allocations);
        let new = Arc::new(sharing(&self.snapshot, new));
        let old = mem::replace(&mut self.snapshot, Arc::clone(&new));
        let fresh = Basis::of(Arc::clone(&new), &foreign());
        let basis = mem::replace(&mut self.basis, fresh);
        let changes = basis.changes(&new, &foreign())?;
        let (before, after) = (Tables::of(&old, &foreign()), Tables::of(&new, &foreign()));
        assert_eq!(changed(before.dests, &changes.dests), after.dests);
        assert_eq!(changed(before.backends, &changes.backends), after.backends);
        assert_eq!(changed(before.addrs, &changes.addrs), after.addrs);
        assert_eq!(before.policy, after.policy);
        assert_eq!(before.externals, after.externals);
        self.basis = basis.follow(new);
        Some(changes)
    }

    fn service(&self, name: &str) -> &Service {
        self.snapshot.service("default", name).expect("a service of this name")
    }
}

// === impl Edit ===

impl Edit {
    fn carry_out(self, world: &mut World) {
        let count = world.hands.len();
        match self {
            Self::Move(which, addresses) => world.hands[which % count].addresses = addresses,
            Self::Replace(which, hand) => world.hands[which % count] = hand,
            Self::Listen(addresses) => world.listens = addresses,
            Self::Rule(rules) => world.rules = rules,
        }
    }
}

fn foreign() -> ForeignCgroups {
    ForeignCgroups::from([(PathBuf::from("/envoy"), 9)])
}

fn v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
}

/// The later snapshot with the earlier one's services, workloads and policies where they are the same.
fn sharing(old: &Snapshot, mut new: Snapshot) -> Snapshot {
    let services = new.services.iter().map(|(name, service)| {
        let before = old.services.get(name);
        (
            name.clone(),
            before.map_or_else(|| Arc::clone(service), |before| shared(before, service)),
        )
    });
    new.services = services.collect();
    let workloads = new.workloads.iter().enumerate().map(|(number, workload)| {
        let before = old.workloads.get(number);
        one_of(before, workload)
    });
    new.workloads = workloads.collect();
    let access = new.access.iter();
    new.access = access
        .map(|(identity, policy)| (*identity, one_of(old.access.get(identity), policy)))
        .collect();
    new
}

/// A service, with what it has of the earlier one.
fn shared(before: &Arc<Service>, now: &Arc<Service>) -> Arc<Service> {
    let mut service = one_of(Some(before), now);
    if !Arc::ptr_eq(&service, before) {
        let ports = Arc::make_mut(&mut service).ports.iter_mut();
        for (port, before) in ports.zip(&before.ports) {
            port.split = port.split.as_ref().map(|split| one_of(before.split.as_ref(), split));
        }
    }
    service
}

/// The earlier one if it is the same.
fn one_of<T: Debug>(before: Option<&Arc<T>>, now: &Arc<T>) -> Arc<T> {
    let same = before.filter(|before| is_same(*before, now));
    Arc::clone(same.unwrap_or(now))
}

fn is_same<T: Debug>(one: &T, other: &T) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

fn changed<K: Copy + Eq + Hash, V: Copy>(mut table: HashMap<K, V>, delta: &Delta<K, V>) -> HashMap<K, V> {
    for (key, value) in delta {
        match value {
            Some(value) => table.insert(*key, *value),
            None => table.remove(key),
        };
    }
    table
}

// === random worlds ===

/// So few that workloads come to share some.
fn addresses() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    let own = (1..7).map(v4).chain((1..5).map(v6));
    let pool: Vec<IpAddr> = own.chain([VIP4.into(), Ipv4Addr::LOCALHOST.into()]).collect();
    prop::collection::btree_set(prop::sample::select(pool), 1..3)
}

fn hand() -> impl Strategy<Value = Hand> {
    let word = |of: &[&'static str]| prop::sample::select(of.to_vec());
    let (app, tier) = (word(&["b", "c", "d"]), word(&["front", "back", "middle"]));
    (app, tier, word(&["s0", "s1"]), addresses()).prop_map(|(app, tier, account, addresses)| Hand {
        app,
        tier,
        account,
        addresses,
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    let split = prop::option::of(prop::array::uniform2(0u32..4));
    (split, prop::array::uniform5(any::<bool>())).prop_map(|(split, [deny, ranges, adapter, external, open])| Rules {
        split,
        deny,
        ranges,
        adapter,
        external,
        open,
    })
}

fn world() -> impl Strategy<Value = World> {
    let listens = prop::option::of(addresses()).prop_map(Option::unwrap_or_default);
    (prop::collection::vec(hand(), 1..6), listens, rules()).prop_map(|(hands, listens, rules)| World {
        hands,
        listens,
        rules,
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (any::<usize>(), addresses()).prop_map(|(which, addresses)| Edit::Move(which, addresses)),
        1 => (any::<usize>(), hand()).prop_map(|(which, hand)| Edit::Replace(which, hand)),
        1 => addresses().prop_map(Edit::Listen),
        1 => rules().prop_map(Edit::Rule),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_is_what_differs_of_all_tables(world in world(), edits in prop::collection::vec(edit(), 1..6)) {
        let mut mesh = Mesh::of(world);
        for edit in edits {
            mesh.change(|world| edit.carry_out(world));
        }
    }

    #[test]
    fn endpoints_that_move_to_free_addresses_are_always_told(
        world in world(),
        moves in prop::collection::vec((any::<usize>(), any::<bool>()), 1..6),
    ) {
        let mut world = world;
        // An endpoint there has all tables computed.
        world.listens.remove(&IpAddr::from(VIP4));
        let count = world.hands.len();
        for (hand, number) in world.hands.iter_mut().zip(100..) {
            hand.addresses = BTreeSet::from([v4(number), v6(number)]);
        }
        let mut mesh = Mesh::of(world);
        for ((which, both), number) in moves.into_iter().zip(200..) {
            let to = if both { vec![v4(number), v6(number)] } else { vec![v6(number)] };
            let mut from = BTreeSet::new();
            let changes = mesh.change(|world| {
                let hand = &mut world.hands[which % count];
                from = mem::replace(&mut hand.addresses, to.iter().copied().collect());
            });
            let changes = changes.expect("nobody else has them");
            prop_assert_eq!(changes.addrs.len(), from.len() + to.len());
        }
    }
}

#[test]
fn what_is_as_it_was_changes_nothing() {
    let mut mesh = Mesh::of(World::small());
    let changes = mesh.change(|_| ()).expect("told");
    assert!(changes.dests.is_empty() && changes.backends.is_empty() && changes.addrs.is_empty());
}

#[test]
fn one_endpoint_that_moves_changes_its_services_entries_alone() {
    let mut mesh = Mesh::of(World::small());
    let changes = mesh
        .change(|world| world.hands[3].addresses = BTreeSet::from([v4(40)]))
        .expect("told");
    let (set, ports) = (mesh.service("d").ports[0].id * 2, mesh.service("d").ports.len());
    assert_eq!(ports, 1);
    let keys: Vec<_> = changes.backends.keys().copied().collect();
    assert_eq!(keys, [BackendKey { set, slot: 0 }]);
    assert_eq!((changes.dests.len(), changes.addrs.len()), (2, 2), "from there to here");
}

#[test]
fn a_split_follows_the_services_that_it_leads_to() {
    let mut mesh = Mesh::of(World::small());
    for number in [50, 51] {
        let changes = mesh
            .change(|world| world.hands[0].addresses = BTreeSet::from([v4(number)]))
            .expect("told");
        let set = mesh.service("root").ports[0].id * 2;
        assert!(changes.backends.keys().any(|key| key.set == set), "{changes:?}");
    }
}

#[test]
fn what_does_not_follow_from_what_changed_is_left_to_all_tables() {
    type Case = (&'static str, fn(&mut World));
    let cases: [Case; 10] = [
        ("the only one of two leaves", |world| {
            world.hands[1].addresses = BTreeSet::from([v4(9)]);
        }),
        ("a second one comes", |world| {
            world.hands[3].addresses = BTreeSet::from([v4(3)]);
        }),
        ("two change places", |world| {
            world.hands[2].addresses = BTreeSet::from([v4(4)]);
            world.hands[3].addresses = BTreeSet::from([v4(3)]);
        }),
        ("somebody listens", |world| {
            world.listens.insert(v4(4));
        }),
        ("another account", |world| world.hands[3].account = "s1"),
        ("another service", |world| world.hands[3].tier = "front"),
        ("one more", |world| world.hands.push(world.hands[3].clone())),
        ("another policy", |world| world.rules.deny = true),
        ("a network policy", |world| world.rules.ranges = true),
        ("other weights", |world| world.rules.split = Some([2, 3])),
    ];
    for (name, edit) in cases {
        let mut world = World::small();
        // Two with one address.
        world.hands[0].addresses.insert(v4(2));
        assert!(Mesh::of(world).change(edit).is_none(), "{name}");
    }
    let mut mesh = Mesh::of(World::small());
    let vip = IpAddr::V4(mesh.service("b").vip4);
    let at_a_vip = mesh.change(|world| world.hands[3].addresses = BTreeSet::from([vip]));
    assert!(at_a_vip.is_none(), "a virtual IP");
    let mesh = Mesh::of(World::small());
    let gone = mesh.basis.changes(&mesh.snapshot, &ForeignCgroups::new());
    assert!(gone.is_none(), "a foreign proxy is not there");
}

#[test]
fn more_services_than_are_compared_one_by_one_are_left_to_all_tables() {
    let service = |number: usize| {
        let name = ServiceName {
            namespace: "default".into(),
            name: format!("s{number}").into(),
        };
        let service = Service {
            name: name.clone(),
            vip4: Ipv4Addr::new(240, 240, (number / 256) as u8, (number % 256) as u8),
            vip6: Ipv6Addr::LOCALHOST,
            ports: Vec::new(),
            failure_mode: None,
            acceleration: Acceleration::Off,
            l7: L7::Auto,
        };
        (name, Arc::new(service))
    };
    let of = |services: BTreeMap<_, _>| Snapshot {
        services: services.into_iter().collect(),
        ..Snapshot::default()
    };
    let old: BTreeMap<_, _> = (0..=MAX_CHANGED).map(service).collect();
    let mut new: BTreeMap<_, _> = (0..=MAX_CHANGED).map(service).collect();
    let basis = Basis::of(Arc::new(of(old.clone())), &foreign());
    assert!(basis.changes(&of(new.clone()), &foreign()).is_none());
    let (name, first) = old.first_key_value().expect("more than none");
    new.insert(name.clone(), Arc::clone(first));
    assert!(basis.changes(&of(new), &foreign()).is_some());
}
