//! cgroup/sock_create: notes who makes a socket, because later hooks only know who calls.

use aya_ebpf::{
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id},
    macros::cgroup_sock,
    programs::SockContext,
};
use weft_abi::SockRecord;

use crate::{
    capture::{self, Epoch},
    context::record_or_insert,
    errs::{self, Site},
};

/// The workload (or the daemon) whose cgroup the calling task is in or below; 0 = neither.
#[inline(always)]
fn owner(config: Epoch) -> u64 {
    // SAFETY: the helpers have no precondition.
    unsafe {
        let current = bpf_get_current_cgroup_id();
        if current == config.daemon_cgroup || capture::workload(current).is_some() {
            return current;
        }
        // A workload may make cgroups of its own below the one we gave it.
        let above = bpf_get_current_ancestor_cgroup_id(config.workload_level as i32);
        if capture::workload(above).is_some() { above } else { 0 }
    }
}

#[cgroup_sock(sock_create)]
pub fn weft_sockcreate(ctx: SockContext) -> i32 {
    if let Some(config) = capture::config() {
        let owner = owner(config);
        if owner != 0 {
            let mut record = SockRecord {
                owner,
                ..SockRecord::default()
            };
            // SAFETY: the context of this hook is the socket.
            if unsafe { record_or_insert(ctx.sock, &mut record) }.is_none() {
                errs::count(Site::SockStorage, 0);
            }
        }
    }
    1
}
