//! Who is to be reached where: TCP listeners and bound UDP sockets, in `weft_listen`.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
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
    // first: who joins later does not take the address over, but may inherit it.
    let first = ListenValue {
        owner,
        ..ListenValue::default()
    };
    let _ = LISTEN.insert(key, &first, BPF_NOEXIST);
    match LISTEN.get_ptr_mut(key) {
        // SAFETY: the value is valid for the run (RCU); owners are whole words, of which the last written counts.
        Some(found) => unsafe {
            add(addr_of_mut!((*found).count), 1);
            if read_volatile(addr_of!((*found).owner)) == owner {
                add(addr_of_mut!((*found).own), 1);
            } else {
                write_volatile(addr_of_mut!((*found).heir), owner);
            }
        },
        None => errs::count(Site::ListenInsert, 0),
    }
    tell(owner, key, EventKind::LISTEN);
}

/// One less. Where the owner's last one goes and others stay, the address is theirs.
#[inline(always)]
pub fn end(owner: u64, key: &ListenKey) {
    if let Some(found) = LISTEN.get_ptr_mut(key) {
        // SAFETY: as in `begin`.
        unsafe {
            add(addr_of_mut!((*found).count), u64::MAX);
            let left = read_volatile(addr_of!((*found).count));
            if left == 0 {
                let _ = LISTEN.remove(key);
            } else if read_volatile(addr_of!((*found).owner)) == owner {
                add(addr_of_mut!((*found).own), u64::MAX);
                let heir = read_volatile(addr_of!((*found).heir));
                if read_volatile(addr_of!((*found).own)) == 0 && heir != 0 {
                    write_volatile(addr_of_mut!((*found).own), left);
                    write_volatile(addr_of_mut!((*found).heir), 0);
                    write_volatile(addr_of_mut!((*found).owner), heir);
                    tell(heir, key, EventKind::LISTEN);
                }
            }
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
