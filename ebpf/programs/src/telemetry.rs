//! Edges and events.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_abi::{
    EdgeCounters, EdgeKey, Event, EventKind, PolicyValue, RuleCounters, SockRecord, action, identity, reporter, role,
};

use crate::{
    errs::{self, Site},
    maps::{EDGES, EVENTS, RULES},
};

/// The port of an edge: that which was dialled; 0 for destinations outside the mesh, whose ports are without number.
#[inline(always)]
pub fn edge_port(record: &SockRecord) -> u16 {
    if record.destination < identity::FIRST {
        0
    } else {
        u16::from_be(record.original_port_be)
    }
}

/// Adds to an edge's counters on this CPU.
#[inline(always)]
pub fn edge(key: &EdgeKey, add: impl FnOnce(&mut EdgeCounters)) {
    if EDGES.get_ptr_mut(key).is_none()
        && let Err(errno) = EDGES.insert(key, &EdgeCounters::default(), 0)
    {
        errs::count(Site::EdgesFull, errno);
        return;
    }
    if let Some(counters) = EDGES.get_ptr_mut(key) {
        // SAFETY: a per-CPU value; cgroup programs do not migrate within a run, and a nested run on this CPU can at
        // worst lose one addition.
        add(unsafe { &mut *counters });
    }
}

/// Puts an event on the ring, filled by `fill`.
#[inline(always)]
pub fn event(fill: impl FnOnce(&mut Event)) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        errs::count(Site::EventsFull, 0);
        return;
    };
    // SAFETY: the reservation is as large and as aligned as an `Event`, all of whose bytes may be zero; filled in
    // place, for a copy on the stack would be a fifth of it.
    let event = unsafe {
        entry.as_mut_ptr().write_bytes(0, 1);
        entry.assume_init_mut()
    };
    // SAFETY: the helper has no precondition.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    fill(event);
    entry.submit(0);
}

/// Counts a decision by its rule: once a connection or datagram flow, where it is decided.
#[inline(always)]
pub fn decided(ruling: PolicyValue) {
    if ruling.rule == 0 {
        return;
    }
    if RULES.get_ptr_mut(&ruling.rule).is_none()
        && let Err(errno) = RULES.insert(&ruling.rule, &RuleCounters::default(), 0)
    {
        errs::count(Site::RulesFull, errno);
        return;
    }
    if let Some(counters) = RULES.get_ptr_mut(&ruling.rule) {
        // SAFETY: a per-CPU value, as in `edge`.
        let counters = unsafe { &mut *counters };
        match ruling.action() {
            action::DENY => counters.denied += 1,
            action::AUDIT => counters.audited += 1,
            _ => counters.allowed += 1,
        }
    }
}

/// Tells of something that happened to the connection of a record.
#[inline(always)]
fn tell(record: &SockRecord, kind: u8) {
    event(|event| {
        event.kind = kind;
        event.owner = record.owner;
        event.peer_owner = record.peer_owner;
        event.generation = record.generation;
        event.address = record.original;
        event.port_be = record.original_port_be;
        event.protocol = record.protocol;
        event.reporter = if record.role == role::PASSIVE {
            reporter::DESTINATION
        } else {
            reporter::SOURCE
        };
        event.verdict = record.verdict;
        event.flags = record.flags;
        event.source = record.source;
        event.destination = record.destination;
        event.service = record.service;
        event.rule = record.rule;
    });
}

/// Would have been denied, is let through.
#[inline(always)]
pub fn audit(record: &SockRecord) {
    tell(record, EventKind::AUDIT);
}

/// Was allowed, is denied now.
#[inline(always)]
pub fn cut(record: &SockRecord) {
    decided(PolicyValue::new(record.rule, action::DENY, 0, false));
    tell(record, EventKind::CUT);
}
