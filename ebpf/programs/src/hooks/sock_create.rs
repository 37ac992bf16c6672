//! cgroup/sock_create, post_bind and sock_release: whose a socket is, because later hooks only know who calls, and who is
//! to be reached where by UDP, which has no listening state.

use aya_ebpf::{helpers::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext};
use core::ptr::{addr_of, read_volatile};
use weft_abi::{Addr, ListenKey, SockRecord, protocol, role, traits};

use crate::{
    capture,
    context::{record, record_or_insert},
    errs::{self, Site},
    external, listening,
};

#[cgroup_sock(sock_create)]
pub fn weft_sockcreate(ctx: SockContext) -> i32 {
    if let Some(config) = capture::config() {
        note_owner(&ctx, capture::owner_of_task(config), false);
    }
    1
}

/// Sockets that the kernel made itself (an MPTCP listener's) are first seen here; and a proxy's ports are its own: joining
/// them (SO_REUSEPORT) would take connections that the kernel sends to the proxy.
#[inline(always)]
fn bound(ctx: &SockContext, addr: Addr) -> i32 {
    let Some(config) = capture::config() else { return 1 };
    let owner = capture::owner_of_task(config);
    // SAFETY: the context of this hook is the socket.
    if unsafe { record(ctx.sock) }.is_none() {
        note_owner(ctx, owner, true);
    }
    // SAFETY: a context load at a constant offset.
    let port_be = (unsafe { read_volatile(addr_of!((*ctx.sock).src_port)) } as u16).to_be();
    let ours = port_be == config.proxy_port_be || port_be == config.inbound_port_be || port_be == config.dns_port_be;
    if owner != 0 && owner != config.daemon_cgroup && (ours || !external::may_use(config, port_be, owner)) {
        return 0;
    }
    // SAFETY: the context of this hook is the socket.
    if let Some(record) = unsafe { record(ctx.sock) }
        && record.protocol == protocol::UDP
        && record.role == role::NONE
    {
        record.role = role::BOUND;
        record.bound = addr;
        record.bound_port_be = port_be;
        listening::begin(record.owner, &bound_key(record));
    }
    1
}

#[inline(always)]
fn bound_key(record: &SockRecord) -> ListenKey {
    ListenKey {
        addr: record.bound,
        netns: record.netns,
        port_be: record.bound_port_be,
        protocol: protocol::UDP,
        only_v6: listening::only_v6(record, &record.bound),
    }
}

/// The kernel frees the record with the socket; what stands in other tables goes here.
#[cgroup_sock(sock_release)]
pub fn weft_sockrel(ctx: SockContext) -> i32 {
    // SAFETY: the context of this hook is the socket.
    if let Some(record) = unsafe { record(ctx.sock) }
        && record.role == role::BOUND
    {
        record.role = role::NONE;
        listening::end(record.owner, &bound_key(record));
    }
    1
}

#[inline(always)]
fn note_owner(ctx: &SockContext, owner: u64, late: bool) {
    if owner == 0 {
        return;
    }
    // SAFETY: a context load at a constant offset; the helper takes this context.
    let (protocol, netns) = unsafe {
        (
            read_volatile(addr_of!((*ctx.sock).protocol)),
            bpf_get_netns_cookie(ctx.sock.cast()),
        )
    };
    let mut record = SockRecord {
        owner,
        traits: if late { traits::PLAIN } else { 0 },
        protocol: protocol as u8,
        netns: netns as u32,
        ..SockRecord::default()
    };
    // SAFETY: the context of this hook is the socket.
    if unsafe { record_or_insert(ctx.sock, &mut record) }.is_none() {
        errs::count(Site::SockStorage, 0);
    }
}

#[cgroup_sock(post_bind4)]
pub fn weft_postbind4(ctx: SockContext) -> i32 {
    // SAFETY: a context load at a constant offset.
    bound(&ctx, Addr::v4(unsafe { read_volatile(addr_of!((*ctx.sock).src_ip4)) }))
}

#[cgroup_sock(post_bind6)]
pub fn weft_postbind6(ctx: SockContext) -> i32 {
    // SAFETY: context loads at constant offsets.
    let addr = unsafe {
        Addr([
            read_volatile(addr_of!((*ctx.sock).src_ip6[0])),
            read_volatile(addr_of!((*ctx.sock).src_ip6[1])),
            read_volatile(addr_of!((*ctx.sock).src_ip6[2])),
            read_volatile(addr_of!((*ctx.sock).src_ip6[3])),
        ])
    };
    bound(&ctx, addr)
}
