//! Edges and events.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{null_mut, read_volatile},
};

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use weft_abi::{
    EdgeCounters, EdgeKey, Event, EventKind, LatencyHistogram, PolicyValue, RuleCounters, SockRecord, action, identity,
    latency_bucket, opened, protocol, reporter, role, sock_flags,
};

use crate::{
    capture::EPERM,
    errs::{self, Site},
    maps::{EDGES, EVENTS, RULES},
};

/// A connection that lives gives its counts to its edge at most this often (units of 2^20 ns: one second). What the last
/// second brought waits for the next segment that is sent, or the close. Shorter costs more at every flush and shows no more: the
/// daemon reads once a second.
const FLUSH_TICKS: u32 = 954;

/// What a new entry holds. Read-only data: 280 bytes on a stack of 512 would be too much.
static ZERO: EdgeCounters = EdgeCounters::ZERO;

/// One of so many connections gets its open and its close reported (`--flow-sample`); denials always are. Read-only data,
/// set at load.
#[unsafe(no_mangle)]
static FLOW_SAMPLE: u32 = 1;

/// The port of an edge: that which was dialled; 0 for destinations outside the mesh, whose ports are without number.
#[inline(always)]
pub fn edge_port(record: &SockRecord) -> u16 {
    if record.destination < identity::FIRST {
        0
    } else {
        u16::from_be(record.original_port_be)
    }
}

/// The edge of a connection, as this end sees it. Whatever sent it to the proxy, access rules or routing: REDIRECT, unless
/// audit is to be seen. Once it is open, by the verdict under which it opened.
#[inline(always)]
pub fn edge_key(record: &SockRecord) -> EdgeKey {
    let verdict = if record.opened & opened::COUNTED != 0 {
        record.opened & opened::VERDICT
    } else {
        record.verdict
    };
    let reporter = if record.role == role::ACTIVE {
        reporter::SOURCE
    } else {
        reporter::DESTINATION
    };
    if record.opened & opened::OVERFLOWED != 0 {
        return EdgeKey::overflow(reporter, protocol::TCP, verdict);
    }
    EdgeKey {
        source: record.source,
        destination: record.destination,
        service: record.service,
        port: edge_port(record),
        protocol: protocol::TCP,
        verdict: if record.flags & sock_flags::REDIRECTED != 0 && verdict == action::ALLOW {
            action::REDIRECT
        } else {
            verdict
        },
        reporter,
        pad: [0; 3],
    }
}

/// Counts bytes that this end handed to the other one past TCP for that end: nothing there sees them come.
///
/// Not inlined, as `counters`.
#[inline(never)]
pub fn handed_over(record: &SockRecord, bytes: u64) {
    let mut key = edge_key(record);
    let port_be = if record.role == role::ACTIVE {
        key.reporter = reporter::DESTINATION;
        record.target_port_be
    } else {
        key.reporter = reporter::SOURCE;
        record.translated_port_be
    };
    if record.opened & opened::OVERFLOWED == 0 && key.port != 0 {
        key.port = u16::from_be(port_be);
    }
    edge(&key, |counters| add(&mut counters.bytes_received, bytes));
}

/// Adds to an edge's counters on this CPU, by [`add`] and [`observe`]. `false`: it found no room, and the overflow edge
/// was added to instead.
#[inline(always)]
pub fn edge(key: &EdgeKey, count: impl FnOnce(&mut EdgeCounters)) -> bool {
    let mut found = counters(key);
    let room = !found.is_null();
    if !room {
        found = EDGES
            .get_ptr_mut(EdgeKey::overflow(key.reporter, key.protocol, key.verdict))
            .unwrap_or(null_mut());
    }
    if !found.is_null() {
        // SAFETY: a per-CPU value, valid for the run (RCU). A run in an interrupt on this CPU may add to it meanwhile:
        // hence the atomic additions.
        count(unsafe { &mut *found });
    }
    room
}

/// Not inlined, for the verifier would follow its ways at every use. Null: the table is full, which is counted.
#[inline(never)]
fn counters(key: &EdgeKey) -> *mut EdgeCounters {
    if let Some(found) = EDGES.get_ptr_mut(key) {
        return found;
    }
    if let Err(errno) = EDGES.insert(key, &ZERO, 0) {
        errs::count(Site::EdgesFull, errno);
        return null_mut();
    }
    EDGES.get_ptr_mut(key).unwrap_or(null_mut())
}

/// Adds to a counter of an edge. Atomic: a plain addition in a system call loses what an interrupt on the same CPU adds
/// between its load and its store. No other CPU writes there, so it costs little.
#[inline(always)]
pub fn add(counter: &mut u64, n: u64) {
    // SAFETY: an aligned map value. `core::sync::atomic` has no read-modify-write for this target.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}

/// Adds a sample to a histogram of an edge.
#[inline(always)]
pub fn observe(histogram: &mut LatencyHistogram, us: u32) {
    add(&mut histogram.sum_us, u64::from(us));
    if let Some(bucket) = histogram.buckets.get_mut(latency_bucket(us)) {
        // SAFETY: as in `add`.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(bucket, 1) };
    }
}

/// The clock of [`due`]: as coarse as the kernel's timer, and read without asking the processor (Linux 5.11).
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper has no precondition.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 20) as u32
}

/// Whether it is time for a flush; notes that it was.
#[inline(always)]
pub fn due(last: &mut u32) -> bool {
    let now = ticks();
    let due = now.wrapping_sub(*last) >= FLUSH_TICKS;
    if due {
        *last = now;
    }
    due
}

/// Whether the open and the close of a connection are reported: the same answer for both, without a place to keep it.
#[inline(always)]
pub fn sampled(record: &SockRecord) -> bool {
    // SAFETY: a read of our own read-only data; volatile, for user space sets it at load.
    let one_of = unsafe { read_volatile(&FLOW_SAMPLE) };
    // Times of neighbours differ in their low bits: spread them (the golden ratio, Knuth), then scale to 0..one_of.
    let spread = record.started_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    one_of <= 1 || (spread * u64::from(one_of)) >> 32 == 0
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
    if ruling.rule != 0 {
        count_rule(ruling.rule, ruling.action());
    }
}

/// Not inlined, as `counters`.
#[inline(never)]
fn count_rule(rule: u32, decision: u8) {
    if RULES.get_ptr_mut(&rule).is_none()
        && let Err(errno) = RULES.insert(&rule, &RuleCounters::default(), 0)
    {
        errs::count(Site::RulesFull, errno);
        return;
    }
    if let Some(counters) = RULES.get_ptr_mut(&rule) {
        // SAFETY: a per-CPU value, as in `edge`.
        let counters = unsafe { &mut *counters };
        let counter = match decision {
            action::DENY => &mut counters.denied,
            action::AUDIT => &mut counters.audited,
            _ => &mut counters.allowed,
        };
        add(counter, 1);
    }
}

/// Counts, by `count`, that the workload of a record was refused what it asked for.
#[inline(always)]
pub fn count_refused(record: &SockRecord, protocol: u8, count: impl FnOnce(&mut EdgeCounters)) {
    let key = EdgeKey {
        source: record.source,
        destination: record.destination,
        service: record.service,
        port: edge_port(record),
        protocol,
        verdict: action::DENY,
        reporter: reporter::SOURCE,
        pad: [0; 3],
    };
    edge(&key, count);
}

/// Tells of it. `errno`: what it is answered.
#[inline(always)]
pub fn tell_refused(record: &SockRecord, protocol: u8, errno: u8) {
    event(|event| {
        event.kind = EventKind::DENY;
        event.owner = record.owner;
        event.generation = record.generation;
        event.address = record.original;
        event.port_be = record.original_port_be;
        event.protocol = protocol;
        event.reporter = reporter::SOURCE;
        event.verdict = record.verdict;
        event.errno = errno;
        event.source = record.source;
        event.destination = record.destination;
        event.service = record.service;
        event.rule = record.rule;
    });
}

/// A datagram to a service that has no endpoint for its socket, which is answered EPERM. Counted each, told of once a second: whoever
/// sends so sends many.
#[inline(never)]
pub fn nowhere(record: &mut SockRecord) {
    count_refused(record, protocol::UDP, |counters| add(&mut counters.refused, 1));
    // Connections flush by it, and a datagram socket has none.
    if due(&mut record.flushed_at) {
        tell_refused(record, protocol::UDP, EPERM);
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
