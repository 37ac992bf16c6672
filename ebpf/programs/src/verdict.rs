//! Who may talk to whom: the L4 policy look-up, in both dimensions.

use weft_abi::{
    ANY_IDENTITY, PolicyKey, PolicyValue, SockRecord, action, direction, identity, mask_port, protocol, rank, role,
    sock_flags,
};

use crate::{
    capture::{self, Epoch},
    inbound,
    maps::POLICY,
    telemetry,
};

/// One end of a connection, as policies name it.
#[derive(Clone, Copy)]
pub struct Party {
    /// Number of its account.
    pub identity: u32,
    /// Number of its namespace and labels, or of the range its address is in.
    pub class: u32,
}

/// The verdict on `source` connecting to `destination` at `port` (host order): access AND network.
///
/// A denial of either denies; then an audit of either is reported; else access says whether the proxy must look.
#[inline(always)]
pub fn judge(epoch: Epoch, source: Party, destination: Party, protocol: u8, port: u16) -> PolicyValue {
    if source.identity == identity::PROXY {
        // It has judged already, or is about to.
        return PolicyValue::new(0, action::ALLOW, 0, false);
    }
    let ask = |subject, peer, direction: u8| {
        let what = u32::from(direction) << 24 | u32::from(protocol) << 16 | u32::from(port);
        unpack(weft_search(epoch.generation, epoch.port_prefixes, subject, peer, what))
    };
    let access = ask(destination.identity, source.identity, direction::INGRESS);
    if epoch.network == 0 || access.action() == action::DENY {
        return access;
    }
    let egress = ask(source.class, destination.class, direction::NET_EGRESS);
    if egress.action() == action::DENY {
        return egress;
    }
    let ingress = ask(destination.class, source.class, direction::NET_INGRESS);
    if ingress.action() == action::DENY || access.action() == action::ALLOW && ingress.action() == action::AUDIT {
        return ingress;
    }
    if access.action() == action::ALLOW && egress.action() == action::AUDIT {
        return egress;
    }
    access
}

#[inline(always)]
fn unpack(packed: u64) -> PolicyValue {
    PolicyValue {
        rule: packed as u32,
        rank: (packed >> 32) as u32,
    }
}

/// One dimension. Steps: for each port prefix length in use, the entry for this peer and the one for any; the highest
/// rank wins; none: the subject's default; none either: allow (nothing protects it). Two look-ups a prefix length in use,
/// usually lengths 0 and 16.
///
/// `what`: direction, protocol, port, from the top. A global function (exported, scalars in and out): the verifier looks at
/// it once by itself (Linux 5.6), not at every call with all that is known there. Called inline or as a static function, its
/// seventeen rounds made `weft_skb_in` and `weft_tc_in` more than the million instructions that Linux 6.1 looks at.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_search(generation: u64, prefixes: u32, subject: u32, peer: u32, what: u32) -> u64 {
    let (protocol, port) = ((what >> 16) as u8, what as u16);
    let mut best = PolicyValue { rule: 0, rank: 0 };
    let mut key = PolicyKey {
        subject,
        peer: ANY_IDENTITY,
        port: 0,
        prefix: 0,
        protocol,
        direction: (what >> 24) as u8,
        pad: [0; 3],
    };
    while key.prefix <= 16 {
        if prefixes & (1 << key.prefix) != 0 {
            key.port = mask_port(port, key.prefix);
            key.peer = peer;
            consider(&key, generation, &mut best);
            key.peer = ANY_IDENTITY;
            consider(&key, generation, &mut best);
        }
        key.prefix += 1;
    }
    if best.rank == 0 {
        (key.port, key.prefix, key.protocol) = (0, 0, 0);
        consider(&key, generation, &mut best);
        if best.rank == 0 {
            best.rank = rank(action::ALLOW, 0, false);
        }
    }
    u64::from(best.rank) << 32 | u64::from(best.rule)
}

#[inline(always)]
fn consider(key: &PolicyKey, generation: u64, best: &mut PolicyValue) {
    // SAFETY: shared read of a map value; an update replaces the element, it does not write into this one.
    if let Some(found) = unsafe { POLICY.get(key) } {
        let found = found.at(generation);
        if found.rank > best.rank {
            *best = *found;
        }
    }
}

/// Whether an established connection may go on: the verdict of its record, taken again if the generation moved.
///
/// One comparison when it did not. Our own end as it is now (its labels may have changed), the other as its address says now,
/// or as it was noted.
/// Now to be looked at per request, though it goes past the proxy: cut as well, for it can come again and be looked at;
/// but not where it was let past because there was no proxy.
#[inline(always)]
pub fn may_go_on(epoch: Epoch, record: &mut SockRecord) -> bool {
    if record.generation != epoch.generation {
        again(epoch.generation, record);
    }
    record.verdict != action::DENY
}

/// Not inlined: what is usual need not have its stack.
#[inline(never)]
fn again(generation: u64, record: &mut SockRecord) {
    let Some(epoch) = capture::config_of(generation) else {
        return;
    };
    record.generation = generation;
    // What was handed to a foreign proxy is ours to judge: it does not know our rules.
    let external = record.flags & sock_flags::EXTERNAL != 0;
    let ours = if external { 0 } else { sock_flags::REDIRECTED };
    let free = sock_flags::EXEMPT | sock_flags::PROXY | ours;
    if record.flags & free != 0 || record.verdict == action::DENY || record.source == identity::PROXY {
        return;
    }
    let Some(own) = capture::workload(record.owner) else {
        return;
    };
    let own = Party {
        identity: own.identity,
        class: own.class,
    };
    let (source, destination) = if record.role == role::ACTIVE {
        let noted = Party {
            identity: record.destination,
            class: record.destination_class,
        };
        let there = (protocol::TCP, record.target_port_be);
        let now = inbound::still(noted, &record.translated, there, record.netns, epoch.generation);
        (own, now)
    } else if let Some(peer) = capture::workload(record.peer_owner) {
        let peer = Party {
            identity: peer.identity,
            class: peer.class,
        };
        (peer, own)
    } else if record.peer_owner == 0 {
        (
            inbound::by_address(&record.translated, record.netns, epoch.generation),
            own,
        )
    } else {
        let noted = Party {
            identity: record.source,
            class: record.source_class,
        };
        (noted, own)
    };
    (record.source, record.source_class) = (source.identity, source.class);
    (record.destination, record.destination_class) = (destination.identity, destination.class);
    let ruling = judge(
        epoch,
        source,
        destination,
        record.protocol,
        u16::from_be(record.target_port_be),
    );
    let now = ruling.action();
    if now == action::DENY || now == action::REDIRECT && record.verdict != action::REDIRECT && !external {
        record.verdict = action::DENY;
        record.rule = ruling.rule;
        telemetry::cut(record);
    }
}
