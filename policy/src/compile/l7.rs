//! Services whose requests our proxy does not see (`l7: none|external`), and what becomes of the rules that speak of them.
//!
//! An access rule about requests protects an identity's target port, by whichever service it is reached, and so does the
//! kernel's table. Where one service with `l7: none` leads to that port, nobody asks such a rule there: it allows nothing, and
//! what only it allowed is denied; a rule about connections beside it holds. Where a foreign proxy is in between, the rule lets
//! connections through to that proxy. Undeclared, its failure mode is closed, for nobody knows here which rules it has.
//! Callers wait for starting endpoints in our proxy alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{report::Report, services::Drafts, sources::Sources};
use crate::{
    resource::{
        Object,
        smi::{RouteKind, TrafficTargetSpec},
        weft::ServicePolicySpec,
    },
    snapshot::{Acceleration, AccessRule, Identity, L7, ObjectRef, ObjectState, Protocol, ServiceName},
};

/// Target ports behind services that say so, each with the policy that does.
type Targets<'a> = BTreeMap<(Identity, u16), &'a ObjectRef>;

pub(super) struct Elsewhere<'a> {
    none: Targets<'a>,
    external: Targets<'a>,
    /// Every TCP target port behind some service.
    served: BTreeSet<(Identity, u16)>,
}

// === impl Elsewhere ===

impl<'a> Elsewhere<'a> {
    pub fn of(sources: &Sources<'a>, drafts: &Drafts) -> Self {
        let mut found = Self {
            none: Targets::new(),
            external: Targets::new(),
            served: BTreeSet::new(),
        };
        for (name, draft) in &drafts.services {
            let tcp = draft.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            let targets = tcp.flat_map(|port| port.targets.iter().copied());
            found.served.extend(targets.clone());
            let Some((policy, _)) = sources.policies.get(name) else {
                continue;
            };
            match sources.l7(name) {
                L7::Auto => {}
                L7::None => found.none.extend(targets.map(|target| (target, &*policy.id))),
                L7::External { .. } => found.external.extend(targets.map(|target| (target, &*policy.id))),
            }
        }
        found
    }

    /// Takes the ports out of a rule about requests at which nobody would ask it.
    pub fn cut(&self, destination: Identity, rule: &mut AccessRule) {
        if rule.http.is_some() {
            rule.except = ports_of(&self.none, destination)
                .map(|(port, _)| port)
                .filter(|port| rule.ports.as_ref().is_none_or(|ports| ports.contains(port)))
                .collect();
        }
    }

    /// What is in force of a TrafficTarget of which nothing is missing, in words; warns where something is not. `None`: all
    /// its rules are asked by us. `audits`: what is denied in its namespace is only reported.
    pub fn judge(
        &self,
        object: &Object,
        target: &TrafficTargetSpec,
        allows: &[(Identity, AccessRule)],
        audits: bool,
        report: &mut Report,
    ) -> Option<(ObjectState, String)> {
        let mut unasked = BTreeMap::new();
        let mut foreign = BTreeMap::new();
        let mut asked = false;
        for (identity, rule) in allows {
            if rule.http.is_none() {
                asked = true;
                continue;
            }
            unasked.extend(ports_of(&self.none, *identity).filter(|(port, _)| rule.except.contains(port)));
            let speaks = |port: u16| rule.ports.as_ref().is_none_or(|ports| ports.contains(&port));
            foreign.extend(
                ports_of(&self.external, *identity).filter(|(port, _)| speaks(*port) && !rule.except.contains(port)),
            );
            let mut served = self.served.iter().filter(|(other, _)| other == identity);
            asked |= served.any(|(_, port)| speaks(*port) && !rule.except.contains(port));
        }
        let (at, denied) = (
            list(&unasked),
            if audits { "let through and reported" } else { "denied" },
        );
        let route = target.rules.iter().find(|rule| rule.kind == RouteKind::Http);
        if let Some(route) = route.filter(|_| !unasked.is_empty()) {
            report.warn(
                object,
                &route.name,
                format!("requests are not seen on {at}: what only this rule allows there is {denied}"),
                "name a TCPRoute, or give the policy `l7: {mode: auto}`",
            );
        }
        match (unasked.is_empty(), asked) {
            (false, false) => Some((
                ObjectState::NotEnforced,
                format!("{denied}, for requests are not seen on {at}"),
            )),
            (false, true) => Some((
                ObjectState::Accepted,
                format!("enforced, but {denied} where requests are not seen: on {at}"),
            )),
            (true, _) if !foreign.is_empty() => Some((
                ObjectState::Accepted,
                format!(
                    "connections are enforced; requests are left to the foreign proxy on {}",
                    list(&foreign)
                ),
            )),
            (true, _) => None,
        }
    }
}

fn ports_of<'t, 'a>(targets: &'t Targets<'a>, identity: Identity) -> impl Iterator<Item = (u16, &'a ObjectRef)> + 't {
    targets
        .range((identity, 0)..=(identity, u16::MAX))
        .map(|((_, port), policy)| (*port, *policy))
}

/// `target port 8080 (ServicePolicy default/web)`, or several of it.
fn list(ports: &BTreeMap<u16, &ObjectRef>) -> String {
    let words = ports
        .iter()
        .map(|(port, policy)| format!("target port {port} ({policy})"));
    words.collect::<Vec<_>>().join(", ")
}

/// Why connections to a service port visit a foreign proxy; `None`: no rule or route of ours makes them.
pub(super) fn proxied(l7: &L7) -> Option<String> {
    match l7 {
        L7::External { address, .. } => Some(format!("requests are left to the foreign proxy at {address}")),
        L7::Auto | L7::None => None,
    }
}

/// Says what a policy does about requests and short-circuits, if it says anything that its fields do not.
pub(super) fn report_policy(name: &ServiceName, object: &Object, spec: &ServicePolicySpec, report: &mut Report) {
    let mut reason = match spec.l7.as_ref().map(|l7| &l7.value) {
        None | Some(L7::Auto) => "in force".to_owned(),
        Some(L7::None) => format!("in force: connections to {name} never visit a proxy"),
        Some(L7::External { address, cgroup }) => format!(
            "in force: requests to {name} are left to the foreign proxy at {address} (cgroup {})",
            cgroup.display()
        ),
    };
    let external = matches!(spec.l7.as_ref().map(|l7| &l7.value), Some(L7::External { .. }));
    match spec.acceleration {
        Some(Acceleration::Proxy | Acceleration::Full) if external => {
            reason += "; nothing is short-circuited: a foreign proxy may splice, and lose bytes";
        }
        Some(Acceleration::Full) => {
            reason += "; connections within this node are short-circuited both ways: neither client nor server may splice, or ask how much is unread";
        }
        _ if reason == "in force" => return,
        _ => {}
    }
    report.status(&object.id, ObjectState::Accepted, reason);
}
