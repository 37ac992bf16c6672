//! Who is to be reached where: TCP listeners and bound UDP sockets, in `weft_listen`.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use weft_abi::{Addr, EventKind, ListenKey, ListenValue, MAX_MEMBERS, Member, SockRecord, traits};

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

/// Whether a socket bound to `addr` is in the way of nothing that comes by IPv4, as its key says it.
#[inline(always)]
pub fn only_v6(record: &SockRecord, addr: &Addr) -> u8 {
    u8::from(record.traits & traits::ONLY_V6 != 0 && *addr == Addr::UNSPECIFIED_V6)
}

/// A socket of `owner` can be reached at `key` from now on.
///
/// Not inlined: a stack of its own, for that of a call chain is short on Linux 6.1.
#[inline(never)]
pub fn begin(owner: u64, key: &ListenKey) {
    // Members of a SO_REUSEPORT group listen from several CPUs: one makes the entry, all add to it. Its owner is the
    // first: who joins later does not take the address over, but may inherit it.
    let first = ListenValue {
        owner,
        ..ListenValue::default()
    };
    let _ = LISTEN.insert(key, &first, BPF_NOEXIST);
    match LISTEN.get_ptr_mut(key) {
        // SAFETY: the value is valid for the run (RCU).
        Some(found) => unsafe {
            add(addr_of_mut!((*found).count), 1);
            join(found, owner);
        },
        None => errs::count(Site::ListenInsert, 0),
    }
    tell(owner, key, EventKind::LISTEN);
}

/// One more of `owner`'s among the members.
///
/// # Safety
///
/// `found` is a live map value.
#[inline(always)]
unsafe fn join(found: *mut ListenValue, owner: u64) {
    let mut free = core::ptr::null_mut::<Member>();
    let mut at = 0;
    while at < MAX_MEMBERS {
        // SAFETY: within the value, which the caller vouches for; whole words, of which the last written counts.
        unsafe {
            let member = addr_of_mut!((*found).members[at]);
            if read_volatile(addr_of!((*member).count)) == 0 {
                free = member;
            } else if read_volatile(addr_of!((*member).owner)) == owner {
                add(addr_of_mut!((*member).count), 1);
                return;
            }
        }
        at += 1;
    }
    if !free.is_null() {
        // SAFETY: as above.
        unsafe {
            write_volatile(addr_of_mut!((*free).owner), owner);
            write_volatile(addr_of_mut!((*free).count), 1);
        }
    }
}

/// One less. Where the owner's last one goes and others stay, the address is another's.
///
/// Not inlined: a stack of its own, for that of a call chain is short on Linux 6.1.
#[inline(never)]
pub fn end(owner: u64, key: &ListenKey) {
    if let Some(found) = LISTEN.get_ptr_mut(key) {
        // SAFETY: the value is valid for the run (RCU).
        unsafe {
            add(addr_of_mut!((*found).count), u64::MAX);
            let heir = leave(found, owner);
            if read_volatile(addr_of!((*found).count)) == 0 {
                let _ = LISTEN.remove(key);
            } else if heir != 0 && read_volatile(addr_of!((*found).owner)) == owner {
                write_volatile(addr_of_mut!((*found).owner), heir);
                tell(heir, key, EventKind::LISTEN);
            }
        }
    }
    tell(owner, key, EventKind::UNLISTEN);
}

/// One less of `owner`'s among the members. If none is left: another one who is there, else 0.
///
/// # Safety
///
/// As [`join`].
#[inline(always)]
unsafe fn leave(found: *mut ListenValue, owner: u64) -> u64 {
    let (mut heir, mut stays) = (0, false);
    let mut at = 0;
    while at < MAX_MEMBERS {
        // SAFETY: as in `join`.
        unsafe {
            let member = addr_of_mut!((*found).members[at]);
            let (count, whose) = (
                read_volatile(addr_of!((*member).count)),
                read_volatile(addr_of!((*member).owner)),
            );
            if count != 0 && whose == owner {
                add(addr_of_mut!((*member).count), u64::MAX);
                stays = count > 1;
            } else if count != 0 {
                heir = whose;
            }
        }
        at += 1;
    }
    if stays { 0 } else { heir }
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
