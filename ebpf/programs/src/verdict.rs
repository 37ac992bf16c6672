//! Who may talk to whom: the L4 policy look-up.

use weft_abi::{ANY_IDENTITY, PolicyKey, PolicyValue, action, direction, mask_port, rank};

use crate::{capture::Epoch, maps::POLICY};

/// The verdict on `source` connecting to `destination` at `port` (host order).
///
/// Steps: for each port prefix length in use, the entry for this peer and the one for any; the highest rank wins; none:
/// the destination's default; none either: allow (nothing protects it). Two look-ups a prefix length in use, usually
/// lengths 0 and 16.
#[inline(always)]
pub fn judge(epoch: Epoch, source: u32, destination: u32, protocol: u8, port: u16) -> PolicyValue {
    let protocol_port = u32::from(protocol) << 16 | u32::from(port);
    let packed = search(
        epoch.generation,
        epoch.port_prefixes,
        source,
        destination,
        protocol_port,
    );
    PolicyValue {
        rule: packed as u32,
        rank: (packed >> 32) as u32,
    }
}

/// Not inlined: a program's own stack is 512 bytes, and this function's part of it is better its own. Five scalar
/// arguments and a scalar result are what a BPF-to-BPF call can pass.
#[inline(never)]
fn search(generation: u64, prefixes: u32, source: u32, destination: u32, protocol_port: u32) -> u64 {
    let (protocol, port) = ((protocol_port >> 16) as u8, protocol_port as u16);
    let mut best = PolicyValue { rule: 0, rank: 0 };
    let mut key = PolicyKey {
        subject: destination,
        peer: ANY_IDENTITY,
        port: 0,
        prefix: 0,
        protocol,
        direction: direction::INGRESS,
        pad: [0; 3],
    };
    while key.prefix <= 16 {
        if prefixes & (1 << key.prefix) != 0 {
            key.port = mask_port(port, key.prefix);
            key.peer = source;
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
