//! cgroup/sendmsg4/6 and recvmsg4/6: unconnected UDP, DNS first (musl resolves this way).

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::{Addr, EventKind, SockRecord, action, identity, protocol, reporter, sock_flags};

use super::getpeer::restore;
use crate::{capture, context::SockAddr, telemetry, verdict};

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
    record.source = workload.identity;
    record.generation = config.generation;
    let (asked, asked_port_be) = (hook.addr(), hook.port_be());
    let mut way = capture::route_udp(config, hook, record);
    if record.destination >= identity::FIRST && record.flags & sock_flags::DNS == 0 {
        let port = u16::from_be(way.port_be);
        let ruling = verdict::judge(config, record.source, record.destination, protocol::UDP, port);
        if ruling.action() == action::DENY {
            deny(record, ruling.rule, &asked, asked_port_be);
            return 0;
        }
    }
    if hook.is_v6() && way.addr.is_v4() && !asked.is_v4() {
        // IPv6 datagrams may not become IPv4 here. Our own server answers at ::1 as well; others cannot be reached.
        if record.flags & sock_flags::DNS == 0 {
            return 0;
        }
        way.addr = Addr::LOCALHOST_V6;
        record.translated = way.addr;
    }
    hook.rewrite(&way.addr, way.port_be);
    1
}

#[inline(always)]
fn deny(record: &SockRecord, rule: u32, asked: &Addr, asked_port_be: u16) {
    telemetry::event(|event| {
        event.kind = EventKind::DENY;
        event.owner = record.owner;
        event.generation = record.generation;
        event.address = *asked;
        event.port_be = asked_port_be;
        event.protocol = protocol::UDP;
        event.reporter = reporter::SOURCE;
        event.verdict = action::DENY;
        event.errno = capture::EPERM;
        event.source = record.source;
        event.destination = record.destination;
        event.service = record.service;
        event.rule = rule;
    });
}

/// The answer seems to come from whom the question was sent to. Answers of others are left as they are.
#[inline(always)]
fn recvmsg(hook: &SockAddr) -> i32 {
    if let Some(record) = hook.record()
        && record.flags & sock_flags::TRANSLATED != 0
        && hook.port_be() == record.translated_port_be
        && hook.addr() == record.translated
    {
        return restore(hook);
    }
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
