//! Types shared by the kernel programs and user space: keys, values and event records, and the pure functions on
//! which both sides must agree. Plain data, `no_std`, no pointers; see `README.md`.
#![no_std]

pub mod capacity;
mod config;
mod conn;
mod edge;
mod event;
mod flow;
#[cfg(test)]
mod layout;
mod policy;
mod service;
mod tuple;
mod versioned;

pub use config::{Config, LAYOUT, MAX_DEPTH, Workload, netns_flags, workload_flags};
pub use conn::{
    Asked, ConnRecord, MAX_ASKED, SockRecord, Translation, UNHEARD, circuit, opened, role, sock_flags, traits,
};
pub use edge::{EdgeCounters, EdgeKey, LATENCY_BUCKETS, LatencyHistogram, latency_bound_us, latency_bucket, reporter};
pub use event::{Event, EventKind};
pub use flow::{AddrOwner, FlowKey, FlowRecord, RuleCounters, flow_flags};
pub use policy::{ANY_IDENTITY, PolicyKey, PolicyValue, action, direction, mask_port, rank};
pub use service::{Backend, BackendKey, Dest, DestKey, External, backend_flags, dest_flags, dest_kind, external_guard};
pub use tuple::{Addr, ListenKey, ListenValue, LocalKey, MAX_MEMBERS, Member, Tuple};
pub use versioned::Versioned;

/// IP protocol numbers as they stand in keys (IANA).
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Datagram Congestion Control Protocol: judged, never carried.
    pub const DCCP: u8 = 33;
    /// Stream Control Transmission Protocol: judged, never carried.
    pub const SCTP: u8 = 132;
}

/// Identities that are no workload's; see `weft_policy::snapshot::Identity`, which must say the same.
pub mod identity {
    /// A client that is not captured.
    pub const UNKNOWN: u32 = 0;
    /// A local address that no record speaks for.
    pub const UNKNOWN_LOCAL: u32 = 1;
    /// Our own proxy.
    pub const PROXY: u32 = 2;
    /// A destination outside the mesh.
    pub const OUTSIDE: u32 = 3;
    /// First number given to a workload class.
    pub const FIRST: u32 = 256;
}

/// Classes that are no workload's; see `weft_policy::snapshot::Class`, which must say the same.
pub mod class {
    /// Nobody knows: no network policy has it as subject or peer.
    pub const NONE: u32 = 0;
    /// A local address that no record speaks for.
    pub const UNKNOWN_LOCAL: u32 = 1;
    /// Our own proxy.
    pub const PROXY: u32 = 2;
    /// An address outside the mesh that no range of a policy contains.
    pub const OUTSIDE: u32 = 3;
}

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($t:ty),+ $(,)?) => {$(
            // SAFETY: `repr(C)`, `Copy`, made of integers and arrays of them, padding explicit (const asserts beside each
            // type), so every bit pattern is a value and no byte is uninitialised.
            unsafe impl aya::Pod for $t {}
        )+};
    }
    pod!(
        crate::Addr,
        crate::Config,
        crate::Workload,
        crate::ConnRecord,
        crate::SockRecord,
        crate::EdgeKey,
        crate::EdgeCounters,
        crate::Event,
        crate::AddrOwner,
        crate::Versioned<crate::AddrOwner>,
        crate::FlowKey,
        crate::FlowRecord,
        crate::RuleCounters,
        crate::PolicyKey,
        crate::Versioned<crate::PolicyValue>,
        crate::DestKey,
        crate::Versioned<crate::Dest>,
        crate::BackendKey,
        crate::Versioned<crate::Backend>,
        crate::Versioned<crate::External>,
        crate::Tuple,
        crate::ListenKey,
        crate::LocalKey,
        crate::ListenValue,
    );
}
