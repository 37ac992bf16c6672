//! Loads, pins, attaches, fills and reads the kernel side.
//!
//! [`Dataplane::start`] makes or re-adopts everything below the daemon's bpffs directory; [`Dataplane::publish`] puts a
//! [`weft_policy::Snapshot`] in force in one instant; [`Events`] and [`Dataplane::edges`] give telemetry back. The
//! kernel side outlives the process: only [`uninstall`] takes it away.

mod attach;
mod bpffs;
mod canary;
mod cgroup;
mod connection;
mod cut;
mod default_acceleration;
mod doctor;
mod error;
mod events;
mod foreign;
mod inbound;
mod loader;
mod lock;
mod netlink;
mod publish;
mod recorded;
mod selftest;
mod sizes;
pub mod sources;
mod sys;
mod tables;
mod uninstall;
mod unrecorded;
mod verify;

pub use canary::{Verdict, is_canary, prove};
pub use cgroup::{Cgroup, OWN as OWN_CGROUPS, find_cgroup2, id_of};
pub use connection::{Connection, Connections};
pub use cut::{Doomed, Established};
pub use default_acceleration::DefaultAcceleration;
pub use doctor::{Examined, Feature, Hook, examine, features};
pub use error::{AFTER_A_CHANGED_LAYOUT, DataplaneError};
pub use events::{Events, monotonic_ns};
pub use inbound::{OWN_NETNS, device_of};
pub use loader::{Dataplane, DataplaneConfig, Inherited, Prepared, ShortCircuit};
pub use publish::{Plan, Published};
pub use sizes::{KeptSize, SIZED_MAPS, Shape, SizedMap};
pub use sys::{give_code_back, has_tcx, netns_cookie};
pub use tables::{
    Edge, Namespaces,
    errs::KernelError,
    netns::local_addresses,
    rules::RuleUse,
    telemetry::{Listener, ip_addr, socket_addr},
};
pub use uninstall::{UninstallReport, uninstall};
pub use unrecorded::{OpenSocket, open_sockets};
pub use verify::{Verification, VerifiedProgram, verify};
