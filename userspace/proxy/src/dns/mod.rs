//! DNS server of the mesh: captured workloads ask it whatever they ask.
//!
//! The kernel sends every query that a captured workload sends to port 53 here, over UDP and TCP, and says in the
//! local address it arrives at which namespace the workload is in. Names of services are answered from the snapshot,
//! everything else goes to the system's own resolvers, so that a program notices nothing.
//!
//! ```text
//! query --> decode --> judge (pure: snapshot, namespace, search domains) --> answer at once
//!                        \--> forward: own socket, own id, 800 ms in all --> checked response, or SERVFAIL
//! ```

mod answer;
mod config;
mod error;
mod forward;
mod limits;
mod message;
mod metrics;
mod server;
mod sockets;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use config::{DnsConfig, ResolvConf};
pub use error::DnsError;
pub use limits::{FORWARD_BUDGET, TTL};
pub use metrics::DnsMetrics;
pub use server::{DEFAULT_PORT, DnsServer, Namespaces};
pub use sockets::DnsSockets;
