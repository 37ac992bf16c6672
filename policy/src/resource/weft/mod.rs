//! Kinds of our own, `weft.mesh`: only what no standard has.

mod adapter;
mod mesh_config;
mod service_policy;
mod workload;

pub(crate) use self::{adapter::ADAPTER, mesh_config::MESH_CONFIG, service_policy::SERVICE_POLICY, workload::WORKLOAD};
pub use self::{
    adapter::{AdapterSpec, Target},
    mesh_config::{Enforcement, MeshConfigSpec},
    service_policy::ServicePolicySpec,
    workload::{CaptureSpec, WorkloadPort, WorkloadSpec},
};

const GROUP: &str = "weft.mesh";
