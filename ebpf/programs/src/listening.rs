//! Who is to be reached where: TCP listeners and bound UDP sockets, in `weft_listen`.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{addr_of, addr_of_mut, read_volatile},
};

use weft_abi::{EventKind, ListenKey, ListenValue};

use crate::{
    errs::{self, Site},
    maps::LISTEN,
    telemetry,
};

const BPF_NOEXIST: u64 = 1;

/// Atomic addition (members of a SO_REUSEPORT group listen from several CPUs). `core::sync::atomic` has no
/// read-modify-write for this target.
///
/// # Safety
///
/// `counter` points into a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: the caller vouches for the pointer; map values are aligned to 8.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}

/// A socket of `owner` can be reached at `key` from now on.
#[inline(always)]
pub fn begin(owner: u64, key: &ListenKey) {
    // Members of a SO_REUSEPORT group listen from several CPUs: one makes the entry, all add to it. Its owner is the
    // first: who joins later does not take the address over.
    let _ = LISTEN.insert(key, &ListenValue { owner, count: 0 }, BPF_NOEXIST);
    match LISTEN.get_ptr_mut(key) {
        // SAFETY: the value is valid for the run (RCU).
        Some(found) => unsafe { add(addr_of_mut!((*found).count), 1) },
        None => errs::count(Site::ListenInsert, 0),
    }
    tell(owner, key, EventKind::LISTEN);
}

/// One less.
#[inline(always)]
pub fn end(owner: u64, key: &ListenKey) {
    if let Some(found) = LISTEN.get_ptr_mut(key) {
        // SAFETY: as in `begin`.
        let left = unsafe {
            add(addr_of_mut!((*found).count), u64::MAX);
            read_volatile(addr_of!((*found).count))
        };
        if left == 0 {
            let _ = LISTEN.remove(key);
        }
    }
    tell(owner, key, EventKind::UNLISTEN);
}

#[inline(always)]
fn tell(owner: u64, key: &ListenKey, kind: u8) {
    telemetry::event(|event| {
        event.kind = kind;
        event.owner = owner;
        event.address = key.addr;
        event.port_be = key.port_be;
        event.protocol = key.protocol;
    });
}
