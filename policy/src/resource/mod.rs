//! Kinds of resources: one file a kind, one line in `KINDS`.
//!
//! A kind is decoded from YAML into its own spec, whatever the version; what several dialects can say
//! is put into common words by [`crate::compile()`].

pub mod k8s;
mod object;
pub mod smi;
pub mod weft;

use crate::snapshot::ObjectRef;

pub use self::object::{AUDIT_ANNOTATION, DEFAULT_NAMESPACE, Location, Object};
pub(crate) use self::object::{Body, Key, Parsed, parse_file};

/// What an object says, by kind. Of most meshes most objects are Workloads: what is larger than theirs is in a box.
#[derive(Debug)]
pub enum Spec {
    Service(k8s::ServiceSpec),
    Namespace,
    ServiceAccount,
    NetworkPolicy(Box<k8s::NetworkPolicySpec>),
    TrafficTarget(Box<smi::TrafficTargetSpec>),
    HttpRouteGroup(smi::HttpRouteGroupSpec),
    TcpRoute(smi::PortRouteSpec),
    UdpRoute(smi::PortRouteSpec),
    TrafficSplit(Box<smi::TrafficSplitSpec>),
    MeshConfig(weft::MeshConfigSpec),
    Workload(weft::WorkloadSpec),
    ServicePolicy(Box<weft::ServicePolicySpec>),
    Adapter(weft::AdapterSpec),
}

/// Every kind that is understood. A further front end is a folder and its lines here.
pub(crate) const KINDS: &[&KindInfo] = &[
    &k8s::SERVICE,
    &k8s::NAMESPACE,
    &k8s::SERVICE_ACCOUNT,
    &k8s::NETWORK_POLICY,
    &smi::TRAFFIC_TARGET,
    &smi::HTTP_ROUTE_GROUP,
    &smi::TCP_ROUTE,
    &smi::UDP_ROUTE,
    &smi::TRAFFIC_SPLIT,
    &weft::MESH_CONFIG,
    &weft::WORKLOAD,
    &weft::SERVICE_POLICY,
    &weft::ADAPTER,
];

/// How a kind is named and read.
#[derive(Debug)]
pub(crate) struct KindInfo {
    /// Empty for the core group of Kubernetes.
    pub group: &'static str,
    /// Oldest first.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub scope: Scope,
    pub name: NameRule,
    /// `None`: refused, and the reason is in the context.
    pub decode: fn(&mut Body<'_, '_>) -> Option<Spec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `metadata.namespace`, else [`DEFAULT_NAMESPACE`].
    Namespaced,
    Cluster,
    /// With `metadata.namespace` it speaks of that namespace, without of the whole mesh.
    Either,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// Part of a DNS name.
    Label,
    Subdomain,
}

/// What only one object may have at a time, such as the split of a root service. The store refuses a second one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim(pub String);

// === impl KindInfo ===

impl KindInfo {
    /// The `apiVersion` of its newest version.
    pub fn newest(&self) -> String {
        let version = self.versions.last().copied().unwrap_or_default();
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }
}

// === impl Spec ===

impl Spec {
    /// What this object claims for itself alone.
    pub(crate) fn claim(&self, id: &ObjectRef) -> Option<Claim> {
        let namespace = id.namespace.as_deref().unwrap_or_default();
        match self {
            Self::TrafficSplit(split) => Some(Claim(format!(
                "the split of service {namespace}/{}",
                split.service.value
            ))),
            Self::ServicePolicy(policy) => Some(Claim(format!(
                "the ServicePolicy of service {namespace}/{}",
                policy.service.value
            ))),
            Self::MeshConfig(_) => Some(Claim(match &id.namespace {
                Some(namespace) => format!("the MeshConfig of namespace {namespace}"),
                None => "the MeshConfig of the mesh".to_owned(),
            })),
            _ => None,
        }
    }
}

/// API groups that have a kind of this name.
pub(crate) fn groups_of(kind: &str) -> impl Iterator<Item = &'static str> {
    KINDS
        .iter()
        .filter(move |info| info.kind == kind)
        .map(|info| info.group)
}

/// Names of all kinds, as `weft get` and messages list them.
pub fn kind_names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|info| info.kind)
}
