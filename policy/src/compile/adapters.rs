//! Adapters: whose requests each looks at, and in which order.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    report::Report,
    services::Drafts,
    sources::{Sources, service_name},
};
use crate::{
    resource::{
        Object, Spec,
        weft::{ADAPTER, Target},
    },
    snapshot::{Adapter, AdapterConfig, AdapterFailure, AdapterTarget, L7, ObjectRef, ObjectState, ServiceName},
    store::Store,
};

/// What the Adapters of the store are made of, before anything is compiled: for those who have to prepare for them.
pub fn adapter_configs(store: &Store) -> Vec<Arc<AdapterConfig>> {
    let config = |object: &Arc<Object>| match &object.spec {
        Spec::Adapter(spec) => Some(Arc::clone(&spec.config)),
        _ => None,
    };
    store.objects_of_kind(&ADAPTER).filter_map(config).collect()
}

#[derive(Default)]
pub(super) struct Adapters<'a> {
    /// In the order in which they look.
    pub all: Vec<Arc<Adapter>>,
    /// Those in the way of a service's requests.
    by_service: BTreeMap<ServiceName, Vec<Looks<'a>>>,
}

/// An adapter in the way of a service.
struct Looks<'a> {
    object: &'a ObjectRef,
    /// It refuses what it cannot look at.
    closed: bool,
    /// It looks at bytes that nobody reads as HTTP.
    bytes: bool,
}

// === impl Adapters ===

impl<'a> Adapters<'a> {
    pub fn compile(sources: &Sources<'a>, drafts: &Drafts, report: &mut Report) -> Self {
        let mut found = Self::default();
        let mut in_order = sources.adapters.clone();
        // Of those that the operator put into no order, who asks a server comes last: the first deny ends the checks.
        in_order.sort_by_key(|(object, spec)| {
            let config = &spec.config;
            (
                config.role,
                Reverse(spec.priority),
                config.backend.asks_a_server(),
                &object.id,
            )
        });
        for (object, spec) in in_order {
            let (role, backend) = (spec.config.role, &spec.config.backend);
            let mut missing = Vec::new();
            let mut services: BTreeSet<ServiceName> = match &spec.target {
                Target::All => drafts.services.keys().cloned().collect(),
                Target::Namespace => {
                    let of_it = |name: &&ServiceName| *name.namespace == *object.namespace();
                    drafts.services.keys().filter(of_it).cloned().collect()
                }
                Target::Services(names) => {
                    let mut there = BTreeSet::new();
                    for name in names {
                        let service = service_name(object, &name.value);
                        if !drafts.services.contains_key(&service) {
                            let reason = format!("there is no Service {service}: nothing to look at");
                            report.warn(object, name, reason, "define it, or correct the name");
                            missing.push(format!("Service {service}"));
                            continue;
                        }
                        if role.sees_requests() && *sources.l7(&service) != L7::Auto {
                            report.warn(
                                object,
                                name,
                                format!("our proxy does not see the requests of {service}"),
                                "give the service's policy `l7: {mode: auto}`",
                            );
                        }
                        there.insert(service);
                    }
                    there
                }
            };
            let mut unseen = Vec::new();
            if role.sees_requests() {
                services.retain(|service| {
                    let seen = *sources.l7(service) == L7::Auto;
                    if !seen {
                        unseen.push(service.to_string());
                    }
                    seen
                });
            }
            let id = &object.id;
            let what = format!("{backend}, {role}, on {}", list(&spec.target, &services));
            if !missing.is_empty() {
                report.status(id, ObjectState::Pending, format!("missing: {}", missing.join(", ")));
            } else if !unseen.is_empty() {
                let state = match services.is_empty() {
                    true => ObjectState::NotEnforced,
                    false => ObjectState::Accepted,
                };
                let unseen = unseen.join(", ");
                report.status(
                    id,
                    state,
                    format!("{what}; our proxy does not see the requests of {unseen}"),
                );
            } else {
                report.status(id, ObjectState::Accepted, format!("in force: {what}"));
            }
            if role.sees_requests() {
                for service in &services {
                    let looks = Looks {
                        object: id,
                        closed: spec.config.failure_policy == AdapterFailure::Closed,
                        bytes: backend.sees_bytes(),
                    };
                    found.by_service.entry(service.clone()).or_default().push(looks);
                }
            }
            found.all.push(Arc::new(Adapter {
                config: Arc::clone(&spec.config),
                target: AdapterTarget {
                    all: matches!(spec.target, Target::All),
                    services,
                },
            }));
        }
        found
    }

    /// Why connections to a port of any of these services visit the proxy; `None`: no adapter makes them. `opaque`: of a port
    /// that is declared not to be HTTP.
    pub fn why(&self, services: &[ServiceName], opaque: bool) -> Option<String> {
        let by: BTreeSet<&ObjectRef> = self.looking(services, opaque).map(|looks| looks.object).collect();
        if by.is_empty() {
            return None;
        }
        let by: Vec<String> = by.into_iter().map(ObjectRef::to_string).collect();
        let what = if opaque { "bytes" } else { "requests" };
        Some(format!("{what} are looked at by {}", by.join(", ")))
    }

    /// Whether some adapter of these refuses what it cannot look at.
    pub fn closed(&self, services: &[ServiceName], opaque: bool) -> bool {
        self.looking(services, opaque).any(|looks| looks.closed)
    }

    fn looking(&self, services: &[ServiceName], opaque: bool) -> impl Iterator<Item = &Looks<'a>> {
        let found = services.iter().filter_map(|service| self.by_service.get(service));
        found.flatten().filter(move |looks| looks.bytes || !opaque)
    }
}

fn list(target: &Target, services: &BTreeSet<ServiceName>) -> String {
    let count = services.len();
    match target {
        Target::All => format!("all {count} services"),
        Target::Namespace => format!("all {count} services of its namespace"),
        Target::Services(_) if count == 0 => "no service".to_owned(),
        Target::Services(_) => {
            let names: Vec<String> = services.iter().map(ServiceName::to_string).collect();
            names.join(", ")
        }
    }
}
