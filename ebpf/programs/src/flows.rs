//! Flows without a connection of ours: datagrams, and packets that no socket here speaks for.
//!
//! Verdicts belong to the initiator's direction: the first packet is judged and kept in `weft_flows`, answers follow it.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_abi::{
    Addr, EdgeCounters, EdgeKey, EventKind, FlowKey, FlowRecord, PolicyValue, Tuple, action, class, flow_flags,
    identity, reporter,
};

use crate::{
    capture::{self, EPERM, Epoch},
    errs::{self, Site},
    inbound,
    maps::FLOWS,
    telemetry,
    verdict::{self, Party},
};

/// Which way a packet of a known flow goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the initiator.
    Forth,
    /// To the initiator.
    Back,
}

/// No generation: what was judged under it is to be judged.
const NEVER: u64 = 0;

/// A flow in the table.
pub struct Flow {
    pub key: FlowKey,
    pub way: Way,
    pub record: &'static mut FlowRecord,
}

/// Whose an address and port are, as a destination; the number of the service port it is an endpoint of.
#[inline(always)]
pub fn destination_of(epoch: Epoch, addr: &Addr, port_be: u16, protocol: u8, netns: u32) -> (Party, u32) {
    if let Some(found) = capture::lookup_from(epoch, netns, addr, port_be, protocol)
        && found.kind == weft_abi::dest_kind::ENDPOINT
    {
        let party = Party {
            identity: found.identity,
            class: found.class,
        };
        return (party, found.service);
    }
    let nobody = Party {
        identity: identity::OUTSIDE,
        class: class::OUTSIDE,
    };
    let there = capture::ends_in(addr, netns);
    let party = match there.and_then(|there| capture::listener(addr, port_be, protocol, there)) {
        Some(found) => inbound::party_of(found.owner),
        None => inbound::by_prefix(addr, epoch.generation).unwrap_or(match there {
            Some(_) => Party {
                identity: identity::UNKNOWN_LOCAL,
                class: class::UNKNOWN_LOCAL,
            },
            None => nobody,
        }),
    };
    (party, 0)
}

/// The flow that a packet belongs to, as it was judged last: [`Flow::settle`] judges it again. `tuple` as its sender sees it;
/// `is_its` tells whether a flow in the table, going this way, is that of the packet's socket.
///
/// A datagram that was denied began nothing: it speaks for its own sender alone, and only where the other end began nothing
/// either. (TCP says who begins, so there an answer to what is denied is denied.)
#[inline(always)]
pub fn find(tuple: &Tuple, protocol: u8, is_its: impl Fn(Way, &FlowRecord) -> bool) -> Option<Flow> {
    // One key in three states: what the stack has left for it on Linux 6.1.
    let mut key = FlowKey::of(tuple, protocol);
    let forth = lookup(&key, Way::Forth, &is_its);
    let mut way = Way::Forth;
    let mut found = forth;
    if forth.is_null() || began_nothing(forth, protocol) {
        key = key.reversed();
        let back = lookup(&key, Way::Back, &is_its);
        if back.is_null() || began_nothing(back, protocol) {
            key = key.reversed();
        } else {
            (way, found) = (Way::Back, back);
        }
    }
    // SAFETY: the value is valid for the run (RCU); what several CPUs write at once are whole words that mean the same.
    let record = unsafe { found.as_mut() }?;
    Some(Flow { key, way, record })
}

/// Null: there is none.
#[inline(always)]
fn lookup(key: &FlowKey, way: Way, is_its: &impl Fn(Way, &FlowRecord) -> bool) -> *mut FlowRecord {
    match FLOWS.get_ptr_mut(key) {
        // SAFETY: as in `find`.
        Some(found) if is_its(way, unsafe { &*found }) => found,
        _ => core::ptr::null_mut(),
    }
}

#[inline(always)]
fn began_nothing(record: *const FlowRecord, protocol: u8) -> bool {
    // SAFETY: not null, and as in `find`.
    protocol != weft_abi::protocol::TCP && unsafe { (*record).flags } & flow_flags::REFUSED != 0
}

// === impl Flow ===

impl Flow {
    /// It has come to a socket of `owner` at an address of this machine. The socket says whose it is: if that is not who was
    /// meant when the flow began (nobody was known there, or another had the port), the flow is judged again.
    #[inline(always)]
    pub fn arrive(&mut self, owner: u64) {
        self.record.peer = owner as u32;
        if self.record.owner == owner {
            self.record.flags |= flow_flags::EXEMPT;
            return;
        }
        let whose = inbound::party_of(owner);
        let meant = self.record.flags & flow_flags::EXEMPT == 0
            && self.record.destination == whose.identity
            && self.record.destination_class == whose.class;
        if !meant {
            (self.record.destination, self.record.destination_class) = (whose.identity, whose.class);
            self.record.flags &= !flow_flags::EXEMPT;
            self.record.generation = NEVER;
        }
    }

    /// Its verdict under this generation.
    #[inline(always)]
    pub fn settle(&mut self, epoch: Epoch) -> u8 {
        if self.record.flags & flow_flags::REFUSED == 0 {
            // A denial is looked at anew after a while, however often it is asked for.
            // SAFETY: the helper has no precondition.
            self.record.seen_ns = unsafe { bpf_ktime_get_ns() };
        }
        if self.record.generation != epoch.generation {
            again(epoch, &self.key, self.record);
        }
        self.record.verdict
    }
}

/// Judges a flow again. One that the proxy has is the proxy's to judge; one that it would have to have from now on is past
/// it for good, so it is denied: its client can come again.
#[inline(always)]
fn again(epoch: Epoch, key: &FlowKey, record: &mut FlowRecord) {
    record.generation = epoch.generation;
    if record.flags & flow_flags::EXEMPT != 0 || record.verdict == action::REDIRECT {
        return;
    }
    let source = match capture::workload(record.owner) {
        Some(own) => Party {
            identity: own.identity,
            class: own.class,
        },
        None if record.owner == 0 => inbound::by_address(&key.tuple.local, key.tuple.netns, epoch.generation),
        None => Party {
            identity: record.source,
            class: record.source_class,
        },
    };
    let destination = inbound::still(
        Party {
            identity: record.destination,
            class: record.destination_class,
        },
        &key.tuple.remote,
        (key.protocol as u8, key.tuple.remote_port_be),
        key.tuple.netns,
        epoch.generation,
    );
    (record.source, record.source_class) = (source.identity, source.class);
    (record.destination, record.destination_class) = (destination.identity, destination.class);
    let ruling = verdict::judge(
        epoch,
        source,
        destination,
        key.protocol as u8,
        u16::from_be(key.tuple.remote_port_be),
    );
    let before = record.verdict;
    record.verdict = ruling.action();
    if record.verdict == action::REDIRECT {
        record.verdict = action::DENY;
    }
    record.rule = ruling.rule;
    if record.verdict != action::DENY {
        record.flags &= !flow_flags::REFUSED;
    } else if before != action::DENY {
        telemetry::decided(PolicyValue::new(ruling.rule, action::DENY, 0, false));
        tell(key, record, EventKind::CUT, reporter::SOURCE);
    }
}

/// Who begins a flow with whom.
pub struct Beginning {
    /// cgroup id of the workload that begins it, 0 = none of this machine.
    pub owner: u64,
    /// cgroup id of the workload that it has arrived at, 0 = not known yet, or none of this machine.
    pub peer: u64,
    pub source: Party,
    pub destination: Party,
    pub service: u32,
    /// The port that was asked for, wire order.
    pub port_be: u16,
    /// [`weft_abi::reporter`] that tells of it.
    pub reporter: u8,
    /// Talks to itself.
    pub exempt: bool,
    /// Its requests can be looked at: else what would have to be is denied.
    pub seen: bool,
    /// Bytes of its first packet.
    pub bytes: u64,
}

/// Judges a flow's first packet, notes and counts it, tells of it. `tuple` as its sender sees it.
#[inline(always)]
pub fn begin(epoch: Epoch, tuple: &Tuple, protocol: u8, who: &Beginning) -> PolicyValue {
    let mut ruling = if who.exempt {
        PolicyValue::new(0, action::ALLOW, 0, false)
    } else {
        verdict::judge(
            epoch,
            who.source,
            who.destination,
            protocol,
            u16::from_be(tuple.remote_port_be),
        )
    };
    if ruling.action() == action::REDIRECT && !who.seen {
        ruling = PolicyValue::new(ruling.rule, action::DENY, 0, false);
    }
    let (denied, arrived) = (ruling.action() == action::DENY, who.reporter == reporter::DESTINATION);
    let key = FlowKey::of(tuple, protocol);
    let record = FlowRecord {
        owner: who.owner,
        generation: epoch.generation,
        // SAFETY: the helper has no precondition.
        seen_ns: unsafe { bpf_ktime_get_ns() },
        source: who.source.identity,
        destination: who.destination.identity,
        source_class: who.source.class,
        destination_class: who.destination.class,
        service: who.service,
        rule: ruling.rule,
        verdict: ruling.action(),
        flags: if who.exempt { flow_flags::EXEMPT } else { 0 }
            | if arrived { flow_flags::ARRIVED } else { 0 }
            | if denied { flow_flags::REFUSED } else { 0 },
        port_be: who.port_be,
        peer: who.peer as u32,
    };
    if let Err(errno) = FLOWS.insert(&key, &record, 0) {
        errs::count(Site::FlowsFull, errno);
    }
    count(&key, &record, who.reporter, |counters| {
        telemetry::add(&mut counters.opened, u64::from(!who.exempt));
        if !denied && arrived {
            telemetry::add(&mut counters.bytes_received, who.bytes);
        } else if !denied {
            telemetry::add(&mut counters.bytes_sent, who.bytes);
        }
    });
    if who.exempt {
        return ruling;
    }
    telemetry::decided(ruling);
    let kind = match record.verdict {
        action::DENY => EventKind::DENY,
        action::AUDIT => EventKind::AUDIT,
        _ => EventKind::OPEN,
    };
    tell(&key, &record, kind, who.reporter);
    ruling
}

/// Adds to the edge of a flow.
#[inline(always)]
pub fn count(key: &FlowKey, record: &FlowRecord, reporter: u8, add: impl FnOnce(&mut EdgeCounters)) {
    let edge = EdgeKey {
        source: record.source,
        destination: record.destination,
        service: record.service,
        port: if record.destination < identity::FIRST {
            0
        } else {
            u16::from_be(record.port_be)
        },
        protocol: key.protocol as u8,
        verdict: record.verdict,
        reporter,
        pad: [0; 3],
    };
    telemetry::edge(&edge, add);
}

#[inline(always)]
fn tell(key: &FlowKey, record: &FlowRecord, kind: u8, reporter: u8) {
    telemetry::event(|event| {
        event.kind = kind;
        event.owner = record.owner;
        event.peer_owner = record.owner;
        event.generation = record.generation;
        event.address = key.tuple.remote;
        event.port_be = record.port_be;
        event.protocol = key.protocol as u8;
        event.reporter = reporter;
        event.verdict = record.verdict;
        event.errno = if kind == EventKind::DENY { EPERM } else { 0 };
        event.source = record.source;
        event.destination = record.destination;
        event.service = record.service;
        event.rule = record.rule;
    });
}
