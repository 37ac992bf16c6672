//! Access policy as entries of `weft_policy`.

use std::collections::HashMap;

use weft_abi::{ANY_IDENTITY, PolicyKey, PolicyValue, action, direction, protocol};
use weft_policy::{AccessDefault, Protocol, Snapshot};

/// Every identity's default, and one entry a rule, source and port.
pub fn entries(snapshot: &Snapshot) -> HashMap<PolicyKey, PolicyValue> {
    let mut entries = HashMap::new();
    for (identity, policy) in &snapshot.access {
        let subject = identity.0;
        let default = match policy.default {
            AccessDefault::Allow => action::ALLOW,
            AccessDefault::Deny => action::DENY,
        };
        let key = PolicyKey { subject, peer: ANY_IDENTITY, direction: direction::INGRESS, ..PolicyKey::default() };
        entries.insert(key, PolicyValue::new(policy.default_rule.0, default, 0, false));
        for rule in &policy.allow {
            let action = if rule.http.is_some() { action::REDIRECT } else { action::ALLOW };
            for source in &rule.sources {
                let key = PolicyKey {
                    subject,
                    peer: source.0,
                    protocol: match rule.protocol {
                        Protocol::Tcp => protocol::TCP,
                        Protocol::Udp => protocol::UDP,
                    },
                    direction: direction::INGRESS,
                    ..PolicyKey::default()
                };
                match &rule.ports {
                    None => add(&mut entries, key, PolicyValue::new(rule.rule.0, action, 0, true)),
                    Some(ports) => {
                        for port in ports {
                            let value = PolicyValue::new(rule.rule.0, action, 16, true);
                            add(&mut entries, PolicyKey { port: *port, prefix: 16, ..key }, value);
                        }
                    }
                }
            }
        }
    }
    entries
}

/// Of two rules with one key the stronger action stands, of two alike the first.
fn add(entries: &mut HashMap<PolicyKey, PolicyValue>, key: PolicyKey, value: PolicyValue) {
    let entry = entries.entry(key).or_insert(value);
    if value.rank > entry.rank {
        *entry = value;
    }
}
