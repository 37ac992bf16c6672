//! The userspace proxy: what the kernel cannot judge or route alone visits it.
//!
//! One worker thread a core accepts captured connections ([`listen`]), asks the kernel side where each wanted to go
//! ([`Origin`]), tells from the first bytes what it speaks ([`detect`]), and then either works request by request
//! ([`http`]) or moves bytes ([`tcp`]). Both ask the same [`route`] and [`balance`] where to, and the same snapshot
//! whether they may; [`filter`] lets adapters see what passes. The README of this folder has the drawing.

#![forbid(unsafe_code)]

pub mod balance;
pub mod callout;
mod config;
mod conn;
mod context;
pub mod detect;
pub mod dns;
mod error;
pub mod filter;
pub mod http;
mod idle;
mod io;
mod judge;
mod last;
pub mod limits;
pub mod listen;
mod metrics;
pub mod netns;
mod pick;
mod report;
pub mod route;
mod tcp;
mod ticks;
mod upstream;
mod watch;
mod wire;
mod worker;

pub use callout::Callouts;
pub use config::{DEFAULT_INBOUND_PORT, DEFAULT_PORT, ProxyConfig, default_addresses};
pub use context::{ConnContext, Origin};
pub use error::{DataError, FaultSide, ProxyError};
pub use listen::{DrainReport, NetnsListeners, Workers, WorkersHandle};
pub use metrics::{ConnectionLabels, ConnectionProtocol, ProxyMetrics, RequestLabels, RequestOutcome, Spread};
pub use netns::Netns;
pub use watch::{InForce, SnapshotPublisher, SnapshotWatch};
