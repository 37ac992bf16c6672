//! Services and their backends.

use crate::Addr;

/// `weft_dests` key: an address and port that means something in the mesh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DestKey {
    /// Virtual IP or endpoint address.
    pub addr: Addr,
    /// Port, wire order; 0 = the virtual IP itself (any port that the service does not have).
    pub port_be: u16,
    /// [`crate::protocol`]; 0 with `port_be` 0.
    pub protocol: u8,
    /// Explicit padding, zero.
    pub pad: u8,
}

/// What a [`DestKey`] is.
pub mod dest_kind {
    /// No entry under this generation.
    pub const ABSENT: u8 = 0;
    /// A service port on a virtual IP: pick a backend.
    pub const SERVICE: u8 = 1;
    /// A workload's own address.
    pub const ENDPOINT: u8 = 2;
    /// A virtual IP without this port: refused.
    pub const NO_PORT: u8 = 3;
}

/// Flags of [`Dest`].
pub mod dest_flags {
    /// Connections visit the proxy whatever the access policy says.
    pub const PROXIED: u8 = 1;
    /// What new connections that need the proxy get while there is none: direct (set) or refused (clear).
    pub const FAIL_OPEN_ROUTE: u8 = 2;
    /// The same where an access rule needs the proxy.
    pub const FAIL_OPEN_ACCESS: u8 = 4;
    /// Short-circuit towards the proxy.
    pub const ACCELERATE: u8 = 8;
    /// Its backends have different identities: with [`PROXIED`], the proxy judges, which alone knows the one it picks.
    pub const MIXED: u8 = 16;
}

/// `weft_dests` value (under [`crate::Versioned`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dest {
    /// Number of the service port, for edges and events; 0 = none.
    pub service: u32,
    /// Identity of an endpoint; of a service: that of its first backend, for events when there is none to pick.
    pub identity: u32,
    /// Backend set for IPv4 sockets ([`crate::BackendKey::set`]).
    pub set4: u32,
    /// How many backends it has.
    pub count4: u32,
    /// The same for IPv6 sockets; its addresses may be v4-mapped.
    pub set6: u32,
    /// How many backends it has.
    pub count6: u32,
    /// Class of an endpoint; of a service: that of its first backend.
    pub class: u32,
    /// [`dest_kind`].
    pub kind: u8,
    /// [`dest_flags`].
    pub flags: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 2],
}

/// `weft_backends` key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// Which set.
    pub set: u32,
    /// Slot, 0 to count - 1.
    pub slot: u32,
}

/// `weft_backends` value (under [`crate::Versioned`]): one slot of an alias table.
///
/// Weighted choice in O(1) and exact to 2^-32 (Walker 1977, Vose 1991): pick a slot evenly, then keep it if a second
/// random number is at most `threshold`, else take `alias`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Where to connect.
    pub addr: Addr,
    /// Port, wire order; 0 = this share leads nowhere and is refused.
    pub port_be: u16,
    /// Explicit padding, zero.
    pub pad: u16,
    /// Identity of the workload there.
    pub identity: u32,
    /// Its class.
    pub class: u32,
    /// Service port it was reached by (a split's leaf).
    pub service: u32,
    /// Keep this slot if `random <= threshold`.
    pub threshold: u32,
    /// Else take this one.
    pub alias: u32,
}

const _: () = assert!(size_of::<DestKey>() == 20);
const _: () = assert!(size_of::<Dest>() == 32);
const _: () = assert!(size_of::<Backend>() == 40);
