//! No silent error path: each failing kernel call is counted by site and errno, and becomes a metric.

use crate::maps::ERRS;

/// `weft_errs` key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ErrKey {
    /// [`Site`].
    pub site: u32,
    /// Positive errno, 0 where the helper gives none.
    pub errno: u32,
}

/// Where it failed. `weft_dataplane::tables::errs` has the names.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Site {
    EventsFull = 1,
    EdgesFull = 2,
    ConnsInsert = 3,
    ListenInsert = 4,
    CircuitInsert = 5,
    SockStorage = 6,
    BackendMissing = 7,
    CallbackFlags = 8,
    FlowsFull = 9,
    RulesFull = 10,
    Malformed = 11,
    Assign = 12,
}

/// Counts one failure. Costs a hash look-up; only ever on a failing path.
#[inline(always)]
pub fn count(site: Site, errno: i32) {
    let key = ErrKey {
        site: site as u32,
        errno: errno.unsigned_abs(),
    };
    if let Some(n) = ERRS.get_ptr_mut(&key) {
        // SAFETY: a per-CPU value that only this CPU writes; the pointer is valid for the run (RCU).
        unsafe { *n += 1 };
    } else {
        // The error table itself being full is the one thing that cannot be counted.
        let _ = ERRS.insert(&key, &1, 0);
    }
}
