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

/// The flow that a packet belongs to, with its verdict under this generation. `tuple` as its sender sees it.
#[inline(always)]
pub fn find(epoch: Epoch, tuple: &Tuple, protocol: u8) -> Option<Flow> {
    let mut key = FlowKey::of(tuple, protocol);
    let (found, way) = match FLOWS.get_ptr_mut(&key) {
        Some(found) => (found, Way::Forth),
        None => {
            key = key.reversed();
            (FLOWS.get_ptr_mut(&key)?, Way::Back)
        }
    };
    // SAFETY: the value is valid for the run (RCU); what several CPUs write at once are whole words that mean the same.
    let record = unsafe { &mut *found };
    // SAFETY: the helper has no precondition.
    record.seen_ns = unsafe { bpf_ktime_get_ns() };
    if record.generation != epoch.generation {
        again(epoch, &key, record);
    }
    Some(Flow { key, way, record })
}

#[inline(always)]
fn again(epoch: Epoch, key: &FlowKey, record: &mut FlowRecord) {
    record.generation = epoch.generation;
    if record.flags & flow_flags::EXEMPT != 0 {
        return;
    }
    if let Some(own) = capture::workload(record.owner) {
        (record.source, record.source_class) = (own.identity, own.class);
    }
    let ruling = verdict::judge(
        epoch,
        Party {
            identity: record.source,
            class: record.source_class,
        },
        Party {
            identity: record.destination,
            class: record.destination_class,
        },
        key.protocol as u8,
        u16::from_be(key.tuple.remote_port_be),
    );
    let before = record.verdict;
    record.verdict = ruling.action();
    record.rule = ruling.rule;
    if record.verdict == action::DENY && before != action::DENY {
        telemetry::decided(ruling);
        tell(key, record, EventKind::CUT, reporter::SOURCE);
    }
}

/// Who begins a flow with whom.
pub struct Beginning {
    /// cgroup id of the workload that begins it, 0 = none of this machine.
    pub owner: u64,
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
    let arrived = who.reporter == reporter::DESTINATION;
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
        flags: if who.exempt { flow_flags::EXEMPT } else { 0 } | if arrived { flow_flags::ARRIVED } else { 0 },
        port_be: who.port_be,
        pad: 0,
    };
    if let Err(errno) = FLOWS.insert(&key, &record, 0) {
        errs::count(Site::FlowsFull, errno);
    }
    let passes = record.verdict != action::DENY;
    count(&key, &record, who.reporter, |counters| {
        telemetry::add(&mut counters.opened, u64::from(!who.exempt));
        if passes && arrived {
            telemetry::add(&mut counters.bytes_received, who.bytes);
        } else if passes {
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
