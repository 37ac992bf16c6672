//! Who comes, and whether they may: what the accepting side knows of a packet or a connection.
//!
//! On one host all workloads may share an address, so a connection's own record is asked first, the address second; a
//! local address without record is `UNKNOWN_LOCAL`, never whoever else has that address.

use aya_ebpf::btf_maps::lpm_trie::Key;
use weft_abi::{
    Addr, ConnRecord, EdgeKey, EventKind, PolicyValue, Tuple, action, class, dest_flags, identity, protocol, reporter,
    workload_flags,
};

use crate::{
    capture::{self, Epoch},
    maps::{ADDRS, CONNS},
    telemetry,
    verdict::{self, Party},
};

/// The workload that owns a socket, or nobody we know.
#[inline(always)]
pub fn party_of(owner: u64) -> Party {
    match capture::workload(owner) {
        Some(found) => Party {
            identity: found.identity,
            class: found.class,
        },
        None => Party {
            identity: identity::UNKNOWN_LOCAL,
            class: class::UNKNOWN_LOCAL,
        },
    }
}

/// Whose a routable address is, as the daemon wrote it: a workload of another machine, a range of a network policy.
#[inline(always)]
pub fn by_prefix(addr: &Addr, generation: u64) -> Option<Party> {
    match prefix_owner(addr, generation) {
        0 => None,
        found => Some(Party {
            identity: found as u32,
            class: (found >> 32) as u32,
        }),
    }
}

/// Not inlined, as `capture::ends_in`. Identity, and class above it; 0 = nobody.
#[inline(never)]
fn prefix_owner(addr: &Addr, generation: u64) -> u64 {
    match ADDRS.get(&Key::new(128, *addr)) {
        Some(found) => {
            let found = found.at(generation);
            match found.identity {
                0 => 0,
                identity => u64::from(found.class) << 32 | u64::from(identity),
            }
        }
        None => 0,
    }
}

/// Who was dialled at an address and port, as of this generation: labels of workloads change, ranges come and go. `noted` is
/// who that was; netns as in [`capture::ends_in`].
#[inline(always)]
pub fn still(noted: Party, addr: &Addr, protocol_port: (u8, u16), netns: u32, generation: u64) -> Party {
    let (protocol, port_be) = protocol_port;
    if noted.identity >= identity::FIRST
        && let Some(there) = capture::ends_in(addr, netns)
    {
        // Whoever does not listen any more may still hold what it accepted.
        return match capture::listener(addr, port_be, protocol, there).and_then(|found| capture::workload(found.owner))
        {
            Some(now) if now.identity == noted.identity => Party {
                class: now.class,
                ..noted
            },
            _ => noted,
        };
    }
    match by_prefix(addr, generation) {
        Some(now) if noted.identity < identity::FIRST || noted.identity == now.identity && now.class != class::NONE => {
            now
        }
        None if noted.identity == identity::OUTSIDE => Party {
            class: class::OUTSIDE,
            ..noted
        },
        _ => noted,
    }
}

/// Who sends from an address that no record of a connection speaks for, to somebody in namespace `netns`.
#[inline(always)]
pub fn by_address(addr: &Addr, netns: u32, generation: u64) -> Party {
    if capture::ends_in(addr, netns).is_some() {
        return Party {
            identity: identity::UNKNOWN_LOCAL,
            class: class::UNKNOWN_LOCAL,
        };
    }
    match by_prefix(addr, generation) {
        Some(found) if found.identity == identity::OUTSIDE => Party {
            identity: identity::UNKNOWN,
            class: found.class,
        },
        Some(found) => found,
        None => Party {
            identity: identity::UNKNOWN,
            class: class::OUTSIDE,
        },
    }
}

/// The record that the dialling end of a TCP connection wrote, if it is of this machine. `tuple` as the accepting end sees it.
#[inline(always)]
pub fn dialled(tuple: &Tuple) -> Option<&'static ConnRecord> {
    // SAFETY: shared read of a map value.
    unsafe { CONNS.get(&tuple.reversed().conn_key()) }
}

/// What to do with a new connection to a workload.
pub struct Arrival {
    /// cgroup id of the workload that is dialled.
    pub owner: u64,
    /// cgroup id of the dialling workload, 0 = not of this machine.
    pub peer_owner: u64,
    /// Who dials.
    pub source: Party,
    /// Who is dialled.
    pub destination: Party,
    pub ruling: PolicyValue,
    /// What the dialling side decided, [`action::ABSENT`] if nobody did.
    pub before: u8,
    /// The dialling side is captured and took its own decision: failure modes were its business.
    pub captured: bool,
}

/// The verdict of the accepting side, which is the one that counts. `tuple` as the accepting end sees it.
#[inline(always)]
pub fn arrive(epoch: Epoch, tuple: &Tuple, owner: u64, protocol: u8) -> Arrival {
    let destination = party_of(owner);
    let port = u16::from_be(tuple.local_port_be);
    match dialled(tuple) {
        Some(conn) => {
            let source = Party {
                identity: conn.source,
                class: conn.source_class,
            };
            // Somebody else may listen there now.
            let exempt = conn.flags & weft_abi::sock_flags::EXEMPT != 0 && conn.owner == owner;
            Arrival {
                owner,
                peer_owner: conn.owner,
                source,
                destination,
                before: conn.verdict,
                ruling: if exempt {
                    PolicyValue::new(0, action::ALLOW, 0, false)
                } else {
                    verdict::judge(epoch, source, destination, protocol, port)
                },
                captured: true,
            }
        }
        None => {
            let source = by_address(&tuple.remote, tuple.netns, epoch.generation);
            Arrival {
                owner,
                peer_owner: 0,
                source,
                destination,
                before: action::ABSENT,
                ruling: verdict::judge(epoch, source, destination, protocol, port),
                captured: false,
            }
        }
    }
}

/// What the service of a workload declared for the time without us, at whatever address and port it is reached.
#[inline(always)]
pub fn fails_open(owner: u64) -> bool {
    matches!(capture::workload(owner), Some(found) if found.flags & workload_flags::FAIL_OPEN != 0)
}

/// Whether who comes to a workload past the proxy may, though its requests are to be looked at: nobody is there to do it, and
/// the service declares what is to become of it then.
#[inline(always)]
pub fn goes_past(epoch: Epoch, owner: u64) -> bool {
    fails_open(owner) && !capture::daemon_lives(epoch)
}

/// The verdict on who comes to a workload and was judged nowhere, not with this workload: the rule, and the action above it. What is
/// to be looked at is denied, unless it goes past. Parties are identities with their classes above them; the port is in host order,
/// with the protocol above it.
///
/// A global function, as [`verdict::weft_search`], which the verifier walks through once: of its instructions on Linux 6.1,
/// `weft_sockops` has 94,948 with it, 110,154 with the same inlined, and 75,723 without.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_admit(generation: u64, source: u64, destination: u64, port: u32, owner: u64) -> u64 {
    const DENY: u64 = (action::DENY as u64) << 32;
    let Some(epoch) = capture::config_of(generation) else {
        return DENY;
    };
    let party = |packed: u64| Party {
        identity: packed as u32,
        class: (packed >> 32) as u32,
    };
    let ruling = verdict::judge(
        epoch,
        party(source),
        party(destination),
        (port >> 16) as u8,
        port as u16,
    );
    let verdict = ruling.action();
    let rule = u64::from(ruling.rule);
    if verdict == action::REDIRECT && !goes_past(epoch, owner) {
        return DENY | rule;
    }
    u64::from(verdict) << 32 | rule
}

/// What the service of a TCP endpoint that is no workload of this machine declared for that time.
#[inline(always)]
pub fn endpoint_fails_open(epoch: Epoch, addr: &Addr, port_be: u16, netns: u32) -> bool {
    matches!(capture::lookup_from(epoch, netns, addr, port_be, protocol::TCP),
        Some(found) if found.flags & dest_flags::FAIL_OPEN_ACCESS != 0)
}

/// Counts and tells a refusal of the accepting side. `errno`: what the client's connect answers; 0: it waits in vain.
#[inline(always)]
pub fn refused(epoch: Epoch, arrival: &Arrival, tuple: &Tuple, protocol: u8, errno: u8) {
    telemetry::decided(PolicyValue::new(arrival.ruling.rule, action::DENY, 0, false));
    let key = EdgeKey {
        source: arrival.source.identity,
        destination: arrival.destination.identity,
        service: 0,
        port: u16::from_be(tuple.local_port_be),
        protocol,
        verdict: action::DENY,
        reporter: reporter::DESTINATION,
        pad: [0; 3],
    };
    telemetry::edge(&key, |counters| telemetry::add(&mut counters.opened, 1));
    tell(epoch, arrival, tuple, protocol, EventKind::DENY, errno);
}

/// Counts the decision on a client that nobody judged before; under audit, tells of it.
#[inline(always)]
pub fn admitted(epoch: Epoch, arrival: &Arrival, tuple: &Tuple, protocol: u8) {
    telemetry::decided(arrival.ruling);
    if arrival.ruling.action() == action::AUDIT {
        tell(epoch, arrival, tuple, protocol, EventKind::AUDIT, 0);
    }
}

#[inline(always)]
fn tell(epoch: Epoch, arrival: &Arrival, tuple: &Tuple, protocol: u8, kind: u8, errno: u8) {
    telemetry::event(|event| {
        event.kind = kind;
        event.owner = arrival.owner;
        event.peer_owner = arrival.peer_owner;
        event.generation = epoch.generation;
        event.address = tuple.local;
        event.port_be = tuple.local_port_be;
        event.protocol = protocol;
        event.reporter = reporter::DESTINATION;
        event.verdict = arrival.ruling.action();
        event.errno = errno;
        event.source = arrival.source.identity;
        event.destination = arrival.destination.identity;
        event.rule = arrival.ruling.rule;
    });
}
