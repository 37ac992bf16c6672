//! Kinds of the core group of Kubernetes.

mod namespace;
mod service;
mod service_account;

pub(crate) use self::service::protocol;
pub use self::service::{ServicePortSpec, ServiceSpec};
pub(crate) use self::{namespace::NAMESPACE, service::SERVICE, service_account::SERVICE_ACCOUNT};
