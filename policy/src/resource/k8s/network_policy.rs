//! `networking.k8s.io/v1` NetworkPolicy: who may connect, by labels and addresses.
//!
//! Validated and defaulted as Kubernetes does (`pkg/apis/networking/{validation,v1/defaults.go}`), with a word on what is
//! accepted and has no effect. What it means is in `compile/network.rs`.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::label_selector::{LabelSelector, decode_all};
use crate::{
    decode::{Fields, Located, Value, shorten},
    names,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::Protocol,
};

pub(crate) static NETWORK_POLICY: KindInfo = KindInfo {
    group: "networking.k8s.io",
    versions: &["v1"],
    kind: "NetworkPolicy",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

/// Prefixes (`cidr` and `except` together) of one policy: every other policy's address ranges are compared with each.
const MAX_PREFIXES: usize = 1000;

#[derive(Debug)]
pub struct NetworkPolicySpec {
    /// Workloads of the object's namespace.
    pub pods: LabelSelector,
    /// Who may connect to them; `None`: not this policy's business. Empty: nobody.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Whom they may connect to.
    pub egress: Option<Vec<PolicyRule>>,
}

#[derive(Debug)]
pub struct PolicyRule {
    /// Empty: everybody.
    pub peers: Vec<PolicyPeer>,
    /// Empty: every port of every protocol.
    pub ports: Vec<PolicyPort>,
}

#[derive(Debug)]
pub enum PolicyPeer {
    Workloads {
        /// `None`: of the object's namespace only.
        namespaces: Option<LabelSelector>,
        /// `None`: all of them.
        pods: Option<LabelSelector>,
    },
    /// Addresses of no workload, in `cidr` and in none of `except`. Host bits are zero.
    Block { cidr: IpNet, except: Vec<IpNet> },
}

#[derive(Debug)]
pub struct PolicyPort {
    /// `None`: SCTP, which the mesh does not carry.
    pub protocol: Option<Protocol>,
    pub port: Located<PortMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMatch {
    Every,
    Numbers(RangeInclusive<u16>),
    Named(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let mut spec = body.spec()?;
    let pods = spec.required("podSelector").and_then(LabelSelector::decode);
    let types = match spec.optional("policyTypes") {
        Some(list) => list.items().and_then(|items| {
            let choices = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];
            decode_all(items, |item| item.choice(&choices))
        }),
        None => Some(Vec::new()),
    };
    let mut prefixes = 0;
    let (ingress_at, ingress) = decode_rules(&mut spec, "ingress", "from", &mut prefixes);
    let (egress_at, egress) = decode_rules(&mut spec, "egress", "to", &mut prefixes);
    if prefixes > MAX_PREFIXES {
        spec.value.error(
            format!("{prefixes} address ranges, more than {MAX_PREFIXES}"),
            "split it into several policies",
        );
    }
    spec.finish();
    let (types, ingress, egress) = (types?, ingress?, egress?);
    // Kubernetes' default: ingress always, egress where there is a rule.
    let is_about = |direction, default| {
        if types.is_empty() {
            default
        } else {
            types.contains(&direction)
        }
    };
    let about_ingress = is_about(Direction::Ingress, true);
    let about_egress = is_about(Direction::Egress, !egress.is_empty());
    for (at, rules, about, name) in [
        (ingress_at, &ingress, about_ingress, "Ingress"),
        (egress_at, &egress, about_egress, "Egress"),
    ] {
        if let Some(at) = at.filter(|_| !about && !rules.is_empty()) {
            at.warn(
                "these rules have no effect: policyTypes leaves this direction out",
                format!("add `{name}` to policyTypes, or remove them"),
            );
        }
    }
    Some(Spec::NetworkPolicy(Box::new(NetworkPolicySpec {
        pods: pods?,
        ingress: about_ingress.then_some(ingress),
        egress: about_egress.then_some(egress),
    })))
}

fn decode_rules<'a>(
    spec: &mut Fields<'a>,
    name: &'static str,
    peers: &'static str,
    prefixes: &mut usize,
) -> (Option<Value<'a>>, Option<Vec<PolicyRule>>) {
    let Some(list) = spec.optional(name) else {
        return (None, Some(Vec::new()));
    };
    let rules = list
        .items()
        .and_then(|items| decode_all(items, |item| decode_rule(item, peers)));
    let blocks = rules
        .iter()
        .flatten()
        .flat_map(|rule| &rule.peers)
        .map(PolicyPeer::prefixes);
    *prefixes += blocks.sum::<usize>();
    (Some(list), rules)
}

fn decode_rule(value: Value<'_>, peers: &'static str) -> Option<PolicyRule> {
    let mut fields = value.fields()?;
    let peers = match fields.optional(peers) {
        Some(list) => list.items().and_then(|items| decode_all(items, decode_peer)),
        None => Some(Vec::new()),
    };
    let ports = match fields.optional("ports") {
        Some(list) => list.items().and_then(|items| decode_all(items, decode_port)),
        None => Some(Vec::new()),
    };
    fields.finish();
    Some(PolicyRule {
        peers: peers?,
        ports: ports?,
    })
}

fn decode_peer(value: Value<'_>) -> Option<PolicyPeer> {
    let at = value.clone();
    let mut fields = value.fields()?;
    let pods = fields.optional("podSelector");
    let namespaces = fields.optional("namespaceSelector");
    let block = fields.optional("ipBlock");
    fields.finish();
    if let Some(block) = block {
        if pods.is_some() || namespaces.is_some() {
            block.error(
                "an ipBlock stands for itself: beside a selector it could match nothing",
                "make it an entry of its own",
            );
            return None;
        }
        return decode_block(block);
    }
    if pods.is_none() && namespaces.is_none() {
        at.error(
            "this peer says nothing",
            "add `podSelector:`, `namespaceSelector:` or `ipBlock:`; `{}` selects all",
        );
        return None;
    }
    let decode = |selector: Option<Value<'_>>| match selector {
        Some(selector) => LabelSelector::decode(selector).map(Some),
        None => Some(None),
    };
    let (pods, namespaces) = (decode(pods), decode(namespaces));
    Some(PolicyPeer::Workloads {
        namespaces: namespaces?,
        pods: pods?,
    })
}

fn decode_block(value: Value<'_>) -> Option<PolicyPeer> {
    let mut fields = value.fields()?;
    let cidr = fields.required("cidr").and_then(|value| prefix(&value));
    let except = fields.optional("except");
    fields.finish();
    let cidr = cidr?;
    let except = match except {
        Some(list) => decode_all(list.items()?, |item| {
            let inner = prefix(&item)?;
            if !cidr.contains(&inner) || inner == cidr {
                item.error(format!("{inner} is no part of {cidr}"), "write a range inside `cidr`");
                return None;
            }
            Some(inner)
        })?,
        None => Vec::new(),
    };
    Some(PolicyPeer::Block { cidr, except })
}

fn prefix(value: &Value<'_>) -> Option<IpNet> {
    let text = value.text()?;
    let Ok(net) = text.parse::<IpNet>() else {
        value.error(
            format!("`{}` is no address range", shorten(text)),
            "write it as 10.0.0.0/8 or 2001:db8::/32; one address is 192.0.2.1/32",
        );
        return None;
    };
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        value.error("IPv4 addresses are not written as IPv6 here", "write the IPv4 range");
        return None;
    }
    if net != net.trunc() {
        value.warn(
            format!("{net} is read as {}", net.trunc()),
            format!("write {}", net.trunc()),
        );
    }
    Some(net.trunc())
}

fn decode_port(value: Value<'_>) -> Option<PolicyPort> {
    let at = value.clone();
    let mut fields = value.fields()?;
    let protocol = match fields.optional("protocol") {
        None => Some(Some(Protocol::Tcp)),
        Some(value) => {
            let choices = [
                ("TCP", Some(Protocol::Tcp)),
                ("UDP", Some(Protocol::Udp)),
                ("SCTP", None),
            ];
            let found = value.choice(&choices);
            if found == Some(None) {
                value.warn("the mesh carries no SCTP: this port allows nothing", "remove it");
            }
            found
        }
    };
    let port = fields.optional("port");
    let end = fields.optional("endPort");
    fields.finish();
    let located = port.as_ref().unwrap_or(&at);
    let found = match (&port, &end) {
        (None, None) => PortMatch::Every,
        (None, Some(end)) => {
            end.error("`endPort` without `port`", "add `port:`, the first of the range");
            return None;
        }
        (Some(name), _) if name.node.as_text().is_some() => {
            if let Some(end) = &end {
                end.error(
                    "a range begins with a number, not with a name",
                    "write the port's number",
                );
                return None;
            }
            PortMatch::Named(port_name(name)?)
        }
        (Some(number), end) => {
            let first = number.port();
            let last = match end {
                Some(end) => end.port(),
                None => first,
            };
            let (first, last) = (first?, last?);
            if let Some(end) = end.as_ref().filter(|_| last < first) {
                end.error(
                    format!("{last} comes before {first}"),
                    "write the last port of the range",
                );
                return None;
            }
            PortMatch::Numbers(first..=last)
        }
    };
    Some(PolicyPort {
        protocol: protocol?,
        port: located.locate(found),
    })
}

/// A port's name, as Services give it; it has a letter, so that a number in quotes is none.
fn port_name(value: &Value<'_>) -> Option<String> {
    let name = value.text()?;
    if names::is_dns_label(name) && name.bytes().any(|b| b.is_ascii_lowercase()) {
        return Some(name.to_owned());
    }
    value.error(
        format!("`{}` is no valid port name", shorten(name)),
        "write the name of a port, or its number without quotes",
    );
    None
}

// === impl PolicyPeer ===

impl PolicyPeer {
    fn prefixes(&self) -> usize {
        match self {
            Self::Workloads { .. } => 0,
            Self::Block { except, .. } => 1 + except.len(),
        }
    }
}
