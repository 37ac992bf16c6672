//! Access policy and network policy as entries of `weft_policy`.
//!
//! Both dimensions have the same shape and are told apart by [`direction`]: access by identity (`INGRESS`), the network by
//! class, at the destination's end (`NET_INGRESS`) and at the source's (`NET_EGRESS`). Each is searched by itself; the
//! programs let through what all of them let through.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
};

use weft_abi::{ANY_IDENTITY, PolicyKey, PolicyValue, action, direction, identity, protocol};
use weft_policy::{AccessDefault, AccessPolicy, Class, Isolation, NetworkAllow, Protocol, Snapshot};

type Entries = HashMap<PolicyKey, PolicyValue>;

/// Every subject's default, and one entry a rule, peer and port prefix.
pub fn entries(snapshot: &Snapshot) -> Entries {
    let mut entries = HashMap::new();
    if let Some((default, rule)) = snapshot.outbound_default {
        for subject in [identity::OUTSIDE, identity::UNKNOWN_LOCAL] {
            let action = default_action(default, snapshot.outbound_audit);
            add_default(&mut entries, subject, direction::INGRESS, rule.0, action);
        }
    }
    for (identity, policy) in &snapshot.access {
        add_access(&mut entries, identity.0, policy);
        let guarded = snapshot.guards.range((*identity, 0)..=(*identity, u16::MAX));
        for ((_, port), _) in guarded {
            add_guard(&mut entries, identity.0, policy, *port);
        }
    }
    for (class, policy) in &snapshot.network.isolation {
        let directions = [
            (direction::NET_INGRESS, &policy.ingress),
            (direction::NET_EGRESS, &policy.egress),
        ];
        for (direction, isolation) in directions {
            if let Some(isolation) = isolation {
                add_network(&mut entries, *class, direction, isolation);
            }
        }
    }
    entries
}

fn add_access(entries: &mut Entries, subject: u32, policy: &AccessPolicy) {
    let default = default_action(policy.default, policy.audit);
    add_default(entries, subject, direction::INGRESS, policy.default_rule.0, default);
    for rule in &policy.allow {
        let action = if rule.http.is_some() {
            action::REDIRECT
        } else {
            action::ALLOW
        };
        for source in &rule.sources {
            let key = PolicyKey {
                subject,
                peer: source.0,
                protocol: protocol_number(rule.protocol),
                direction: direction::INGRESS,
                ..PolicyKey::default()
            };
            match &rule.ports {
                None => {
                    for (port, prefix) in every_port_but(&rule.except) {
                        add(entries, PolicyKey { port, prefix, ..key }, rule.rule.0, action);
                    }
                }
                Some(ports) => {
                    for port in ports.difference(&rule.except) {
                        let key = PolicyKey {
                            port: *port,
                            prefix: 16,
                            ..key
                        };
                        add(entries, key, rule.rule.0, action);
                    }
                }
            }
        }
    }
}

/// Adapters look at what is connected to at this port: who may go there goes there through the proxy. By number and port, as
/// access is, so that no address of a server and no side of a connection is a way around them.
fn add_guard(entries: &mut Entries, subject: u32, policy: &AccessPolicy, port: u16) {
    let key = PolicyKey {
        subject,
        peer: ANY_IDENTITY,
        port,
        prefix: 16,
        protocol: protocol::TCP,
        direction: direction::INGRESS,
        ..PolicyKey::default()
    };
    if default_action(policy.default, policy.audit) != action::DENY {
        add(entries, key, policy.default_rule.0, action::REDIRECT);
    }
    for rule in policy.allow.iter().filter(|rule| rule.protocol == Protocol::Tcp) {
        if rule.except.contains(&port) || rule.ports.as_ref().is_some_and(|ports| !ports.contains(&port)) {
            continue;
        }
        for source in &rule.sources {
            let key = PolicyKey { peer: source.0, ..key };
            add(entries, key, rule.rule.0, action::REDIRECT);
        }
    }
}

fn add_network(entries: &mut Entries, subject: Class, direction: u8, isolation: &Isolation) {
    let default = if isolation.audit { action::AUDIT } else { action::DENY };
    add_default(entries, subject.0, direction, isolation.default_rule.0, default);
    for allow in &isolation.allow {
        let prefixes: Vec<(u16, u8)> = match &allow.ports {
            None => vec![(0, 0)],
            Some(ranges) => ranges.iter().flat_map(prefixes).collect(),
        };
        for peer in peers(allow) {
            for protocol in protocols(allow) {
                for (port, prefix) in &prefixes {
                    let key = PolicyKey {
                        subject: subject.0,
                        peer,
                        port: *port,
                        prefix: *prefix,
                        protocol: protocol_number(protocol),
                        direction,
                        ..PolicyKey::default()
                    };
                    add(entries, key, allow.rule.0, action::ALLOW);
                }
            }
        }
    }
}

fn peers(allow: &NetworkAllow) -> Vec<u32> {
    match &allow.peers {
        None => vec![ANY_IDENTITY],
        Some(classes) => classes.iter().map(|class| class.0).collect(),
    }
}

fn protocols(allow: &NetworkAllow) -> Vec<Protocol> {
    match allow.protocol {
        Some(protocol) => vec![protocol],
        None => vec![Protocol::Tcp, Protocol::Udp],
    }
}

/// The fewest aligned blocks that make up a range of ports: first port and prefix length of each, in order. At most 30.
fn prefixes(range: &RangeInclusive<u16>) -> Vec<(u16, u8)> {
    let (mut first, end) = (u32::from(*range.start()), u32::from(*range.end()) + 1);
    let mut blocks = Vec::new();
    while first < end {
        let aligned = first.trailing_zeros().min(16);
        let fits = (end - first).ilog2();
        let bits = aligned.min(fits);
        // `first` is below 2^16 and `bits` at most 16, by the bounds above.
        blocks.push((first as u16, 16 - bits as u8));
        first += 1 << bits;
    }
    blocks
}

/// What is left of all ports: at most 16 blocks for each that is taken out.
///
/// They are looked up by everybody on this node, at every prefix length in use, so a rule about requests on every port and a
/// service whose requests nobody sees (`l7: none`) cost each connect some look-ups more.
fn every_port_but(except: &BTreeSet<u16>) -> Vec<(u16, u8)> {
    let mut blocks = Vec::new();
    let mut from = Some(0u16);
    for port in except {
        if let Some(first) = from.filter(|first| first < port) {
            blocks.extend(prefixes(&(first..=port - 1)));
        }
        from = port.checked_add(1);
    }
    if let Some(first) = from {
        blocks.extend(prefixes(&(first..=u16::MAX)));
    }
    blocks
}

fn add_default(entries: &mut Entries, subject: u32, direction: u8, rule: u32, action: u8) {
    let key = PolicyKey {
        subject,
        peer: ANY_IDENTITY,
        direction,
        ..PolicyKey::default()
    };
    entries.insert(key, PolicyValue::new(rule, action, 0, false));
}

fn default_action(default: AccessDefault, audit: bool) -> u8 {
    match default {
        AccessDefault::Allow => action::ALLOW,
        AccessDefault::Deny if audit => action::AUDIT,
        AccessDefault::Deny => action::DENY,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    }
}

/// Of two rules with one key the stronger action stands, of two alike the first.
fn add(entries: &mut Entries, key: PolicyKey, rule: u32, action: u8) {
    let value = PolicyValue::new(rule, action, key.prefix, key.peer != ANY_IDENTITY);
    let entry = entries.entry(key).or_insert(value);
    if value.rank > entry.rank {
        *entry = value;
    }
}
