//! What `weft status` says about a snapshot: services and the way their connections go, resources by state, workloads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
};

use weft_policy::{AccessDefault, DataPath, L7, ObjectState, Service, ServicePort, Snapshot, Split, Workload};

use crate::admin::api::{
    BackendView, EndpointView, ResourceCount, ServicePortView, ServiceView, SplitView, WorkloadState, WorkloadView,
};

/// Resources of each kind by state.
pub fn resource_counts(snapshot: &Snapshot) -> Vec<ResourceCount> {
    let mut counts = BTreeMap::<&str, ResourceCount>::new();
    for status in &snapshot.statuses {
        let count = counts.entry(&status.object.kind).or_default();
        (*status.object.kind).clone_into(&mut count.kind);
        *match status.state {
            ObjectState::Accepted => &mut count.accepted,
            ObjectState::Pending => &mut count.pending,
            ObjectState::NotEnforced => &mut count.not_enforced,
            ObjectState::Rejected => &mut count.rejected,
        } += 1;
    }
    counts.into_values().collect()
}

/// All services, by namespace and name.
pub fn services(snapshot: &Snapshot) -> Vec<ServiceView> {
    snapshot
        .services
        .values()
        .map(|service| service_view(snapshot, service))
        .collect()
}

/// The workloads of `weft run` with the identities that the snapshot gives them, and those that resources describe. `inside`
/// says of a network namespace's cookie whether our servers are there.
pub fn workloads(snapshot: &Snapshot, running: Vec<WorkloadView>, inside: impl Fn(u64) -> bool) -> Vec<WorkloadView> {
    let identities: HashMap<_, _> = snapshot
        .workloads
        .iter()
        .map(|workload| (&*workload.name, workload.identity.0))
        .collect();
    let mut views: Vec<_> = running
        .into_iter()
        .map(|view| WorkloadView {
            identity: identities.get(view.name.as_str()).copied(),
            ..view
        })
        .collect();
    let known: BTreeSet<_> = views.iter().map(|view| view.name.clone()).collect();
    let declared = snapshot
        .workloads
        .iter()
        .filter(|workload| !known.contains(&*workload.name));
    views.extend(declared.map(|workload| {
        WorkloadView {
            name: workload.name.to_string(),
            namespace: workload.namespace.to_string(),
            service: workload.service.as_deref().map(str::to_owned),
            account: workload.account.to_string(),
            identity: Some(workload.identity.0),
            state: state_of(workload, &inside),
            ports: Vec::new(),
            listening: Vec::new(),
            labels: workload.labels.to_map(),
            cgroup: workload.capture.as_ref().map(|capture| PathBuf::from(&capture.cgroup)),
            cgroup_id: workload.cgroup,
            netns: workload
                .capture
                .as_ref()
                .and_then(|capture| capture.netns.as_ref().map(PathBuf::from)),
            started: None,
            command: Vec::new(),
        }
    }));
    views
}

/// Of a workload that a resource describes.
fn state_of(workload: &Workload, inside: impl Fn(u64) -> bool) -> WorkloadState {
    match &workload.capture {
        None => WorkloadState::Declared,
        Some(capture) => match &capture.found {
            Some(found) if found.problem.is_none() && found.netns.is_none_or(inside) => WorkloadState::Captured,
            _ => WorkloadState::Pending,
        },
    }
}

fn service_view(snapshot: &Snapshot, service: &Service) -> ServiceView {
    ServiceView {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        vip4: service.vip4,
        vip6: service.vip6,
        failure_mode: service.failure_mode,
        acceleration: service.acceleration,
        ports: service
            .ports
            .iter()
            .map(|port| port_view(snapshot, service, port))
            .collect(),
    }
}

fn port_view(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> ServicePortView {
    let (mut path, why) = path_of(snapshot, port);
    if path == DataPath::Proxy && matches!(service.l7, L7::External { .. }) {
        path = DataPath::External;
    }
    ServicePortView {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol,
        http: port.http,
        path,
        why,
        endpoints: port
            .endpoints
            .iter()
            .map(|endpoint| EndpointView {
                address: endpoint.address,
                workload: endpoint.workload.to_string(),
            })
            .collect(),
        pending: port.pending,
        split: port.split.as_deref().map(split_view),
    }
}

fn split_view(split: &Split) -> SplitView {
    let backends = split.backends.iter().map(|backend| BackendView {
        namespace: backend.service.namespace.to_string(),
        service: backend.service.name.to_string(),
        weight: backend.weight,
        missing: backend.port.is_none(),
    });
    SplitView {
        rule: (*split.object).clone(),
        backends: backends.collect(),
    }
}

/// Who carries connections to a port, and why. Access rules may send those of some clients to the proxy only.
fn path_of(snapshot: &Snapshot, port: &ServicePort) -> (DataPath, String) {
    if let Some(why) = &port.proxied {
        return (DataPath::Proxy, why.clone());
    }
    let judges: BTreeSet<_> = port
        .endpoints
        .iter()
        .filter_map(|endpoint| Some((endpoint, snapshot.access.get(&endpoint.identity)?)))
        .filter(|(_, policy)| policy.default == AccessDefault::Deny)
        .flat_map(|(endpoint, policy)| {
            policy.allow.iter().filter(|rule| {
                rule.http.is_some()
                    && !rule.except.contains(&endpoint.address.port())
                    && rule.protocol == port.protocol
                    && rule
                        .ports
                        .as_ref()
                        .is_none_or(|ports| ports.contains(&endpoint.address.port()))
            })
        })
        .map(|rule| rule.object.to_string())
        .collect();
    if judges.is_empty() {
        return (DataPath::Kernel, "nothing asks for the proxy".to_owned());
    }
    let judges = judges.into_iter().collect::<Vec<_>>().join(", ");
    (DataPath::Proxy, format!("requests are judged by {judges}"))
}
