//! The compiled policies agree with a naive judge that reads the rules as SMI tells them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proptest::prelude::*;
use weft_policy::{Account, Allocations, Diagnostic, HttpRequestView, Identity, Protocol, Snapshot, Store, Verdict};

use crate::support;

const NAMESPACES: [&str; 2] = ["n0", "n1"];
const ACCOUNTS: usize = 3;
const METHODS: [&str; 2] = ["GET", "POST"];
/// Patterns, and what of [`PATHS`] begins with them.
const PATTERNS: [&str; 3] = ["/a", "/a/.*$", "/b.*"];
const PATHS: [&str; 4] = ["/a", "/a/x", "/ab", "/b"];
/// Service ports; each workload serves them on its own target ports.
const PORTS: [u16; 2] = [80, 90];
const ROUTES: usize = 3;

/// Some of these are missing: `None`.
#[derive(Debug, Clone)]
struct World {
    /// Of the mesh, then of each namespace.
    denies: [Option<bool>; 3],
    /// `enforcement` of the same.
    audits: [Option<bool>; 3],
    targets: Vec<Target>,
    /// Of each namespace.
    http: [[Option<Vec<Match>>; ROUTES]; 2],
    tcp: [[Option<Vec<u16>>; ROUTES]; 2],
    udp: [[Option<Vec<u16>>; ROUTES]; 2],
    /// Whether the requests to an account's service are seen by nobody (`l7: none`).
    unseen: [[bool; ACCOUNTS]; 2],
}

#[derive(Debug, Clone)]
struct Match {
    method: Option<usize>,
    pattern: Option<usize>,
}

#[derive(Debug, Clone)]
struct Target {
    namespace: usize,
    audit: bool,
    destination: usize,
    sources: Vec<(usize, usize)>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
enum Rule {
    /// Group, and the numbers of its matches; none: all.
    Http(usize, Vec<usize>),
    Tcp(usize),
    Udp(usize),
}

fn world() -> impl Strategy<Value = World> {
    let ports = prop::sample::select(vec![80u16, 90, 8080, 8090, 8091, 1]);
    let route = prop::option::weighted(0.8, prop::collection::vec(ports, 0..3));
    let one = (prop::option::of(0..METHODS.len()), prop::option::of(0..PATTERNS.len()))
        .prop_map(|(method, pattern)| Match { method, pattern });
    let group = prop::option::weighted(0.8, prop::collection::vec(one, 1..3));
    let rule = prop_oneof![
        (0..ROUTES, prop::collection::vec(0..3usize, 0..2)).prop_map(|(group, names)| Rule::Http(group, names)),
        (0..ROUTES).prop_map(Rule::Tcp),
        (0..ROUTES).prop_map(Rule::Udp),
    ];
    let target = (
        0..2usize,
        prop::bool::weighted(0.3),
        0..ACCOUNTS,
        prop::collection::vec((0..2usize, 0..ACCOUNTS), 1..3),
        prop::collection::vec(rule, 1..4),
    )
        .prop_map(|(namespace, audit, destination, sources, rules)| Target {
            namespace,
            audit,
            destination,
            sources,
            rules,
        });
    let default = || prop::option::weighted(0.6, prop::bool::weighted(0.8));
    let audit = || prop::option::weighted(0.3, any::<bool>());
    (
        [default(), default(), default()],
        [audit(), audit(), audit()],
        prop::collection::vec(target, 0..5),
        prop::array::uniform2(prop::array::uniform3(group)),
        prop::array::uniform2(prop::array::uniform3(route.clone())),
        prop::array::uniform2(prop::array::uniform3(route)),
        prop::array::uniform2(prop::array::uniform3(prop::bool::weighted(0.3))),
    )
        .prop_map(|(denies, audits, targets, http, tcp, udp, unseen)| World {
            denies,
            audits,
            targets,
            http,
            tcp,
            udp,
            unseen,
        })
}

/// Account number `a` of namespace `n` serves service port 80 on 8080 and 90 on 8090, the last account on 8091.
fn target_port(account: usize, port: u16) -> u16 {
    match port {
        80 => 8080,
        _ if account == ACCOUNTS - 1 => 8091,
        _ => 8090,
    }
}

// --- as resources ---

fn yaml(world: &World) -> String {
    let mut out = String::new();
    let places = ["name: mesh", "name: own, namespace: n0", "name: own, namespace: n1"];
    for (i, place) in places.into_iter().enumerate() {
        let default = world.denies[i].map(|denies| {
            if denies {
                "accessDefault: deny"
            } else {
                "accessDefault: allow"
            }
        });
        let audit = world.audits[i].map(|audit| {
            if audit {
                "enforcement: audit"
            } else {
                "enforcement: enforce"
            }
        });
        let spec: Vec<&str> = default.into_iter().chain(audit).collect();
        if !spec.is_empty() {
            let _ = writeln!(
                out,
                "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {{{place}}}\nspec: {{{}}}\n---",
                spec.join(", ")
            );
        }
    }
    for (n, namespace) in NAMESPACES.iter().enumerate() {
        for a in (0..ACCOUNTS).filter(|a| world.unseen[n][*a]) {
            let _ = writeln!(
                out,
                "apiVersion: weft.mesh/v1alpha1\nkind: ServicePolicy\n\
                 metadata: {{name: a{a}, namespace: {namespace}}}\nspec: {{service: a{a}, l7: {{mode: none}}}}\n---"
            );
        }
        for r in 0..ROUTES {
            if let Some(matches) = &world.http[n][r] {
                let _ = writeln!(
                    out,
                    "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\n\
                     metadata: {{name: r{r}, namespace: {namespace}}}\nspec:\n  matches:"
                );
                for (i, found) in matches.iter().enumerate() {
                    let _ = writeln!(out, "    - name: m{i}");
                    if let Some(method) = found.method {
                        let _ = writeln!(out, "      methods: [{}]", METHODS[method]);
                    }
                    if let Some(pattern) = found.pattern {
                        let _ = writeln!(out, "      pathRegex: {}", PATTERNS[pattern]);
                    }
                }
                out.push_str("---\n");
            }
            for (kind, route) in [("TCPRoute", &world.tcp[n][r]), ("UDPRoute", &world.udp[n][r])] {
                if let Some(ports) = route {
                    let _ = writeln!(
                        out,
                        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: {kind}\n\
                         metadata: {{name: r{r}, namespace: {namespace}}}\nspec: {{matches: {{ports: {ports:?}}}}}\n---"
                    );
                }
            }
        }
    }
    for (i, target) in world.targets.iter().enumerate() {
        let _ = writeln!(
            out,
            "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
             metadata: {{name: t{i}, namespace: {}, annotations: {{weft.mesh/audit: \"{}\"}}}}\nspec:\n  \
             destination: {{kind: ServiceAccount, name: a{}}}\n  sources:",
            NAMESPACES[target.namespace], target.audit, target.destination
        );
        for (n, a) in &target.sources {
            let _ = writeln!(
                out,
                "    - {{kind: ServiceAccount, name: a{a}, namespace: {}}}",
                NAMESPACES[*n]
            );
        }
        out.push_str("  rules:\n");
        for rule in &target.rules {
            let _ = match rule {
                Rule::Http(group, names) => {
                    let names: Vec<String> = names.iter().map(|i| format!("m{i}")).collect();
                    let matches = if names.is_empty() {
                        String::new()
                    } else {
                        format!(", matches: [{}]", names.join(", "))
                    };
                    writeln!(out, "    - {{kind: HTTPRouteGroup, name: r{group}{matches}}}")
                }
                Rule::Tcp(route) => writeln!(out, "    - {{kind: TCPRoute, name: r{route}}}"),
                Rule::Udp(route) => writeln!(out, "    - {{kind: UDPRoute, name: r{route}}}"),
            };
        }
        out.push_str("---\n");
    }
    out
}

fn snapshot(world: &World) -> Snapshot {
    let mut store = Store::default();
    let found = store.apply_file("world", yaml(world).as_bytes());
    assert!(!found.iter().any(Diagnostic::is_error), "{found:?}\n{}", yaml(world));
    let mut workloads = Vec::new();
    for namespace in NAMESPACES {
        for a in 0..ACCOUNTS {
            let ports: Vec<String> = PORTS
                .iter()
                .map(|port| format!("port={port}:{}", target_port(a, *port)))
                .collect();
            let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
            workloads.push(support::workload(
                &format!("{namespace}/a{a}/1"),
                &ports,
                workloads.len() as u64,
            ));
        }
    }
    support::compile_with(&store, &workloads, &mut Allocations::default()).snapshot
}

fn identity(snapshot: &Snapshot, n: usize, a: usize) -> Identity {
    snapshot.identities[&Account {
        namespace: NAMESPACES[n].to_owned(),
        name: format!("a{a}"),
    }]
}

// --- as a naive judge reads it ---

struct Call {
    source: (usize, usize),
    destination: (usize, usize),
    protocol: Protocol,
    target_port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Request(usize, usize);

impl HttpRequestView for Request {
    fn method(&self) -> &str {
        METHODS[self.0]
    }

    fn path(&self) -> &str {
        PATHS[self.1]
    }

    fn each_value(&self, _: &str, _: &mut dyn FnMut(Option<&str>)) {}
}

impl World {
    fn denies(&self, namespace: usize) -> bool {
        self.denies[namespace + 1].or(self.denies[0]).unwrap_or(false)
    }

    fn audits(&self, namespace: usize) -> bool {
        self.audits[namespace + 1].or(self.audits[0]).unwrap_or(false)
    }

    /// Whether this target allows the call; `request`: `None` where it is not known yet.
    fn allows(&self, target: &Target, call: &Call, request: Option<Request>) -> bool {
        let (n, a) = call.destination;
        if (target.namespace, target.destination) != (n, a) || !target.sources.contains(&call.source) {
            return false;
        }
        let served = PORTS.iter().any(|port| target_port(a, *port) == call.target_port);
        if call.protocol == Protocol::Tcp && Self::is_about_requests(target) && self.unseen[n][a] && served {
            return false;
        }
        let mut speaks_tcp = false;
        let mut tcp = Vec::new();
        let mut speaks_http = false;
        let mut http = false;
        let mut udp = Vec::new();
        for rule in &target.rules {
            match rule {
                Rule::Tcp(route) => {
                    speaks_tcp = true;
                    tcp.extend(
                        self.tcp[n][*route]
                            .as_ref()
                            .map(|ports| port_allowed(ports, a, call.target_port)),
                    );
                }
                Rule::Udp(route) => {
                    udp.extend(
                        self.udp[n][*route]
                            .as_ref()
                            .map(|ports| port_allowed(ports, a, call.target_port)),
                    );
                }
                Rule::Http(group, names) => {
                    speaks_http = true;
                    let Some(matches) = &self.http[n][*group] else { continue };
                    for (i, found) in matches.iter().enumerate() {
                        http |= (names.is_empty() || names.contains(&i)) && request.is_none_or(|r| matched(found, r));
                    }
                }
            }
        }
        match call.protocol {
            Protocol::Udp => udp.contains(&true),
            Protocol::Tcp => {
                (speaks_tcp || speaks_http) && (!speaks_tcp || tcp.contains(&true)) && (!speaks_http || http)
            }
        }
    }

    fn is_about_requests(target: &Target) -> bool {
        target.rules.iter().any(|rule| matches!(rule, Rule::Http(..)))
    }

    fn connection(&self, call: &Call) -> Verdict {
        if !self.denies(call.destination.0) {
            return Verdict::Allow;
        }
        let possible: Vec<&Target> = self.targets.iter().filter(|t| self.allows(t, call, None)).collect();
        if possible
            .iter()
            .any(|t| call.protocol == Protocol::Udp || !Self::is_about_requests(t))
        {
            Verdict::Allow
        } else if possible.is_empty() {
            self.denial(call)
        } else {
            Verdict::NeedsHttp
        }
    }

    fn request(&self, call: &Call, request: Request) -> Verdict {
        let allowed =
            !self.denies(call.destination.0) || self.targets.iter().any(|t| self.allows(t, call, Some(request)));
        if allowed { Verdict::Allow } else { self.mismatch(call) }
    }

    /// A connection that carries no HTTP.
    fn opaque(&self, call: &Call) -> Verdict {
        match self.connection(call) {
            Verdict::NeedsHttp => self.mismatch(call),
            decided => decided,
        }
    }

    /// No target allows what is sent, whichever speak of it.
    fn mismatch(&self, call: &Call) -> Verdict {
        let speaking: Vec<&Target> = self.targets.iter().filter(|t| self.allows(t, call, None)).collect();
        if !speaking.is_empty() && speaking.iter().all(|target| target.audit) {
            Verdict::Audit
        } else {
            self.denial(call)
        }
    }

    fn denial(&self, call: &Call) -> Verdict {
        if self.audits(call.destination.0) {
            Verdict::Audit
        } else {
            Verdict::Deny
        }
    }
}

fn port_allowed(ports: &[u16], account: usize, target: u16) -> bool {
    ports.is_empty()
        || ports.contains(&target)
        || PORTS
            .iter()
            .any(|port| ports.contains(port) && target_port(account, *port) == target)
}

fn matched(found: &Match, request: Request) -> bool {
    let path = PATHS[request.1];
    found.method.is_none_or(|method| method == request.0)
        && match found.pattern {
            None => true,
            Some(0) => path.starts_with("/a"),
            Some(1) => path.starts_with("/a/"),
            Some(_) => path.starts_with("/b"),
        }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_policies_agree_with_a_naive_judge(world in world()) {
        let snapshot = snapshot(&world);
        let everybody: Vec<(usize, usize)> = (0..2).flat_map(|n| (0..ACCOUNTS).map(move |a| (n, a))).collect();
        for destination in &everybody {
            for source in &everybody {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    for target_port in [8080, 8090, 8091, 1, 2] {
                        let call = Call { source: *source, destination: *destination, protocol, target_port };
                        check(&world, &snapshot, &call)?;
                    }
                }
            }
        }
    }

    /// An allocation that was written down and read again gives the same snapshot, rule numbers included.
    #[test]
    fn compiling_again_gives_the_same_numbers(world in world()) {
        let mut store = Store::default();
        store.apply_file("world", yaml(&world).as_bytes());
        let workloads = [support::workload("n0/a0/1", &["port=80:8080"], 1)];
        let mut allocations = Allocations::default();
        let first = support::compile_with(&store, &workloads, &mut allocations).snapshot;
        let mut read: Allocations = serde_json::from_str(&serde_json::to_string(&allocations).unwrap()).unwrap();
        let again = support::compile_with(&store, &workloads, &mut read).snapshot;
        prop_assert_eq!(&read, &allocations);
        prop_assert_eq!(first.rules, again.rules);
        prop_assert_eq!(first.identities, again.identities);
        let ips = |s: &std::collections::HashMap<std::net::IpAddr, weft_policy::ServiceName>| {
            s.iter().map(|(ip, name)| (*ip, name.clone())).collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(ips(&first.by_vip), ips(&again.by_vip));
        let ids: BTreeSet<u32> = first.services.values().flat_map(|s| s.ports.iter().map(|p| p.id)).collect();
        let ids_again: BTreeSet<u32> = again.services.values().flat_map(|s| s.ports.iter().map(|p| p.id)).collect();
        prop_assert_eq!(ids, ids_again);
    }
}

fn check(world: &World, snapshot: &Snapshot, call: &Call) -> Result<(), TestCaseError> {
    let source = identity(snapshot, call.source.0, call.source.1);
    let destination = identity(snapshot, call.destination.0, call.destination.1);
    let found = snapshot.authorize_connection(source, destination, call.protocol, call.target_port);
    prop_assert_eq!(
        found.verdict,
        world.connection(call),
        "{:?} -> {:?}\n{}",
        call.source,
        call.destination,
        yaml(world)
    );
    let kind = found
        .rule
        .and_then(|rule| snapshot.rule(rule))
        .map(|object| &*object.kind);
    let expected = match found.verdict {
        Verdict::Allow if world.denies(call.destination.0) => "TrafficTarget",
        Verdict::NeedsHttp => "TrafficTarget",
        _ => "MeshConfig",
    };
    prop_assert_eq!(kind, Some(expected));
    if call.protocol == Protocol::Udp {
        return Ok(());
    }
    let opaque = snapshot.authorize_opaque(source, destination, call.target_port).verdict;
    prop_assert_eq!(opaque, world.opaque(call), "{}", yaml(world));
    let all = snapshot.authorize_all_requests(source, destination, call.target_port);
    prop_assert!(all.is_some() || snapshot.wants_requests(source, destination, call.target_port));
    for request in (0..METHODS.len()).flat_map(|m| (0..PATHS.len()).map(move |p| Request(m, p))) {
        let found = snapshot.authorize_request(source, destination, call.target_port, &request);
        prop_assert!(all.is_none_or(|all| all == found), "{:?} {:?}", all, found);
        let found = found.verdict;
        prop_assert_eq!(found, world.request(call, request), "{:?}\n{}", request, yaml(world));
        // What the kernel decides by itself, the proxy would decide the same way.
        match world.connection(call) {
            Verdict::NeedsHttp => {}
            decided => prop_assert_eq!(found, decided),
        }
    }
    Ok(())
}
