//! The entries, searched as the programs search them, decide as `weft_policy`'s judge does.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use weft_abi::mask_port;
use weft_policy::{AccessRule, ClassPolicy, Identity, Network, ObjectRef, RuleId, Shared, Verdict};

use super::*;
use crate::tables::Tables;

/// Known ones, and one that nothing speaks of.
const IDENTITIES: [u32; 6] = [
    identity::UNKNOWN,
    identity::UNKNOWN_LOCAL,
    identity::OUTSIDE,
    256,
    257,
    300,
];
const PORTS: [u16; 9] = [1, 79, 80, 81, 443, 1024, 8080, 8081, 65535];
/// Numbers of rules that are no default's.
const ALLOWS: std::ops::Range<u32> = 100..200;

#[derive(Debug, Clone, Copy)]
struct Call {
    source: u32,
    destination: u32,
    protocol: Protocol,
    port: u16,
}

struct Table {
    entries: Entries,
    port_prefixes: u32,
}

// === the programs' search: ebpf/programs/src/verdict.rs ===

/// For each port prefix length in use the entry for this peer and the one for any; the highest rank; else the default; else
/// allowed.
fn search(table: &Table, direction: u8, subject: u32, peer: u32, call: Call) -> PolicyValue {
    let mut best = PolicyValue::default();
    for prefix in (0..=16).filter(|prefix| table.port_prefixes & 1 << prefix != 0) {
        for peer in [peer, ANY_IDENTITY] {
            let key = PolicyKey {
                subject,
                peer,
                port: mask_port(call.port, prefix),
                prefix,
                protocol: protocol_number(call.protocol),
                direction,
                ..PolicyKey::default()
            };
            best = table
                .entries
                .get(&key)
                .copied()
                .filter(|found| found.rank > best.rank)
                .unwrap_or(best);
        }
    }
    if best.rank > 0 {
        return best;
    }
    let key = PolicyKey {
        subject,
        peer: ANY_IDENTITY,
        direction,
        ..PolicyKey::default()
    };
    let allowed = PolicyValue::new(0, action::ALLOW, 0, false);
    table.entries.get(&key).copied().unwrap_or(allowed)
}

/// Access AND network.
fn judge(table: &Table, call: Call) -> PolicyValue {
    let (source, destination) = (call.source, call.destination);
    let access = search(table, direction::INGRESS, destination, source, call);
    if access.action() == action::DENY {
        return access;
    }
    let egress = search(table, direction::NET_EGRESS, source, destination, call);
    if egress.action() == action::DENY {
        return egress;
    }
    let ingress = search(table, direction::NET_INGRESS, destination, source, call);
    let plainly = access.action() == action::ALLOW;
    if ingress.action() == action::DENY || plainly && ingress.action() == action::AUDIT {
        return ingress;
    }
    if plainly && egress.action() == action::AUDIT {
        return egress;
    }
    access
}

fn verdict(action: u8) -> Verdict {
    match action {
        action::ALLOW => Verdict::Allow,
        action::REDIRECT => Verdict::NeedsHttp,
        action::AUDIT => Verdict::Audit,
        action::DENY => Verdict::Deny,
        other => panic!("action {other}"),
    }
}

// === random policies ===

fn subset(of: &'static [u32]) -> impl Strategy<Value = BTreeSet<u32>> {
    prop::sample::subsequence(of, 0..=of.len()).prop_map(|found| found.into_iter().collect())
}

fn protocol_() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp])
}

fn access_rule() -> impl Strategy<Value = AccessRule> {
    let ports = prop::option::of(prop::sample::subsequence(&PORTS, 0..3));
    (
        ALLOWS,
        subset(&IDENTITIES),
        protocol_(),
        ports,
        prop::sample::subsequence(&PORTS, 0..3),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(rule, sources, protocol, ports, except, http, audit)| AccessRule {
            rule: RuleId(rule),
            object: ObjectRef {
                kind: "TrafficTarget".into(),
                namespace: None,
                name: rule.to_string(),
            },
            audit,
            sources: sources.into_iter().map(Identity).collect(),
            protocol,
            ports: ports.map(|ports| ports.into_iter().collect()),
            except: except.into_iter().collect(),
            http: (http && protocol == Protocol::Tcp).then(Vec::new),
        })
}

fn access_policy() -> impl Strategy<Value = AccessPolicy> {
    let rules = prop::collection::vec(access_rule(), 0..4);
    (any::<bool>(), any::<bool>(), rules).prop_map(|(deny, audit, rules)| AccessPolicy {
        default: if deny {
            AccessDefault::Deny
        } else {
            AccessDefault::Allow
        },
        default_rule: RuleId(1),
        audit,
        allow: if deny { rules } else { Vec::new() },
    })
}

fn range() -> impl Strategy<Value = RangeInclusive<u16>> {
    let end = prop_oneof![prop::sample::select(PORTS.to_vec()), any::<u16>()];
    (end.clone(), end).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn network_allow() -> impl Strategy<Value = NetworkAllow> {
    let peers = prop::option::of(subset(&IDENTITIES));
    let ports = prop::option::of(prop::collection::vec(range(), 1..3));
    (ALLOWS, peers, prop::option::of(protocol_()), ports).prop_map(|(rule, peers, protocol, ports)| NetworkAllow {
        rule: RuleId(rule),
        peers: peers.map(|peers| Arc::new(peers.into_iter().map(Class).collect())),
        protocol,
        ports,
    })
}

fn isolation(default_rule: u32) -> impl Strategy<Value = Option<Isolation>> {
    let allow = prop::collection::vec(network_allow(), 0..3);
    prop::option::of((any::<bool>(), allow).prop_map(move |(audit, allow)| Isolation {
        default_rule: RuleId(default_rule),
        audit,
        allow,
    }))
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let access = prop::collection::hash_map(prop::sample::select(vec![256, 257]), access_policy(), 0..3);
    let outbound = prop::option::of((any::<bool>(), any::<bool>()));
    let class = (isolation(2), isolation(3)).prop_map(|(ingress, egress)| ClassPolicy { ingress, egress });
    let network = prop::collection::hash_map(prop::sample::select(vec![256, 257]), class, 0..3);
    (access, outbound, network).prop_map(|(access, outbound, network)| Snapshot {
        access: access
            .into_iter()
            .map(|(id, policy)| (Identity(id), Arc::new(policy)))
            .collect(),
        outbound_default: outbound.map(|(deny, _)| {
            let default = if deny {
                AccessDefault::Deny
            } else {
                AccessDefault::Allow
            };
            (default, RuleId(4))
        }),
        outbound_audit: outbound.is_some_and(|(_, audit)| audit),
        network: Shared::from(Network {
            isolation: network
                .into_iter()
                .map(|(class, policy)| (Class(class), policy))
                .collect(),
            ranges: Vec::new(),
        }),
        ..Snapshot::default()
    })
}

fn calls(more: u16) -> impl Iterator<Item = Call> {
    IDENTITIES.into_iter().flat_map(move |source| {
        IDENTITIES.into_iter().flat_map(move |destination| {
            [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(move |protocol| {
                PORTS.into_iter().chain([more]).map(move |port| Call {
                    source,
                    destination,
                    protocol,
                    port,
                })
            })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_decide_as_the_judge_does(snapshot in snapshot(), port: u16) {
        let tables = Tables { policy: entries(&snapshot), ..Tables::default() };
        let table = Table { port_prefixes: tables.port_prefixes(), entries: tables.policy };
        for call in calls(port) {
            let Call { source, destination, protocol, port } = call;
            let found = judge(&table, call);
            let mut access = snapshot.authorize_connection(Identity(source), Identity(destination), protocol, port);
            let wanted = snapshot.wants_requests(Identity(source), Identity(destination), port);
            if access.verdict == Verdict::Allow && protocol == Protocol::Tcp && wanted {
                // Redirect goes before allow: what one rule allows and another wants to see visits the proxy, which allows it.
                access.verdict = Verdict::NeedsHttp;
            }
            let network = snapshot.authorize_network(Class(source), Class(destination), protocol, port);
            let judged = network.and(access);
            prop_assert_eq!(verdict(found.action()), judged.verdict, "{:?}", call);
            if matches!(judged.verdict, Verdict::Deny | Verdict::Audit) {
                prop_assert_eq!(Some(RuleId(found.rule)), judged.rule, "{:?}", call);
            }
        }
    }

    #[test]
    fn prefixes_have_the_ports_of_their_range_and_no_other(range in range(), port: u16) {
        let blocks = prefixes(&range);
        prop_assert!(blocks.len() <= 30);
        let near = [*range.start(), *range.end(), range.start().wrapping_sub(1), range.end().wrapping_add(1)];
        for port in near.into_iter().chain([port]) {
            let having = blocks.iter().filter(|(first, prefix)| mask_port(port, *prefix) == *first).count();
            prop_assert_eq!(having, usize::from(range.contains(&port)), "{} in {:?}", port, blocks);
        }
        prop_assert!(blocks.iter().all(|(first, prefix)| mask_port(*first, *prefix) == *first));
    }
}

#[test]
fn a_range_is_as_few_blocks_as_there_can_be() {
    for (range, expect) in [
        (80..=80, vec![(80, 16)]),
        (0..=65535, vec![(0, 0)]),
        (
            1024..=65535,
            vec![(1024, 6), (2048, 5), (4096, 4), (8192, 3), (16384, 2), (32768, 1)],
        ),
        (6000..=6010, vec![(6000, 13), (6008, 15), (6010, 16)]),
    ] {
        assert_eq!(prefixes(&range), expect, "{range:?}");
    }
    assert_eq!(prefixes(&(1..=65534)).len(), 30);
}

#[test]
fn every_port_but_some_is_held_by_exactly_one_block() {
    for except in [vec![], vec![0], vec![65535], vec![8080], vec![80, 8080, 8081, 40000]] {
        let except = BTreeSet::from_iter(except);
        let blocks = every_port_but(&except);
        assert!(blocks.len() <= 16 * except.len().max(1), "{except:?}: {blocks:?}");
        for port in 0..=u16::MAX {
            let holds = |(first, length): &&(u16, u8)| mask_port(port, *length) == *first;
            let held = blocks.iter().filter(holds).count();
            assert_eq!(held, usize::from(!except.contains(&port)), "{except:?}: port {port}");
        }
    }
}

#[test]
fn who_may_go_to_a_guarded_port_goes_there_through_the_proxy_and_nobody_else_does() {
    let rule = |rule, source, protocol, ports: Option<&[u16]>| AccessRule {
        rule: RuleId(rule),
        object: ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: None,
            name: rule.to_string(),
        },
        audit: false,
        sources: BTreeSet::from([Identity(source)]),
        protocol,
        ports: ports.map(|ports| ports.iter().copied().collect()),
        except: BTreeSet::new(),
        http: None,
    };
    let policy = |default, allow| {
        let policy = AccessPolicy {
            default,
            default_rule: RuleId(1),
            audit: false,
            allow,
        };
        Arc::new(policy)
    };
    let rules = vec![
        rule(100, 300, Protocol::Tcp, None),
        rule(101, 301, Protocol::Tcp, Some(&[8081])),
        rule(102, 302, Protocol::Udp, None),
    ];
    let mut snapshot = Snapshot::default();
    let (open, closed) = (Identity(256), Identity(257));
    snapshot.access.insert(open, policy(AccessDefault::Allow, Vec::new()));
    snapshot.access.insert(closed, policy(AccessDefault::Deny, rules));
    for identity in [open, closed] {
        let name = weft_policy::ServiceName {
            namespace: "default".into(),
            name: "web".into(),
        };
        snapshot.guards.insert((identity, 8080), (name, 0));
    }
    let tables = Tables {
        policy: entries(&snapshot),
        ..Tables::default()
    };
    let table = Table {
        port_prefixes: tables.port_prefixes(),
        entries: tables.policy,
    };
    for (source, destination, protocol, port, expect) in [
        (300, 256, Protocol::Tcp, 8080, (action::REDIRECT, 1)),
        (identity::UNKNOWN, 256, Protocol::Tcp, 8080, (action::REDIRECT, 1)),
        (300, 256, Protocol::Tcp, 8081, (action::ALLOW, 1)),
        (300, 256, Protocol::Udp, 8080, (action::ALLOW, 1)),
        (300, 257, Protocol::Tcp, 8080, (action::REDIRECT, 100)),
        (300, 257, Protocol::Tcp, 8081, (action::ALLOW, 100)),
        (301, 257, Protocol::Tcp, 8080, (action::DENY, 1)),
        (301, 257, Protocol::Tcp, 8081, (action::ALLOW, 101)),
        (302, 257, Protocol::Tcp, 8080, (action::DENY, 1)),
        (302, 257, Protocol::Udp, 8080, (action::ALLOW, 102)),
        (identity::UNKNOWN, 257, Protocol::Tcp, 8080, (action::DENY, 1)),
    ] {
        let call = Call {
            source,
            destination,
            protocol,
            port,
        };
        let found = judge(&table, call);
        assert_eq!((found.action(), found.rule), expect, "{call:?}");
    }
}
