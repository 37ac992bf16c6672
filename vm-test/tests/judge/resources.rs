//! A world as a user writes it. Always the same objects, so that one `weft apply` replaces all of the world before: what a
//! world has fewer of is written so that it says nothing.

use std::fmt::Write as _;

use super::world::{
    ACTORS, HOME, Method, NAMESPACES, Network, OUTSIDER, Peer, Rule, Selector, Target, Transport, World, account,
};

/// Most TrafficTargets of a world.
pub const TARGETS: usize = 4;
/// Most NetworkPolicies.
pub const NETWORKS: usize = 3;

pub fn yaml(world: &World) -> String {
    let mut out = String::new();
    for (place, (denies, audits)) in [
        "name: mesh",
        "name: own, namespace: default",
        "name: own, namespace: other",
    ]
    .iter()
    .zip(world.denies.iter().zip(&world.audits))
    {
        let default = denies.map(|denies| {
            if denies {
                "accessDefault: deny"
            } else {
                "accessDefault: allow"
            }
        });
        let enforcement = audits.map(|audits| {
            if audits {
                "enforcement: audit"
            } else {
                "enforcement: enforce"
            }
        });
        let spec: Vec<&str> = default.into_iter().chain(enforcement).collect();
        object(&mut out, "weft.mesh/v1alpha1", "MeshConfig", place, &spec.join(", "));
    }
    for actor in 0..ACTORS {
        let (name, namespace) = (account(actor), NAMESPACES[HOME[actor]]);
        let l7 = if world.unseen[actor] { ", l7: {mode: none}" } else { "" };
        let place = format!("name: {name}, namespace: {namespace}");
        object(
            &mut out,
            "weft.mesh/v1alpha1",
            "ServicePolicy",
            &place,
            &format!("service: {name}{l7}"),
        );
    }
    for number in 0..TARGETS {
        // An object's namespace is part of its name: the same target in both, one of them about nobody.
        for namespace in 0..NAMESPACES.len() {
            let target = world
                .targets
                .get(number)
                .filter(|target| HOME[target.destination] == namespace);
            write_target(&mut out, number, namespace, target);
        }
    }
    for number in 0..NETWORKS {
        for namespace in 0..NAMESPACES.len() {
            let network = world
                .networks
                .get(number)
                .filter(|network| network.namespace == namespace);
            write_network(&mut out, number, namespace, network);
        }
    }
    out
}

fn object(out: &mut String, api: &str, kind: &str, metadata: &str, spec: &str) {
    let _ = writeln!(
        out,
        "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{{spec}}}"
    );
}

fn write_target(out: &mut String, number: usize, namespace: usize, target: Option<&Target>) {
    let nobody = Target {
        destination: 0,
        sources: Vec::new(),
        tcp: Some(Vec::new()),
        udp: None,
        http: None,
        audit: false,
    };
    let place = format!("name: r{number}, namespace: {}", NAMESPACES[namespace]);
    let target_or = target.unwrap_or(&nobody);
    for (kind, ports) in [("TCPRoute", &target_or.tcp), ("UDPRoute", &target_or.udp)] {
        let ports = ports.as_deref().unwrap_or_default();
        object(
            out,
            "specs.smi-spec.io/v1alpha4",
            kind,
            &place,
            &format!("matches: {{ports: {ports:?}}}"),
        );
    }
    let methods: Vec<&str> = target_or.http.iter().flatten().map(|method| word(*method)).collect();
    let methods = if methods.is_empty() {
        "'*'".to_owned()
    } else {
        methods.join(", ")
    };
    let matches = format!("matches: [{{name: m, methods: [{methods}]}}]");
    object(out, "specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", &place, &matches);

    let kinds = [
        ("TCPRoute", target_or.tcp.is_some()),
        ("UDPRoute", target_or.udp.is_some()),
        ("HTTPRouteGroup", target_or.http.is_some()),
    ];
    let rules: Vec<String> = kinds
        .iter()
        .filter(|(_, has)| *has)
        .map(|(kind, _)| format!("{{kind: {kind}, name: r{number}}}"))
        .collect();
    // A target without rules is about nobody, as one that a world does not have.
    let about = target.filter(|_| !rules.is_empty());
    let rules = if rules.is_empty() {
        format!("{{kind: TCPRoute, name: r{number}}}")
    } else {
        rules.join(", ")
    };
    let subject =
        |name: &str, namespace: &str| format!("{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}");
    let sources = match about {
        None => subject("nobody", NAMESPACES[namespace]),
        Some(target) => {
            let sources = target.sources.iter();
            let sources: Vec<String> = sources.map(|s| subject(&account(*s), NAMESPACES[HOME[*s]])).collect();
            sources.join(", ")
        }
    };
    let destination = about.map_or_else(|| "nobody".to_owned(), |target| account(target.destination));
    let place = format!("{place}, annotations: {{weft.mesh/audit: '{}'}}", target_or.audit);
    let spec = format!(
        "destination: {}, sources: [{sources}], rules: [{rules}]",
        subject(&destination, NAMESPACES[namespace])
    );
    object(out, "access.smi-spec.io/v1alpha3", "TrafficTarget", &place, &spec);
}

fn write_network(out: &mut String, number: usize, namespace: usize, network: Option<&Network>) {
    let place = format!("name: n{number}, namespace: {}", NAMESPACES[namespace]);
    let Some(network) = network else {
        object(
            out,
            "networking.k8s.io/v1",
            "NetworkPolicy",
            &place,
            "podSelector: {matchLabels: {no: body}}",
        );
        return;
    };
    let place = format!("{place}, annotations: {{weft.mesh/audit: '{}'}}", network.audit);
    let mut spec = format!("podSelector: {}", selector(network.pods));
    let types: Vec<&str> = ["Ingress", "Egress"]
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| network.types & (1 << bit) != 0)
        .map(|(_, name)| name)
        .collect();
    if !types.is_empty() {
        let _ = write!(spec, ", policyTypes: [{}]", types.join(", "));
    }
    for (field, side, rules) in [("ingress", "from", &network.ingress), ("egress", "to", &network.egress)] {
        let rules: Vec<String> = rules.iter().map(|rule| rule_yaml(rule, side)).collect();
        if !rules.is_empty() {
            let _ = write!(spec, ", {field}: [{}]", rules.join(", "));
        }
    }
    object(out, "networking.k8s.io/v1", "NetworkPolicy", &place, &spec);
}

fn rule_yaml(rule: &Rule, side: &str) -> String {
    let peers: Vec<String> = rule
        .peers
        .iter()
        .map(|peer| match peer {
            Peer::Pods(pods) => format!("{{podSelector: {}}}", selector(*pods)),
            Peer::Namespace(namespace, pods) => {
                let name = NAMESPACES[*namespace];
                let namespace = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}");
                match pods {
                    None => format!("{{{namespace}}}"),
                    pods => format!("{{{namespace}, podSelector: {}}}", selector(*pods)),
                }
            }
            Peer::Block => "{ipBlock: {cidr: 127.0.0.0/8}}".to_owned(),
        })
        .collect();
    let ports: Vec<String> = rule
        .ports
        .iter()
        .map(|(transport, range)| {
            let protocol = match transport {
                Transport::Tcp => "TCP",
                Transport::Udp => "UDP",
            };
            match range {
                None => format!("{{protocol: {protocol}}}"),
                Some(range) => {
                    format!(
                        "{{protocol: {protocol}, port: {}, endPort: {}}}",
                        range.start(),
                        range.end()
                    )
                }
            }
        })
        .collect();
    let fields = [(side, peers), ("ports", ports)];
    let fields: Vec<String> = fields
        .iter()
        .filter(|(_, items)| !items.is_empty())
        .map(|(name, items)| format!("{name}: [{}]", items.join(", ")))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

fn selector(pods: Selector) -> String {
    match pods {
        None => "{}".to_owned(),
        Some((key, value)) => format!("{{matchLabels: {{{key}: {value}}}}}"),
    }
}

pub fn word(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
    }
}

/// How people call it.
pub fn name(actor: usize) -> String {
    if actor == OUTSIDER {
        "the outsider".to_owned()
    } else {
        account(actor)
    }
}
