//! Edges and events.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_abi::{EdgeCounters, EdgeKey, Event, SockRecord, identity};

use crate::{
    errs::{self, Site},
    maps::{EDGES, EVENTS},
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
