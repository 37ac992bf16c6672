//! cgroup/sock_create and cgroup/post_bind: whose a socket is, because later hooks only know who calls.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use core::ptr::{addr_of, read_volatile};
use weft_abi::SockRecord;

use crate::{
    capture,
    context::{record, record_or_insert},
    errs::{self, Site},
};

#[cgroup_sock(sock_create)]
pub fn weft_sockcreate(ctx: SockContext) -> i32 {
    note_owner(&ctx, false);
    1
}

/// Sockets that the kernel made itself (an MPTCP listener's) are first seen here; and our own ports are ours: joining
/// them (SO_REUSEPORT) would take connections that the kernel sends to the proxy.
#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    let Some(config) = capture::config() else { return 1 };
    // SAFETY: the context of this hook is the socket.
    if unsafe { record(ctx.sock) }.is_none() {
        note_owner(ctx, true);
    }
    // SAFETY: a context load at a constant offset.
    let port_be = (unsafe { read_volatile(addr_of!((*ctx.sock).src_port)) } as u16).to_be();
    let ours = port_be == config.proxy_port_be || port_be == config.dns_port_be;
    let owner = capture::owner_of_task(config);
    i32::from(!ours || owner == 0 || owner == config.daemon_cgroup)
}

#[inline(always)]
fn note_owner(ctx: &SockContext, late: bool) {
    let Some(config) = capture::config() else { return };
    let owner = capture::owner_of_task(config);
    if owner == 0 {
        return;
    }
    let mut record = SockRecord {
        owner,
        plain: u8::from(late),
        ..SockRecord::default()
    };
    // SAFETY: the context of this hook is the socket.
    if unsafe { record_or_insert(ctx.sock, &mut record) }.is_none() {
        errs::count(Site::SockStorage, 0);
    }
}

#[cgroup_sock(post_bind4)]
pub fn weft_postbind4(ctx: SockContext) -> i32 {
    bound(&ctx)
}

#[cgroup_sock(post_bind6)]
pub fn weft_postbind6(ctx: SockContext) -> i32 {
    bound(&ctx)
}
