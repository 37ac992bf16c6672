//! Telemetry aggregated in the kernel, one entry an edge.

/// Which end counted.
pub mod reporter {
    /// The dialling end.
    pub const SOURCE: u8 = 0;
    /// The accepting end.
    pub const DESTINATION: u8 = 1;
    /// A packet hook of a device (tc): bytes are those of whole packets, as the network layer sees them.
    pub const DEVICE: u8 = 2;
}

/// `weft_edges` key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Service port number, 0 = reached by its own address.
    pub service: u32,
    /// Destination port, host order.
    pub port: u16,
    /// [`crate::protocol`].
    pub protocol: u8,
    /// [`crate::action`].
    pub verdict: u8,
    /// [`reporter`].
    pub reporter: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 3],
}

/// `weft_edges` value, per CPU. Counters only grow; bytes are payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Connections that reached ESTABLISHED (or were denied, under `verdict` DENY).
    pub opened: u64,
    /// Connections closed after ESTABLISHED.
    pub closed: u64,
    /// Connections that never reached ESTABLISHED.
    pub refused: u64,
    /// Closed without the FIN exchange.
    pub reset: u64,
    /// Payload this end sent.
    pub bytes_sent: u64,
    /// Payload this end received.
    pub bytes_received: u64,
}

const _: () = assert!(size_of::<EdgeKey>() == 20);
const _: () = assert!(size_of::<EdgeCounters>() == 48);
