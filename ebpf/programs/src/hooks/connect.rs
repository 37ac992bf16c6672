//! cgroup/connect4 and connect6: the L4 verdict and the way.

use aya_ebpf::{helpers::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::{SockRecord, action, class, identity, protocol, role, sock_flags};

use crate::{
    capture::{self, Epoch},
    context::SockAddr,
    telemetry,
};

const PROTO_UDP: u32 = 17;
const PROTO_TCP: u32 = 6;

/// Steps: whose socket? ours -> only note acceleration; nobody's -> pass; a workload's -> decide, rewrite or refuse.
#[inline(always)]
fn connect(hook: &SockAddr) -> i32 {
    let Some(config) = capture::config() else {
        return 1;
    };
    let Some(record) = capture::owned_record(config, hook) else {
        return 1;
    };
    let protocol = hook.protocol();
    let ours = record.owner == config.daemon_cgroup;
    let workload = capture::workload(record.owner);
    if ours || matches!(&workload, Some(found) if found.identity == identity::PROXY) {
        note_upstream(config, hook, record, ours);
        return 1;
    }
    let Some(workload) = workload else {
        return 1;
    };
    let way = match protocol {
        PROTO_TCP => {
            record.role = role::ACTIVE;
            capture::connect_tcp(config, hook, record, &workload)
        }
        PROTO_UDP => {
            record.source = workload.identity;
            capture::route_udp(config, hook, record)
        }
        _ => return 1,
    };
    if way.errno != 0 {
        return refuse(record, way.errno);
    }
    hook.rewrite(&way.addr, way.port_be);
    1
}

/// A proxy's own connection to an endpoint: never captured, but known, so that the server's side takes it for judged, and
/// that it can be short-circuited: what the server sends back, both ways where that is declared. Not with a foreign proxy, which
/// may splice.
#[inline(always)]
fn note_upstream(config: Epoch, hook: &SockAddr, record: &mut SockRecord, ours: bool) {
    if hook.protocol() == PROTO_TCP {
        // A datagram socket that is bound stays so, or nobody would take it out of `weft_listen`.
        record.role = role::ACTIVE;
    }
    record.protocol = hook.protocol() as u8;
    record.source = identity::PROXY;
    record.source_class = class::PROXY;
    record.destination = identity::OUTSIDE;
    record.generation = config.generation;
    record.verdict = action::ALLOW;
    record.flags = sock_flags::PROXY;
    record.begin_circuit();
    let (netns, addr) = (hook.netns_cookie() as u32, hook.addr());
    record.original = addr;
    (record.original_port_be, record.target_port_be) = (hook.port_be(), hook.port_be());
    if let Some(found) = capture::lookup_from(config, netns, &addr, hook.port_be(), protocol::TCP) {
        record.service = found.service;
        record.destination = found.identity;
        if ours && hook.protocol() == PROTO_TCP {
            let may = capture::circuit_flags(config, record, found.flags);
            // A server elsewhere is handed nothing: its direction of ours need not be looked at.
            let elsewhere = may & sock_flags::FULL != 0 && !capture::is_local(&addr, netns);
            record.flags |= if elsewhere { sock_flags::ACCELERATE } else { may };
        }
    }
}

/// 1: this kernel has `bpf_set_retval` (Linux 5.18). Read-only data, so that the verifier drops the call where it would be
/// refused; there a refusal is EPERM, whatever its reason.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 0;

#[inline(always)]
fn has_set_retval() -> bool {
    // SAFETY: a read of our own read-only data; volatile, for user space sets it at load.
    unsafe { core::ptr::read_volatile(&HAS_SET_RETVAL) != 0 }
}

/// Counts and reports a refused connect. EPERM is what the kernel answers for 0; another errno is set (Linux 5.18).
#[inline(always)]
fn refuse(record: &mut SockRecord, errno: u8) -> i32 {
    telemetry::count_refused(record, protocol::TCP, |counters| {
        if errno == capture::EPERM {
            telemetry::add(&mut counters.opened, 1);
        } else {
            telemetry::add(&mut counters.refused, 1);
        }
    });
    telemetry::tell_refused(record, protocol::TCP, errno);
    record.role = role::NONE;
    if errno != capture::EPERM && has_set_retval() {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_set_retval(-i32::from(errno)) };
    }
    0
}

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    connect(&SockAddr::new(ctx.sock_addr, false))
}

#[cgroup_sock_addr(connect6)]
pub fn weft_connect6(ctx: SockAddrContext) -> i32 {
    connect(&SockAddr::new(ctx.sock_addr, true))
}
