//! Splits, and with them the last things to know about a service port: whether it works per request, and whether its
//! connections visit the proxy.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Allocations,
    access::Access,
    adapters::Adapters,
    l7,
    report::Report,
    services::{Draft, Drafts, PortDraft},
    sources::{Sources, service_name},
};
use crate::{
    resource::{Object, smi::TrafficSplitSpec},
    snapshot::{
        Acceleration, AppProtocol, HttpMatch, L7, ObjectState, Protocol, Service, ServiceName, ServicePort, Split,
        SplitBackend,
    },
};

/// Said of a port whose workloads are starting.
const NOBODY_LISTENS_YET: &str = "no endpoint listens yet";

pub(super) fn finish(
    (sources, acceleration): (&Sources<'_>, Acceleration),
    drafts: &Drafts,
    deciders: (&Access, &Adapters<'_>),
    allocations: &mut Allocations,
    report: &mut Report,
) -> BTreeMap<ServiceName, Arc<Service>> {
    check_roots(sources, drafts, report);
    check_policies(sources, drafts, report);
    let mut services = BTreeMap::new();
    for (name, draft) in &drafts.services {
        let l7 = sources.l7(name);
        let split = sources.splits.get(name).map(|(object, spec)| Root {
            object,
            spec,
            matches: matches_of(object, spec, sources),
            per_request: *l7 == L7::Auto,
        });
        if let Some(root) = &split {
            root.report(name, draft, drafts, sources, report);
        }
        let policy = sources.policies.get(name).map(|(_, policy)| policy);
        let ports = draft
            .ports
            .iter()
            .map(|port| finish_port(name, port, l7, split.as_ref(), drafts, deciders, allocations));
        let service = Service {
            name: name.clone(),
            vip4: draft.vip4,
            vip6: draft.vip6,
            ports: ports.collect(),
            failure_mode: policy.and_then(|policy| policy.failure_mode),
            acceleration: policy.and_then(|policy| policy.acceleration).unwrap_or(acceleration),
            l7: l7.clone(),
        };
        services.insert(name.clone(), Arc::new(service));
    }
    services
}

fn finish_port(
    name: &ServiceName,
    port: &PortDraft,
    l7: &L7,
    root: Option<&Root<'_>>,
    drafts: &Drafts,
    (access, adapters): (&Access, &Adapters<'_>),
    allocations: &mut Allocations,
) -> ServicePort {
    let split = root.filter(|root| root.applies_to(port));
    let reached: Vec<ServiceName> = [name.clone()]
        .into_iter()
        .chain(split.into_iter().flat_map(Root::leaves))
        .collect();
    let opaque = port.app == AppProtocol::Opaque;
    let looked_at = adapters
        .why(&reached, opaque)
        .filter(|_| *l7 == L7::Auto && port.protocol == Protocol::Tcp);
    let guarded = looked_at.is_some() && adapters.closed(&reached, opaque);
    let asked_for = split.is_some_and(Root::has_matches)
        || looked_at.is_some()
        || port
            .targets
            .iter()
            .any(|(identity, target)| access.speaks_of_requests(*identity, *target));
    let http = *l7 == L7::Auto && may_be_http(port) && (port.app.is_http() || asked_for);
    let waits = match split {
        Some(root) if !root.has_matches() => root
            .backends(drafts, port)
            .any(|(_, found)| found.is_some_and(|p| p.pending)),
        _ => port.pending,
    };
    let proxied = match split {
        // Nobody of ours is there to split or to wait.
        _ if *l7 != L7::Auto => l7::proxied(l7).filter(|_| may_be_http(port)),
        Some(root) if http => Some(format!("{} splits per request", root.object.id)),
        _ if looked_at.is_some() => looked_at,
        // Datagrams do not wait.
        _ if waits && port.protocol == Protocol::Tcp => Some(NOBODY_LISTENS_YET.to_owned()),
        _ => None,
    };
    ServicePort {
        id: port.id,
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol,
        app: port.app,
        http,
        proxied,
        guarded,
        endpoints: port.endpoints.clone(),
        targets: port.targets.clone(),
        pending: port.pending,
        split: split.map(|root| Arc::new(root.split(port, drafts, allocations))),
    }
}

fn may_be_http(port: &PortDraft) -> bool {
    port.protocol == Protocol::Tcp && port.app != AppProtocol::Opaque
}

/// The split of one root service.
struct Root<'a> {
    object: &'a Object,
    spec: &'a TrafficSplitSpec,
    /// `None`: every request is split; empty: none is, for nothing that `matches` names is there.
    matches: Option<Vec<HttpMatch>>,
    /// Whether our proxy sees the requests at all.
    per_request: bool,
}

fn matches_of(object: &Object, spec: &TrafficSplitSpec, sources: &Sources<'_>) -> Option<Vec<HttpMatch>> {
    if spec.matches.is_empty() {
        return None;
    }
    let found = spec
        .matches
        .iter()
        .filter_map(|name| sources.http_groups.get(&(object.namespace(), name.value.as_str())));
    Some(found.flat_map(|group| group.matches.iter().cloned()).collect())
}

impl<'a> Root<'a> {
    fn has_matches(&self) -> bool {
        self.matches.is_some()
    }

    /// Requests cannot be told apart on a port that is not HTTP; without a match, none is split.
    fn applies_to(&self, port: &PortDraft) -> bool {
        self.matches
            .as_ref()
            .is_none_or(|matches| !matches.is_empty() && self.tells_apart(port))
    }

    /// Whether requests on this port can be told apart.
    fn tells_apart(&self, port: &PortDraft) -> bool {
        self.per_request && may_be_http(port)
    }

    /// Services that it names.
    fn leaves(&self) -> impl Iterator<Item = ServiceName> {
        let backends = self.spec.backends.iter();
        backends.map(|backend| service_name(self.object, &backend.service.value))
    }

    /// Backends with a weight, and their port of this number.
    fn backends<'d>(
        &'d self,
        drafts: &'d Drafts,
        port: &'d PortDraft,
    ) -> impl Iterator<Item = (usize, Option<&'d PortDraft>)> {
        self.spec
            .backends
            .iter()
            .enumerate()
            .filter(|(_, backend)| backend.weight > 0)
            .map(|(index, backend)| {
                let draft = drafts.services.get(&service_name(self.object, &backend.service.value));
                let same = |p: &&PortDraft| p.port == port.port && p.protocol == port.protocol;
                (index, draft.and_then(|draft| draft.ports.iter().find(same)))
            })
    }

    fn split(&self, port: &PortDraft, drafts: &Drafts, allocations: &mut Allocations) -> Split {
        let backends = self.spec.backends.iter().map(|backend| {
            let service = service_name(self.object, &backend.service.value);
            let same = |p: &PortDraft| p.port == port.port && p.protocol == port.protocol;
            let index = drafts
                .services
                .get(&service)
                .and_then(|draft| draft.ports.iter().position(same));
            SplitBackend {
                service,
                weight: backend.weight,
                port: index,
            }
        });
        Split {
            rule: allocations.rule(&self.object.id),
            object: self.object.id.clone(),
            matches: self.matches.clone().unwrap_or_default(),
            backends: backends.collect(),
        }
    }

    /// Status and warnings about what the split names.
    fn report(
        &self,
        root_name: &ServiceName,
        root: &Draft,
        drafts: &Drafts,
        sources: &Sources<'_>,
        report: &mut Report,
    ) {
        let mut missing = Vec::new();
        for backend in &self.spec.backends {
            let name = service_name(self.object, &backend.service.value);
            let Some(draft) = drafts.services.get(&name) else {
                let reason = format!("there is no Service {name}: its share goes nowhere");
                report.warn(self.object, &backend.service, reason, "define it, or correct the name");
                missing.push(format!("Service {name}"));
                continue;
            };
            let split: Vec<&PortDraft> = root.ports.iter().filter(|port| self.applies_to(port)).collect();
            let same = |a: &PortDraft, b: &PortDraft| a.port == b.port && a.protocol == b.protocol;
            let lacks: Vec<&PortDraft> = split
                .iter()
                .filter(|port| !draft.ports.iter().any(|p| same(p, port)))
                .copied()
                .collect();
            if lacks.is_empty() {
                continue;
            }
            let list = lacks
                .iter()
                .map(|port| format!("{}/{}", port.port, port.protocol))
                .collect::<Vec<_>>()
                .join(", ");
            // A root that nobody defined has the ports that its workloads said, often one number for both protocols.
            if lacks.len() == split.len() || sources.services.contains_key(root_name) {
                let reason = format!("Service {name} has no port {list}: its share of that goes nowhere");
                report.warn(self.object, &backend.service, reason, "add the port to the service");
            }
            if lacks.len() == split.len() {
                missing.push(format!("port {list} of Service {name}"));
            }
        }
        for name in &self.spec.matches {
            if !sources
                .http_groups
                .contains_key(&(self.object.namespace(), name.value.as_str()))
            {
                let text = format!("HTTPRouteGroup {}/{}", self.object.namespace(), name.value);
                report.warn(
                    self.object,
                    name,
                    format!("there is no {text}"),
                    "define it, or correct the name",
                );
                missing.push(text);
            }
        }
        let blind: Vec<String> = root
            .ports
            .iter()
            .filter(|port| self.has_matches() && !self.tells_apart(port))
            .map(|port| format!("{}/{}", port.port, port.protocol))
            .collect();
        if !self.per_request
            && let Some(first) = self.spec.matches.first()
        {
            report.warn(
                self.object,
                first,
                format!("our proxy does not see the requests of {root_name}: nothing is split"),
                "remove `matches`, or give the service's policy `l7: {mode: auto}`",
            );
        }
        let id = &self.object.id;
        let untold = format!("requests cannot be told apart on port {}", blind.join(", "));
        if !missing.is_empty() {
            report.status(id, ObjectState::Pending, format!("missing: {}", missing.join(", ")));
        } else if !blind.is_empty() && blind.len() == root.ports.len() {
            report.status(id, ObjectState::NotEnforced, untold);
        } else if !blind.is_empty() {
            report.status(id, ObjectState::Accepted, format!("enforced, but {untold}"));
        } else if self.spec.backends.iter().all(|backend| backend.weight == 0) {
            report.status(id, ObjectState::Accepted, "all weights are zero: every call fails");
        } else {
            report.status(id, ObjectState::Accepted, "enforced");
        }
    }
}

fn check_roots(sources: &Sources<'_>, drafts: &Drafts, report: &mut Report) {
    for (name, (object, spec)) in &sources.splits {
        if !drafts.services.contains_key(name) {
            let reason = format!("there is no Service {name}: nothing is split");
            report.warn(object, &spec.service, reason, "define it, or correct the name");
            report.status(&object.id, ObjectState::Pending, format!("missing: Service {name}"));
        }
    }
}

fn check_policies(sources: &Sources<'_>, drafts: &Drafts, report: &mut Report) {
    for (name, (object, spec)) in &sources.policies {
        if drafts.services.contains_key(name) {
            l7::report_policy(name, object, spec, report);
        } else {
            let reason = format!("there is no Service {name}: nothing obeys this policy");
            report.warn(object, &spec.service, reason, "define it, or correct the name");
            report.status(&object.id, ObjectState::Pending, format!("missing: Service {name}"));
        }
    }
}
