//! Services before it is known what is decided about them: names, virtual IPs, ports, endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{
    Allocations, CompileInput, DEFAULT_VIP4, DEFAULT_VIP6,
    members::{Member, Members, Origin},
    report::Report,
    sources::Sources,
};
use crate::{
    decode::Located,
    diagnostic::{Diagnostic, Severity},
    labels::Labels,
    resource::{Object, k8s::ServicePortSpec},
    snapshot::{AppProtocol, Class, Endpoint, Identity, ObjectState, Protocol, ServiceName},
};

#[derive(Default)]
pub(super) struct Drafts {
    pub services: BTreeMap<ServiceName, Draft>,
    /// Workload -> the first service (by name) that has it.
    pub first_service: HashMap<Arc<str>, Arc<str>>,
    /// Class of workloads written by hand -> the services that select them, by name.
    pub joined: HashMap<Class, Vec<Arc<ServiceName>>>,
}

pub(super) struct Draft {
    pub vip4: Ipv4Addr,
    pub vip6: Ipv6Addr,
    pub ports: Vec<PortDraft>,
}

pub(super) struct PortDraft {
    pub id: u32,
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    pub app: AppProtocol,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Identities and target ports behind it, ready or not.
    pub targets: BTreeSet<(Identity, u16)>,
    /// The same by class.
    pub class_targets: BTreeSet<(Class, u16)>,
    pub pending: bool,
}

impl Drafts {
    /// Those of one class have the same labels: all of them are selected, or none.
    fn note_joined(&mut self, service: &ServiceName, joined: &[&Member<'_>]) {
        let by_hand = joined.iter().filter(|member| matches!(member.origin, Origin::Hand(_)));
        let classes: BTreeSet<Class> = by_hand.map(|member| member.class).collect();
        let name = Arc::new(service.clone());
        for class in classes {
            self.joined
                .entry(class)
                .or_insert_with(|| Vec::with_capacity(1))
                .push(Arc::clone(&name));
        }
    }
}

pub(super) fn draft(
    input: &CompileInput<'_>,
    sources: &Sources<'_>,
    members: &Members<'_>,
    allocations: &mut Allocations,
    report: &mut Report,
) -> Drafts {
    let nets4 = if input.vip4.is_empty() {
        &[DEFAULT_VIP4]
    } else {
        input.vip4
    };
    let nets6 = if input.vip6.is_empty() {
        &[DEFAULT_VIP6]
    } else {
        input.vip6
    };
    let names: BTreeSet<&ServiceName> = sources.services.keys().chain(members.named_services()).collect();
    let exists: HashSet<String> = names.iter().map(|name| name.to_string()).collect();
    let no_selector = Labels::default();
    let mut drafts = Drafts::default();
    let mut taken = HashMap::new();
    for name in names {
        let defined = sources.services.get(name);
        let Some(vips) = allocations.vips(name, nets4, nets6, &|key| exists.contains(key)) else {
            no_address(name, defined.map(|(object, _)| *object), report);
            continue;
        };
        let joined = members.of(name, defined.map_or(&no_selector, |(_, spec)| &spec.selector));
        for member in &joined {
            let first = drafts.first_service.entry(member.name.clone());
            first.or_insert_with(|| name.name.clone());
        }
        drafts.note_joined(name, &joined);
        if let Some((object, _)) = defined {
            unreachable_members(object, &joined, report);
        }
        let specs = match defined {
            Some((object, spec)) if !spec.ports.is_empty() => {
                undefined_ports(object, &spec.ports, &joined, report);
                spec.ports
                    .iter()
                    .map(|port| (port.clone(), Some(port.target_port)))
                    .collect()
            }
            _ => ports_of(&joined),
        };
        let ports = specs
            .into_iter()
            .map(|(spec, target)| {
                let id = allocations.port(name, spec.port, spec.protocol);
                draft_port(id, spec, target, &joined, &mut taken, report)
            })
            .collect();
        drafts.services.insert(
            name.clone(),
            Draft {
                vip4: vips.v4,
                vip6: vips.v6,
                ports,
            },
        );
    }
    for (object, _) in &sources.workloads {
        if !drafts
            .first_service
            .contains_key(&*format!("{}/{}", object.namespace(), object.id.name))
        {
            report.status(&object.id, ObjectState::Accepted, "no Service selects it by its labels");
        }
    }
    drafts
}

/// The ports of a service that no resource defines: those of its workloads.
fn ports_of(joined: &[&Member<'_>]) -> Vec<(ServicePortSpec, Option<u16>)> {
    let said = joined.iter().flat_map(|member| match member.origin {
        Origin::Run(workload) => workload.ports.iter().map(|p| (p.port, p.protocol, p.target)).collect(),
        Origin::Hand(spec) => spec
            .ports
            .iter()
            .map(|p| (p.port, p.protocol, p.target_port))
            .collect::<Vec<_>>(),
    });
    let ports: BTreeMap<(u16, Protocol), u16> = said
        .map(|(port, protocol, target)| ((port, protocol), target))
        .collect();
    ports
        .into_iter()
        .map(|((port, protocol), target_port)| {
            (
                ServicePortSpec {
                    name: None,
                    port,
                    target_port,
                    protocol,
                    app: AppProtocol::Unknown,
                },
                None,
            )
        })
        .collect()
}

fn draft_port(
    id: u32,
    spec: ServicePortSpec,
    target: Option<u16>,
    joined: &[&Member<'_>],
    taken: &mut HashMap<(SocketAddr, Protocol), (Arc<str>, Identity, Class)>,
    report: &mut Report,
) -> PortDraft {
    let ServicePortSpec {
        name,
        port,
        protocol,
        app,
        ..
    } = spec;
    let mut endpoints = Vec::new();
    let mut targets = BTreeSet::new();
    let mut class_targets = BTreeSet::new();
    let mut waited_for = false;
    for member in joined {
        let Some(target) = member.target(port, protocol, target) else {
            continue;
        };
        targets.insert((member.identity, target));
        class_targets.insert((member.class, target));
        let ready = member.ready(target, protocol);
        waited_for |= ready.is_empty() && member.promises(port, protocol);
        for address in ready {
            // One address belongs to one workload: the kernel tells identities and classes by it.
            let (holder, identity, class) = taken
                .entry((address, protocol))
                .or_insert_with(|| (member.name.clone(), member.identity, member.class));
            if (*identity, *class) != (member.identity, member.class) {
                // That a UDP server is there is a guess, and no reason to complain.
                if protocol == Protocol::Tcp {
                    report.diagnostics.push(clash(address, protocol, holder, member));
                }
                continue;
            }
            let endpoint = Endpoint {
                address,
                identity: member.identity,
                class: member.class,
                workload: member.name.clone(),
            };
            endpoints.push(Arc::new(endpoint));
        }
    }
    let pending = endpoints.is_empty() && waited_for;
    PortDraft {
        id,
        name,
        port,
        protocol,
        app,
        endpoints,
        targets,
        class_targets,
        pending,
    }
}

fn clash(address: SocketAddr, protocol: Protocol, holder: &str, member: &Member<'_>) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        file: String::new(),
        line: 0,
        column: 0,
        object: None,
        field: String::new(),
        reason: format!(
            "workload {} is left out at {address}/{protocol}: workload {holder}, of another account or with other labels, is there",
            member.name
        ),
        instead: Some("give each workload an address or a port of its own".to_owned()),
    }
}

/// `--port` of a port that the Service does not have.
fn undefined_ports(object: &Object, ports: &[ServicePortSpec], joined: &[&Member<'_>], report: &mut Report) {
    for member in joined {
        let Origin::Run(workload) = member.origin else { continue };
        if workload.service != object.id.name {
            continue;
        }
        let unknown: BTreeSet<u16> = workload
            .ports
            .iter()
            .map(|p| p.port)
            .filter(|n| ports.iter().all(|port| port.port != *n))
            .collect();
        for port in unknown {
            report.warn(
                object,
                &whole(object, "spec.ports"),
                format!(
                    "workload {} serves port {port}, which this service does not have",
                    workload.name
                ),
                format!("add `- port: {port}`"),
            );
        }
    }
}

/// Captured Workloads that nobody can call.
fn unreachable_members(object: &Object, joined: &[&Member<'_>], report: &mut Report) {
    for member in joined {
        if matches!(member.origin, Origin::Hand(spec) if spec.addresses.is_empty()) {
            report.warn(
                object,
                &whole(object, "spec.selector"),
                format!(
                    "workload {} has no address: nobody reaches it by this service",
                    member.name
                ),
                "add its `address`, or select others",
            );
        }
    }
}

fn no_address(name: &ServiceName, object: Option<&Object>, report: &mut Report) {
    let reason = format!("the ranges of virtual IPs are full: service {name} gets none and cannot be reached");
    let instead = "start the daemon with a larger --vip-cidr".to_owned();
    match object {
        Some(object) => {
            report.status(&object.id, ObjectState::Rejected, reason.clone());
            let at = whole(object, "");
            report
                .diagnostics
                .push(object.diagnostic(Severity::Error, &at, reason, Some(instead)));
        }
        None => report.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            file: String::new(),
            line: 0,
            column: 0,
            object: None,
            field: String::new(),
            reason,
            instead: Some(instead),
        }),
    }
}

fn whole(object: &Object, field: &str) -> Located<()> {
    Located {
        value: (),
        line: object.location.line,
        column: object.location.column,
        field: field.to_owned(),
    }
}
