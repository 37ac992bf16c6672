//! Whether [`LAYOUT`] was raised with a change of what pinned maps hold: a fingerprint of every type that is in one.
//!
//! What a field means is not in it: who gives a field another meaning raises [`LAYOUT`] without being told.

use core::mem::offset_of;

use crate::*;

/// Every layout since the check is here, and its fingerprint. Lines are added, never changed: maps of those before are pinned on
/// machines somewhere.
const KNOWN: &[(u32, u64)] = &[
    (6, 0xe0e2_0469_bd14_670e),
    (7, 0x50c3_7b13_46e4_fe5e),
    (8, 0x8c9b_fd2a_3c01_da4f),
];

/// FNV-1a, 64 bits.
struct Fingerprint(u64);

impl Fingerprint {
    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            self.0 = (self.0 ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        self
    }

    const fn number(self, number: usize) -> Self {
        self.bytes(&(number as u64).to_le_bytes())
    }
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Name and size of each type; name, offset and size of each field. A field that is not listed is not compiled.
macro_rules! fingerprint {
    ($($type:ident { $($field:ident),+ $(,)? })+) => {{
        let fingerprint = Fingerprint(0xcbf2_9ce4_8422_2325);
        $(
            const _: fn($type) = |value| {
                let $type { $($field: _),+ } = value;
            };
            let fingerprint = fingerprint.bytes(stringify!($type).as_bytes()).number(size_of::<$type>());
            $(
                let fingerprint = fingerprint
                    .bytes(stringify!($field).as_bytes())
                    .number(offset_of!($type, $field))
                    .number(size_of_field(|value: &$type| &value.$field));
            )+
        )+
        fingerprint.0
    }};
}

type Versions = Versioned<u64>;

const FINGERPRINT: u64 = fingerprint! {
    Config { generation, daemon_cgroup, netns_cookie, layout, port_prefixes, level, proxy_port_be, dns_port_be, short_circuit, network, inbound_port_be, pad }
    Workload { identity, class, namespace, flags }
    SockRecord { owner, generation, direct_bytes, heard_direct, flags, role, traits, verdict, circuit, protocol, opened, flushed_at, direct_flushed_at, netns, service, peer_owner, started_ns, flushed_direct, flushed_acked, flushed_received, acked_base, received_base, original, translated, bound, translated_port_be, original_port_be, source, destination, rule, source_class, destination_class, target_port_be, bound_port_be, flushed_segments_sent, flushed_segments_received, flushed_retransmits }
    ConnRecord { owner, generation, started_ns, original, original_port_be, flags, source, destination, service, rule, source_class, destination_class, writer, verdict, pad, cookie, direct }
    Translation { original, translated, original_port_be, translated_port_be }
    Asked { translations, count }
    EdgeKey { source, destination, service, port, protocol, verdict, reporter, pad }
    LatencyHistogram { sum_us, buckets }
    EdgeCounters { opened, closed, refused, reset, bytes_sent, bytes_received, segments_sent, segments_received, retransmits, connect, rtt }
    Event { time_ns, owner, peer_owner, generation, bytes_sent, bytes_received, address, port_be, kind, protocol, reporter, verdict, errno, pad, source, destination, service, rule, rtt_us, flags, pad2 }
    FlowKey { tuple, protocol }
    FlowRecord { owner, generation, seen_ns, source, destination, source_class, destination_class, service, rule, verdict, flags, port_be, peer }
    AddrOwner { identity, class }
    RuleCounters { allowed, denied, audited }
    PolicyKey { subject, peer, port, prefix, protocol, direction, pad }
    PolicyValue { rule, rank }
    DestKey { addr, port_be, protocol, pad }
    Dest { service, identity, set4, count4, set6, count6, class, kind, flags, pad }
    BackendKey { set, slot }
    Backend { addr, port_be, flags, identity, class, service, threshold, alias }
    External { addr4, addr6, cgroup, port_be, pad }
    Tuple { local, remote, local_port_be, remote_port_be, netns }
    LocalKey { addr, netns }
    ListenKey { addr, netns, port_be, protocol, only_v6 }
    ListenValue { owner, count, members }
    Member { owner, count }
    Versions { since, current, previous }
};

#[test]
fn a_changed_layout_has_a_number_of_its_own() {
    assert_eq!(
        (LAYOUT, FINGERPRINT),
        KNOWN[KNOWN.len() - 1],
        "LAYOUT and fingerprint of what pinned maps hold; changed: raise LAYOUT in config.rs and add the two here",
    );
    assert!(
        KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "layouts are counted up"
    );
}
