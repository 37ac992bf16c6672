//! The canary of `weft doctor` as entries of the tables: who it is, where its servers are, what it may.
//!
//! A few entries under numbers and addresses of its own, in every publication. They cost nobody else anything: no program looks
//! further for them than for what the mesh has anyway.

use std::{collections::HashMap, net::IpAddr};

use weft_abi::{
    ANY_IDENTITY, Addr, Backend, BackendKey, Dest, DestKey, PolicyKey, PolicyValue, Workload, action, class, dest_kind,
    direction, mask_port, protocol,
};

use super::{Tables, services::addr};
use crate::canary::{ALLOWED, CLIENT, Cgroups, DENIED, Server, VIP4, VIP6};

const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];

/// Its three workloads.
pub fn enrol(cgroups: Cgroups, workloads: &mut HashMap<u64, Workload>) {
    for (cgroup, identity) in cgroups.identities() {
        let entry = Workload {
            identity,
            // No network policy speaks of it.
            class: class::NONE,
            ..Workload::default()
        };
        workloads.insert(cgroup, entry);
    }
}

/// After all others, for it adds a rule only where they have some.
pub fn fill(tables: &mut Tables) {
    for server in [ALLOWED, DENIED] {
        add_service(&server, tables);
    }
    add_default(&DENIED, action::DENY, tables);
    // The shortest port prefix that rules of the mesh have, so that nobody looks for one more.
    let in_use = tables.port_prefixes();
    let Some(prefix) = (0..=16u8).find(|bits| in_use & (1u32 << *bits) != 0) else {
        return add_default(&ALLOWED, action::ALLOW, tables);
    };
    add_default(&ALLOWED, action::DENY, tables);
    for protocol in PROTOCOLS {
        let key = PolicyKey {
            subject: ALLOWED.identity,
            peer: CLIENT,
            port: mask_port(ALLOWED.target, prefix),
            prefix,
            protocol,
            direction: direction::INGRESS,
            ..PolicyKey::default()
        };
        let value = PolicyValue::new(0, action::ALLOW, prefix, true);
        tables.policy.insert(key, value);
    }
}

fn add_default(server: &Server, action: u8, tables: &mut Tables) {
    let key = PolicyKey {
        subject: server.identity,
        peer: ANY_IDENTITY,
        direction: direction::INGRESS,
        ..PolicyKey::default()
    };
    tables.policy.insert(key, PolicyValue::new(0, action, 0, false));
}

fn add_service(server: &Server, tables: &mut Tables) {
    for (set, host) in server.sets.into_iter().zip([Addr::LOCALHOST_V4, Addr::LOCALHOST_V6]) {
        let backend = Backend {
            addr: host,
            port_be: server.target.to_be(),
            identity: server.identity,
            threshold: u32::MAX,
            ..Backend::default()
        };
        tables.backends.insert(BackendKey { set, slot: 0 }, backend);
    }
    let [set4, set6] = server.sets;
    let dest = Dest {
        identity: server.identity,
        set4,
        count4: 1,
        set6,
        count6: 1,
        kind: dest_kind::SERVICE,
        ..Dest::default()
    };
    for vip in [IpAddr::V4(VIP4), IpAddr::V6(VIP6)] {
        for protocol in PROTOCOLS {
            let key = DestKey {
                addr: addr(vip),
                port_be: server.port.to_be(),
                protocol,
                pad: 0,
            };
            tables.dests.insert(key, dest);
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::rank;

    use super::*;

    fn filled(policy: &[PolicyKey]) -> Tables {
        let allow = PolicyValue::new(7, action::ALLOW, 0, false);
        let mut tables = Tables {
            policy: policy.iter().map(|key| (*key, allow)).collect(),
            ..Tables::default()
        };
        fill(&mut tables);
        tables
    }

    fn rule(port: u16, prefix: u8) -> PolicyKey {
        PolicyKey {
            subject: 256,
            peer: 257,
            port,
            prefix,
            protocol: protocol::TCP,
            ..PolicyKey::default()
        }
    }

    fn ranks_of(tables: &Tables, server: &Server) -> Vec<(u32, u32)> {
        let entries = tables.policy.iter().filter(|(key, _)| key.subject == server.identity);
        let mut found: Vec<_> = entries.map(|(key, value)| (key.peer, value.rank)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn it_makes_nobody_look_further() {
        for policy in [vec![], vec![rule(0, 0), rule(8080, 16)], vec![rule(8080, 16)]] {
            let tables = filled(&policy);
            let own = policy.iter().fold(0u32, |bits, key| bits | 1u32 << key.prefix);
            assert_eq!((tables.port_prefixes(), tables.network()), (own, false), "{policy:?}");
        }
    }

    #[test]
    fn the_allowed_server_has_a_rule_where_the_mesh_has_some_and_the_denied_one_never() {
        let (deny, allow) = (rank(action::DENY, 0, false), rank(action::ALLOW, 0, false));
        let none = filled(&[]);
        assert_eq!(ranks_of(&none, &ALLOWED), [(ANY_IDENTITY, allow)]);
        let some = filled(&[rule(8080, 16)]);
        let exact = (CLIENT, rank(action::ALLOW, 16, true));
        // For TCP and for UDP.
        assert_eq!(ranks_of(&some, &ALLOWED), [exact, exact, (ANY_IDENTITY, deny)]);
        for tables in [&none, &some] {
            assert_eq!(ranks_of(tables, &DENIED), [(ANY_IDENTITY, deny)]);
        }
    }
}
