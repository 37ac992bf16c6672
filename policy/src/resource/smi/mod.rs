//! The Service Mesh Interface: `access`, `specs` and `split` of `smi-spec.io`, every released version.
//!
//! Older versions differ in shape only; each decoder reads them into the newest one's spec.

mod http_route_group;
mod port_route;
mod traffic_split;
mod traffic_target;

pub(crate) use self::{
    http_route_group::HTTP_ROUTE_GROUP,
    port_route::{TCP_ROUTE, UDP_ROUTE},
    traffic_split::TRAFFIC_SPLIT,
    traffic_target::TRAFFIC_TARGET,
};
pub use self::{
    http_route_group::HttpRouteGroupSpec,
    port_route::PortRouteSpec,
    traffic_split::{MAX_BACKENDS, MAX_WEIGHT, SplitBackendSpec, TrafficSplitSpec},
    traffic_target::{RouteKind, TargetRule, TrafficTargetSpec},
};

const ACCESS: &str = "access.smi-spec.io";
const SPECS: &str = "specs.smi-spec.io";
const SPLIT: &str = "split.smi-spec.io";
