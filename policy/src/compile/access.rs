//! Access: grants of all dialects become one policy an identity.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Allocations, l7::Elsewhere, members::Members, report::Report, services::Drafts, smi, sources::Sources};
use crate::{
    resource::{AUDIT_ANNOTATION, smi::TrafficTargetSpec},
    snapshot::{
        AccessDefault, AccessPolicy, AccessRule, Account, HttpMatch, Identity, ObjectRef, ObjectState, Protocol, RuleId,
    },
};

/// Name of the MeshConfig that stands for the built-in defaults.
pub(super) const BUILT_IN: &str = "default";

/// Somebody may reach somebody: what every access dialect is lowered to.
pub(super) struct Grant<'a> {
    pub object: &'a ObjectRef,
    pub destination: &'a Account,
    pub sources: Vec<&'a Account>,
    pub protocol: Protocol,
    /// Target ports, or service ports that lead to one; `None`: every port.
    pub ports: Option<BTreeSet<u16>>,
    /// A port like these, to which it is restricted.
    pub only: Option<u16>,
    /// `None`: connections, whatever they carry.
    pub http: Option<Vec<HttpMatch>>,
}

pub(super) struct Access {
    pub policies: HashMap<Identity, Arc<AccessPolicy>>,
    pub outbound_default: Option<(AccessDefault, RuleId)>,
    pub outbound_audit: bool,
}

impl Access {
    pub fn compile(
        sources: &Sources<'_>,
        members: &Members<'_>,
        drafts: &Drafts,
        allocations: &mut Allocations,
        report: &mut Report,
    ) -> Self {
        let defaults = Defaults::of(sources, allocations);
        let mut accounts: BTreeSet<&Account> = members.accounts.keys().chain(&sources.accounts).collect();
        for (_, target) in &sources.targets {
            accounts.insert(&target.destination.value);
            accounts.extend(target.sources.iter().map(|source| &source.value));
        }
        let mut policies: BTreeMap<Identity, AccessPolicy> = accounts
            .into_iter()
            .map(|account| {
                let (default, default_rule) = defaults.of_namespace(&account.namespace);
                let policy = AccessPolicy {
                    default,
                    default_rule,
                    audit: sources.is_audited(Some(&account.namespace)),
                    allow: Vec::new(),
                };
                (allocations.identity(account), policy)
            })
            .collect();
        let served = served(drafts);
        let elsewhere = Elsewhere::of(sources, drafts);
        for (object, target) in &sources.targets {
            let rule = allocations.rule(&object.id);
            let lowered = smi::lower(object, target, sources, report);
            let mut missing = lowered.missing;
            missing.extend(missing_accounts(object, target, sources, members, report));
            let (default, default_rule) = defaults.of_namespace(object.namespace());
            if default == AccessDefault::Allow {
                let says = defaults.object(default_rule);
                report.status(
                    &object.id,
                    ObjectState::NotEnforced,
                    format!("accessDefault is allow ({says})"),
                );
                continue;
            }
            let audit = object.is_audited();
            let speaks_of_requests = lowered.grants.iter().any(|grant| grant.http.is_some());
            let mut allows = Vec::new();
            let mut empty = Vec::new();
            for grant in lowered.grants {
                let identity = allocations.identity(grant.destination);
                let mut allow = grant.rule(rule, audit, identity, &served, allocations);
                elsewhere.cut(identity, &mut allow);
                if allow.ports.as_ref().is_some_and(BTreeSet::is_empty) {
                    empty.push(allow.protocol.to_string());
                }
                if let Some(policy) = policies.get_mut(&identity) {
                    policy.allow.push(allow.clone());
                }
                allows.push((identity, allow));
            }
            let audits = sources.is_audited(Some(object.namespace()));
            let said = elsewhere.judge(object, target, &allows, audits, report);
            if !missing.is_empty() {
                report.status(
                    &object.id,
                    ObjectState::Pending,
                    format!("missing: {}", missing.join(", ")),
                );
            } else if !empty.is_empty() {
                let reason = format!(
                    "it allows no {}: none of its routes has the destination's port",
                    empty.join(" and no ")
                );
                let instead = "correct the port, or the routes";
                report.warn(object, &target.destination, reason.clone(), instead);
                match empty.len() == allows.len() {
                    true => report.status(&object.id, ObjectState::NotEnforced, reason),
                    false => report.status(&object.id, ObjectState::Accepted, format!("enforced, but {reason}")),
                }
            } else if let Some((state, said)) = said {
                report.status(&object.id, state, said);
            } else {
                let says = match (audit, speaks_of_requests) {
                    (false, _) => "enforced".to_owned(),
                    (true, true) => {
                        "audited: requests that match none of its routes are let through and reported".to_owned()
                    }
                    (true, false) => format!(
                        "enforced; {AUDIT_ANNOTATION} changes nothing: it denies no connection, {} does",
                        defaults.object(default_rule)
                    ),
                };
                report.status(&object.id, ObjectState::Accepted, says);
            }
        }
        let policies = policies
            .into_iter()
            .map(|(identity, policy)| (identity, Arc::new(policy)))
            .collect();
        Self {
            policies,
            outbound_default: defaults.outbound,
            outbound_audit: sources.is_audited(None),
        }
    }

    /// Whether some rule about requests speaks of this destination.
    pub fn speaks_of_requests(&self, identity: Identity, target: u16) -> bool {
        self.policies.get(&identity).is_some_and(|policy| {
            policy
                .allow
                .iter()
                .filter(|rule| rule.http.is_some() && !rule.except.contains(&target))
                .any(|rule| rule.ports.as_ref().is_none_or(|ports| ports.contains(&target)))
        })
    }
}

// === impl Grant ===

impl Grant<'_> {
    fn rule(
        self,
        rule: RuleId,
        audit: bool,
        destination: Identity,
        served: &Served,
        allocations: &mut Allocations,
    ) -> AccessRule {
        let leading = |mut ports: BTreeSet<u16>| {
            let behind = served.get(&(destination, self.protocol)).into_iter().flatten();
            let targets: Vec<u16> = behind
                .filter(|(port, _)| ports.contains(port))
                .map(|(_, target)| *target)
                .collect();
            ports.extend(targets);
            ports
        };
        let only = self.only.map(|port| leading(BTreeSet::from([port])));
        let ports = match (self.ports.map(leading), only) {
            (Some(ports), Some(only)) => Some(&ports & &only),
            (ports, only) => ports.or(only),
        };
        AccessRule {
            rule,
            object: self.object.clone(),
            audit,
            sources: self
                .sources
                .into_iter()
                .map(|account| allocations.identity(account))
                .collect(),
            protocol: self.protocol,
            ports,
            except: BTreeSet::new(),
            http: self.http,
        }
    }
}

/// Identity and protocol -> service ports that it serves, with the target port of each.
type Served = HashMap<(Identity, Protocol), BTreeSet<(u16, u16)>>;

fn served(drafts: &Drafts) -> Served {
    let mut served = Served::new();
    for port in drafts.services.values().flat_map(|draft| &draft.ports) {
        for (identity, target) in &port.targets {
            served
                .entry((*identity, port.protocol))
                .or_default()
                .insert((port.port, *target));
        }
    }
    served
}

/// Accounts that neither a workload has nor a ServiceAccount declares.
fn missing_accounts(
    object: &crate::resource::Object,
    target: &TrafficTargetSpec,
    sources: &Sources<'_>,
    members: &Members<'_>,
    report: &mut Report,
) -> Vec<String> {
    let mut missing = Vec::new();
    for account in target.sources.iter().chain([&target.destination]) {
        if members.accounts.contains_key(&account.value) || sources.accounts.contains(&account.value) {
            continue;
        }
        let text = format!("ServiceAccount {}", account.value);
        report.warn(
            object,
            account,
            format!("no workload runs as {text} and no resource declares it"),
            "start a workload, declare the account, or correct the name",
        );
        missing.push(text);
    }
    missing
}

/// What the MeshConfigs say.
struct Defaults<'a> {
    mesh: (AccessDefault, RuleId),
    namespaces: BTreeMap<&'a str, (AccessDefault, RuleId)>,
    outbound: Option<(AccessDefault, RuleId)>,
    objects: HashMap<RuleId, ObjectRef>,
}

impl<'a> Defaults<'a> {
    fn of(sources: &Sources<'a>, allocations: &mut Allocations) -> Self {
        let built_in = ObjectRef {
            kind: "MeshConfig".into(),
            namespace: None,
            name: BUILT_IN.to_owned(),
        };
        let rule = allocations.rule(&built_in);
        let mut defaults = Self {
            mesh: (AccessDefault::Allow, rule),
            namespaces: BTreeMap::new(),
            outbound: None,
            objects: HashMap::from([(rule, built_in)]),
        };
        for (namespace, (object, spec)) in &sources.configs {
            let rule = allocations.rule(&object.id);
            defaults.objects.insert(rule, (*object.id).clone());
            match (namespace, spec.access_default) {
                (None, Some(default)) => defaults.mesh = (default, rule),
                (Some(namespace), Some(default)) => {
                    defaults.namespaces.insert(namespace, (default, rule));
                }
                (_, None) => {}
            }
            if namespace.is_none() {
                defaults.outbound = spec.outbound_default.map(|default| (default, rule));
            }
        }
        defaults
    }

    fn of_namespace(&self, namespace: &str) -> (AccessDefault, RuleId) {
        self.namespaces.get(namespace).copied().unwrap_or(self.mesh)
    }

    fn object(&self, rule: RuleId) -> String {
        self.objects.get(&rule).map(ObjectRef::to_string).unwrap_or_default()
    }
}
