//! Events on the ring buffer: open, close, deny, and listeners coming and going.

use crate::Addr;

/// Kinds of [`Event`], in [`Event::kind`].
pub struct EventKind;

impl EventKind {
    /// A connection reached ESTABLISHED.
    pub const OPEN: u8 = 1;
    /// A connection closed; bytes and RTT are final.
    pub const CLOSE: u8 = 2;
    /// A connect was refused by policy; `errno` says how.
    pub const DENY: u8 = 3;
    /// A workload's socket listens on `address:port`.
    pub const LISTEN: u8 = 4;
    /// It does no more.
    pub const UNLISTEN: u8 = 5;
    /// A connection that would have been denied was let through, under audit.
    pub const AUDIT: u8 = 6;
    /// An established flow was cut, since it would now be denied.
    pub const CUT: u8 = 7;
}

/// One record on `weft_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC).
    pub time_ns: u64,
    /// cgroup id of the workload the socket belongs to.
    pub owner: u64,
    /// cgroup id of the workload at the other end, 0 = not known.
    pub peer_owner: u64,
    /// Generation the verdict was taken under.
    pub generation: u64,
    /// Payload sent by the dialling end.
    pub bytes_sent: u64,
    /// Payload received by the dialling end.
    pub bytes_received: u64,
    /// What the application asked for (LISTEN: what was bound).
    pub address: Addr,
    /// Port, wire order.
    pub port_be: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// [`crate::protocol`].
    pub protocol: u8,
    /// [`crate::reporter`].
    pub reporter: u8,
    /// [`crate::action`].
    pub verdict: u8,
    /// Positive errno of a denial.
    pub errno: u8,
    /// Explicit padding, zero.
    pub pad: u8,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Service port number.
    pub service: u32,
    /// Rule that decided.
    pub rule: u32,
    /// Smoothed round trip time, µs; 0 = none.
    pub rtt_us: u32,
    /// [`crate::sock_flags`].
    pub flags: u16,
    /// Explicit padding, zero.
    pub pad2: u16,
}

const _: () = assert!(size_of::<Event>() == 96);
