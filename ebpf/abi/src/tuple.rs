//! Addresses as they stand in keys: one form for both families, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2), so that a
//! dual-stack socket that dials `::ffff:10.0.0.1` meets the same entries as an IPv4 one.

/// An IP address, IPv4 as `::ffff:a.b.c.d`: four words of wire-order bytes, as the kernel's contexts hold them.
///
/// Words rather than bytes: compared, copied and tested in four instructions each.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub [u32; 4]);

/// Third word of every v4-mapped address.
const MAPPED: u32 = 0x0000_ffffu32.to_be();

impl Addr {
    /// `0.0.0.0` in v4-mapped form.
    pub const UNSPECIFIED_V4: Self = Self([0, 0, MAPPED, 0]);
    /// `::`.
    pub const UNSPECIFIED_V6: Self = Self([0; 4]);
    /// `127.0.0.1` in v4-mapped form.
    pub const LOCALHOST_V4: Self = Self([0, 0, MAPPED, 0x7f00_0001u32.to_be()]);
    /// `::1`.
    pub const LOCALHOST_V6: Self = Self([0, 0, 0, 1u32.to_be()]);

    /// v4-mapped form of an IPv4 address, given as the word that holds its wire-order bytes.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// From the 16 wire-order bytes.
    #[inline(always)]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The 16 wire-order bytes.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ]
    }

    /// Whether the address is IPv4 in v4-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        self.0[0] | self.0[1] | self.0[2] == 0 && self.0[3] == 1u32.to_be()
    }
}

/// A connection as one of its ends sees it. 40 bytes, ports in wire order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// This end's address.
    pub local: Addr,
    /// The other end's address.
    pub remote: Addr,
    /// This end's port.
    pub local_port_be: u16,
    /// The other end's port.
    pub remote_port_be: u16,
    /// Low half of the network namespace cookie: loopback tuples repeat across namespaces. Cookies count up from 1
    /// (`net/core/net_namespace.c`), so the low half is unique for the first 2^32 namespaces of a boot.
    pub netns: u32,
}

impl Tuple {
    /// The key of the connection in `weft_conns`: its network namespace counts only where an end is loopback.
    ///
    /// A connection between two namespaces of a machine (pods) has another cookie at each end, but one tuple. Tuples of
    /// routable addresses are unique on a machine, unless two of its namespaces use the same addresses (tenants behind
    /// NAT): those must not share a captured cgroup, for one's record could be taken for the other's.
    #[inline(always)]
    pub const fn conn_key(mut self) -> Self {
        if !self.local.is_loopback() && !self.remote.is_loopback() {
            self.netns = 0;
        }
        self
    }

    /// The same connection as the other end sees it.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port_be: self.remote_port_be,
            remote_port_be: self.local_port_be,
            netns: self.netns,
        }
    }
}

/// `weft_local` key: an address that some namespace of this machine has.
///
/// The value is the namespace (low half of its cookie). Twice in the table: with the namespace itself, which answers for
/// sockets in it, and with 0, which answers for the machine's other namespaces, where the address is not there as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalKey {
    /// The address, not loopback.
    pub addr: Addr,
    /// Low half of the network namespace cookie, or 0.
    pub netns: u32,
}

/// `weft_listen` key: something listens here (TCP) or is bound here (UDP). Unspecified addresses as they were bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenKey {
    /// Bound address.
    pub addr: Addr,
    /// Low half of the network namespace cookie.
    pub netns: u32,
    /// Bound port, wire order.
    pub port_be: u16,
    /// [`crate::protocol`].
    pub protocol: u8,
    /// 1: `::` of a socket that takes nothing by IPv4. Else 0.
    pub only_v6: u8,
}

/// `weft_listen` value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenValue {
    /// cgroup id of the listener's owner; the daemon's own for our listeners. Of several the first, until its last socket goes.
    pub owner: u64,
    /// Listening sockets (SO_REUSEPORT groups count each member); the entry goes at zero.
    pub count: u64,
    /// Whose they are. Owners beyond these only count.
    pub members: [Member; MAX_MEMBERS],
}

/// Sockets of one owner at an address that several share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// cgroup id.
    pub owner: u64,
    /// Sockets; 0: the place is free.
    pub count: u64,
}

/// Owners that are told apart at one address: instances of a service that is being restarted, and some.
pub const MAX_MEMBERS: usize = 4;

const _: () = assert!(size_of::<Tuple>() == 40);
const _: () = assert!(size_of::<LocalKey>() == 20);
const _: () = assert!(size_of::<ListenKey>() == 24);
const _: () = assert!(size_of::<ListenValue>() == 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_in_both_families() {
        let v4 = |octets| Addr::v4(u32::from_ne_bytes(octets));
        assert!(v4([127, 53, 0, 1]).is_loopback() && !v4([128, 0, 0, 1]).is_loopback());
        assert!(Addr::LOCALHOST_V6.is_loopback() && !Addr::UNSPECIFIED_V6.is_loopback());
        assert!(Addr::UNSPECIFIED_V4.is_v4() && !Addr::LOCALHOST_V6.is_v4());
    }

    #[test]
    fn both_ends_of_a_connection_between_namespaces_have_one_key() {
        let a = Tuple {
            local: Addr::v4(0x0a58_0002u32.to_be()),
            remote: Addr::v4(0x0a58_0003u32.to_be()),
            local_port_be: 1,
            remote_port_be: 2,
            netns: 7,
        };
        let b = Tuple {
            netns: 8,
            ..a.reversed()
        };
        assert_eq!(a.conn_key(), b.reversed().conn_key());
        let loopback = Tuple {
            remote: Addr::LOCALHOST_V4,
            ..a
        };
        assert_eq!(loopback.conn_key(), loopback);
        assert_ne!(loopback.conn_key(), Tuple { netns: 8, ..loopback }.conn_key());
    }

    #[test]
    fn octets_are_wire_order_both_ways() {
        let octets = [0x20, 1, 0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(Addr::from_octets(octets).octets(), octets);
        assert_eq!(Addr::LOCALHOST_V4.octets()[10..], [0xff, 0xff, 127, 0, 0, 1]);
    }
}
