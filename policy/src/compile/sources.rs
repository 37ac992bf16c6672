//! The objects in force, by kind.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    labels::Labels,
    resource::{
        Object, Spec,
        k8s::{NetworkPolicySpec, ServiceSpec},
        smi::{HttpRouteGroupSpec, PortRouteSpec, TrafficSplitSpec, TrafficTargetSpec},
        weft::{AdapterSpec, Enforcement, MeshConfigSpec, ServicePolicySpec, WorkloadSpec},
    },
    snapshot::{Account, L7, ServiceName},
    store::Store,
};

/// Namespace and name.
pub(super) type Name<'a> = (&'a str, &'a str);

#[derive(Default)]
pub(super) struct Sources<'a> {
    pub services: BTreeMap<ServiceName, (&'a Object, &'a ServiceSpec)>,
    pub targets: Vec<(&'a Object, &'a TrafficTargetSpec)>,
    /// By namespace and name.
    pub network_policies: Vec<(&'a Object, &'a NetworkPolicySpec)>,
    /// Labels of those that a Namespace declares.
    pub namespaces: BTreeMap<&'a str, &'a Labels>,
    pub http_groups: BTreeMap<Name<'a>, &'a HttpRouteGroupSpec>,
    pub tcp_routes: BTreeMap<Name<'a>, &'a PortRouteSpec>,
    pub udp_routes: BTreeMap<Name<'a>, &'a PortRouteSpec>,
    /// By root service.
    pub splits: BTreeMap<ServiceName, (&'a Object, &'a TrafficSplitSpec)>,
    /// By namespace; `None`: of the mesh.
    pub configs: BTreeMap<Option<&'a str>, (&'a Object, &'a MeshConfigSpec)>,
    /// By service.
    pub policies: BTreeMap<ServiceName, (&'a Object, &'a ServicePolicySpec)>,
    pub workloads: Vec<(&'a Object, &'a WorkloadSpec)>,
    pub adapters: Vec<(&'a Object, &'a AdapterSpec)>,
    /// Declared by a ServiceAccount.
    pub accounts: BTreeSet<Account>,
    pub all: Vec<&'a Object>,
}

impl<'a> Sources<'a> {
    pub fn gather(store: &'a Store) -> Self {
        let mut sources = Self::default();
        for object in store.objects() {
            let object = &**object;
            sources.all.push(object);
            let name = (object.namespace(), object.id.name.as_str());
            match &object.spec {
                Spec::Service(spec) => {
                    sources
                        .services
                        .insert(service_name(object, &object.id.name), (object, spec));
                }
                Spec::Namespace => {
                    sources.namespaces.insert(&object.id.name, &object.labels);
                }
                Spec::NetworkPolicy(spec) => sources.network_policies.push((object, spec)),
                Spec::ServiceAccount => {
                    let account = Account {
                        namespace: name.0.to_owned(),
                        name: name.1.to_owned(),
                    };
                    sources.accounts.insert(account);
                }
                Spec::TrafficTarget(spec) => sources.targets.push((object, spec)),
                Spec::HttpRouteGroup(spec) => {
                    sources.http_groups.insert(name, spec);
                }
                Spec::TcpRoute(spec) => {
                    sources.tcp_routes.insert(name, spec);
                }
                Spec::UdpRoute(spec) => {
                    sources.udp_routes.insert(name, spec);
                }
                Spec::TrafficSplit(spec) => {
                    sources
                        .splits
                        .insert(service_name(object, &spec.service.value), (object, spec));
                }
                Spec::MeshConfig(spec) => {
                    sources.configs.insert(object.id.namespace.as_deref(), (object, spec));
                }
                Spec::Workload(spec) => sources.workloads.push((object, spec)),
                Spec::Adapter(spec) => sources.adapters.push((object, spec)),
                Spec::ServicePolicy(spec) => {
                    sources
                        .policies
                        .insert(service_name(object, &spec.service.value), (object, spec));
                }
            }
        }
        sources
    }

    /// Whether denials of a namespace (`None`: of the mesh) are only reported.
    pub fn is_audited(&self, namespace: Option<&str>) -> bool {
        let of = |key: Option<&str>| self.configs.get(&key).and_then(|(_, config)| config.enforcement);
        namespace.and_then(|namespace| of(Some(namespace))).or_else(|| of(None)) == Some(Enforcement::Audit)
    }

    /// Who works per request for a service.
    pub fn l7(&self, service: &ServiceName) -> &L7 {
        let declared = self.policies.get(service).and_then(|(_, policy)| policy.l7.as_ref());
        declared.map_or(&L7::Auto, |l7| &l7.value)
    }
}

/// A service of the object's namespace.
pub(super) fn service_name(object: &Object, name: &str) -> ServiceName {
    ServiceName {
        namespace: object.id.namespace.clone().unwrap_or_default(),
        name: name.into(),
    }
}
