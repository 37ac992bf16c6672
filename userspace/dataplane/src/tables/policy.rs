//! Access policy as entries of `weft_policy`.

use std::collections::HashMap;

use weft_abi::{ANY_IDENTITY, PolicyKey, PolicyValue, action, direction, identity, protocol};
use weft_policy::{AccessDefault, Protocol, Snapshot};

/// Every identity's default, and one entry a rule, source and port.
pub fn entries(snapshot: &Snapshot) -> HashMap<PolicyKey, PolicyValue> {
    let mut entries = HashMap::new();
    if let Some((default, rule)) = snapshot.outbound_default {
        for subject in [identity::OUTSIDE, identity::UNKNOWN_LOCAL] {
            entries.insert(
                default_of(subject),
                PolicyValue::new(rule.0, action_of(default), 0, false),
            );
        }
    }
    for (identity, policy) in &snapshot.access {
        let subject = identity.0;
        let default = action_of(policy.default);
        entries.insert(
            default_of(subject),
            PolicyValue::new(policy.default_rule.0, default, 0, false),
        );
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
                            add(
                                &mut entries,
                                PolicyKey {
                                    port: *port,
                                    prefix: 16,
                                    ..key
                                },
                                value,
                            );
                        }
                    }
                }
            }
        }
    }
    entries
}

fn default_of(subject: u32) -> PolicyKey {
    PolicyKey {
        subject,
        peer: ANY_IDENTITY,
        direction: direction::INGRESS,
        ..PolicyKey::default()
    }
}

fn action_of(default: AccessDefault) -> u8 {
    match default {
        AccessDefault::Allow => action::ALLOW,
        AccessDefault::Deny => action::DENY,
    }
}

/// Of two rules with one key the stronger action stands, of two alike the first.
fn add(entries: &mut HashMap<PolicyKey, PolicyValue>, key: PolicyKey, value: PolicyValue) {
    let entry = entries.entry(key).or_insert(value);
    if value.rank > entry.rank {
        *entry = value;
    }
}
