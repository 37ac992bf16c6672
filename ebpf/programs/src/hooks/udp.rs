//! cgroup/sendmsg4/6 and recvmsg4/6: where unconnected UDP goes, DNS first (musl resolves this way). The verdict is
//! `weft_skb_out`'s, which knows the sender's port and so a flow's answers.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::{Addr, action, identity, sock_flags};

use crate::{asked, capture, context::SockAddr, telemetry};

#[inline(always)]
fn sendmsg(hook: &SockAddr) -> i32 {
    let Some(config) = capture::config() else {
        return 1;
    };
    let Some(record) = capture::owned_record(config, hook) else {
        return 1;
    };
    if record.owner == config.daemon_cgroup {
        return 1;
    }
    let Some(workload) = capture::workload(record.owner) else {
        return 1;
    };
    if workload.identity == identity::PROXY {
        return 1;
    }
    record.source = workload.identity;
    record.generation = config.generation;
    let asked = hook.addr();
    let before = asked::before(record);
    let mut way = capture::route_udp(config, hook, record);
    if hook.is_v6() && way.addr.is_v4() && !asked.is_v4() {
        // IPv6 datagrams may not become IPv4 here (`udpv6_sendmsg` answers ENOTSUPP, in every kernel). Our own server answers
        // at ::1 as well; other services are nowhere for this socket.
        if record.flags & sock_flags::DNS == 0 {
            record.destination = identity::UNKNOWN_LOCAL;
            record.verdict = action::DENY;
            telemetry::nowhere(record);
            return 0;
        }
        way.addr = Addr::LOCALHOST_V6;
        record.translated = way.addr;
    }
    asked::remember(hook, before, record);
    hook.rewrite(&way.addr, way.port_be);
    1
}

/// The answer seems to come from whom the question was sent to. Answers of others are left as they are.
#[inline(always)]
fn recvmsg(hook: &SockAddr) -> i32 {
    asked::restore(hook);
    1
}

#[cgroup_sock_addr(sendmsg4)]
pub fn weft_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&SockAddr::new(ctx.sock_addr, false))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn weft_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&SockAddr::new(ctx.sock_addr, true))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn weft_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(&SockAddr::new(ctx.sock_addr, false))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn weft_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(&SockAddr::new(ctx.sock_addr, true))
}
