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
    /// Connections visit the proxy whatever the access policy says. Of an endpoint: where adapters guard its service port.
    pub const PROXIED: u8 = 1;
    /// What new connections that need the proxy get while there is none: direct (set) or refused (clear).
    pub const FAIL_OPEN_ROUTE: u8 = 2;
    /// The same where an access rule needs the proxy.
    pub const FAIL_OPEN_ACCESS: u8 = 4;
    /// Short-circuit what the proxy reads.
    pub const ACCELERATE: u8 = 8;
    /// Its backends have different identities: with [`PROXIED`], the proxy judges, which alone knows the one it picks.
    pub const MIXED: u8 = 16;
    /// The proxy that its connections visit is a foreign one: [`External`].
    pub const EXTERNAL: u8 = 32;
    /// With [`ACCELERATE`]: short-circuit both ways, where both ends are in one network namespace.
    pub const FULL: u8 = 64;
}

/// Flags of [`Backend`].
pub mod backend_flags {
    /// Nobody on the way here asks the access rules about requests that protect this backend: where such a rule would be
    /// needed, the connection is refused.
    pub const UNASKED: u16 = 1;
    /// With [`UNASKED`]: let through and reported instead.
    pub const AUDITED: u16 = 2;
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
    /// [`backend_flags`].
    pub flags: u16,
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

/// `weft_externals` value (under [`crate::Versioned`]): the foreign proxy of a service port, by its number
/// ([`Dest::service`]); under [`external_guard`] of its port, whose listener that port is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// Where it takes connections to IPv4 endpoints; zero: nowhere.
    pub addr4: Addr,
    /// Where it takes connections to IPv6 endpoints; zero: nowhere.
    pub addr6: Addr,
    /// cgroup id of the foreign proxy.
    pub cgroup: u64,
    /// Its port, wire order.
    pub port_be: u16,
    /// Explicit padding, zero.
    pub pad: [u8; 6],
}

/// Key of `weft_externals` by which a port of a foreign proxy is found. Numbers of service ports are below it.
#[inline(always)]
pub const fn external_guard(port_be: u16) -> u32 {
    1 << 31 | port_be as u32
}

const _: () = assert!(size_of::<External>() == 48);
const _: () = assert!(size_of::<DestKey>() == 20);
const _: () = assert!(size_of::<Dest>() == 32);
const _: () = assert!(size_of::<Backend>() == 40);
