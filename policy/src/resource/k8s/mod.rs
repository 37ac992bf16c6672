//! Kinds of Kubernetes' own groups.

mod label_selector;
mod namespace;
mod network_policy;
mod service;
mod service_account;

pub(crate) use self::service::protocol;
pub use self::{
    label_selector::LabelSelector,
    network_policy::{NetworkPolicySpec, PolicyPeer, PolicyPort, PolicyRule, PortMatch},
    service::{ServicePortSpec, ServiceSpec},
};
pub(crate) use self::{
    namespace::NAMESPACE, network_policy::NETWORK_POLICY, service::SERVICE, service_account::SERVICE_ACCOUNT,
};
