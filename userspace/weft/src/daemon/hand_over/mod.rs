//! Upgrade without a gap: a running daemon hands over to its successor.
//!
//! ```text
//! running daemon                                   weft daemon --take-over
//!   | <- POST /v1/hand-over, Upgrade: weft-hand-over/1 -- |   the admin connection becomes a [`Channel`]
//!   | <- offer: layout, places ------------------------- |   refused in words: nothing happened
//!   close the gate, rest the keepers                      |   proxy, DNS and metrics go on serving
//!   | -- descriptors, state --------------------------> |   listening sockets (with their queues), locks
//!   |                                                     |   adopt pins, replace programs, publish, serve
//!   | <- serving --------------------------------------- |   from here on both accept
//!   | -- flows, yours ---------------------------------> |   and from here on only the new one
//!   drain, for at most so long                            |   read events, follow workloads
//!   | -- flows, end -----------------------------------> |
//! ```
//!
//! Up to `yours` the running daemon can take everything back, and does if the channel breaks or the successor is late.
//! What makes it gapless: a listening socket is one object with one queue, whoever has descriptors of it; a lock belongs to
//! the open file description that is passed; and the kernel finds our listeners by the daemon's cgroup, in which both are.

mod channel;
mod gate;
mod give;
mod sockets;
mod take;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_adapters::Flow;

pub use channel::Channel;
pub use gate::{Gate, HandedOver};
pub use give::Giver;
pub use sockets::{Sockets, names};
pub use take::{Taken, absolute};

/// Token of the protocol in the HTTP upgrade. Its number is raised with any change that an older daemon would misread.
pub const PROTOCOL: &str = "weft-hand-over/1";

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    Offer(Offer),
    /// Its listeners are served and its snapshot is in force.
    Serving,
}

/// What the running daemon says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tell {
    /// Nothing happened.
    Refused {
        reason: String,
    },
    /// Names of the descriptors that come with this message, in their order.
    Descriptors(Vec<String>),
    State(State),
    /// Kept flow records, oldest first.
    Flows(Vec<Flow>),
    Yours,
}

/// Who wants to take over, and what.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    version: String,
    pid: u32,
    /// [`weft_abi::LAYOUT`] of the kernel's tables.
    layout: u32,
    bpffs: PathBuf,
    cgroup: PathBuf,
    /// Inode number of the network namespace.
    netns: u64,
}

/// What cannot be read back from the kernel or from files.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    pid: u32,
    /// Numbers of namespaces in DNS.
    namespaces: Vec<String>,
}
