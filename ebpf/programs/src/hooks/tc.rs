//! tc on a named device, both directions: verdicts on packets of remote senders and of what has no socket here, inbound
//! capture, counters.
//!
//! The only hook that sees packets of machines behind a device (Kata, gVisor, VMs on a bridge). Connections of captured
//! sockets have been judged where more is known: their packets pass here. All else is judged by address, at the first
//! packet of a flow; TCP without SYN and without a flow is judged like one, never waved through.

use core::ptr::{addr_of, addr_of_mut, null_mut, read_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock_tuple},
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::classifier,
    programs::TcContext,
};
use weft_abi::{Tuple, action, flow_flags, identity, protocol, reporter};

use crate::{
    capture::{self, Epoch},
    errs::{self, Site},
    flows::{self, Beginning, Flow, Way},
    inbound,
    maps::{CONNS, FLOWS, INBOUND},
    packet::{self, ACK, FIN, Other, Packet, RST, SYN},
    telemetry,
};

/// Low half of the network namespace's cookie: loaded once a device, since tc can ask for it only from Linux 6.15 on.
#[unsafe(no_mangle)]
static DEVICE_NETNS: u32 = 0;
/// Bytes before the network header: 14 on Ethernet, 0 on devices without link layer.
#[unsafe(no_mangle)]
static DEVICE_LINK: u32 = 14;

/// States of a socket (`enum` in include/uapi/linux/bpf.h); 0 is none.
const BPF_TCP_TIME_WAIT: u32 = 6;
const BPF_TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`
const CURRENT_NETNS: u64 = u64::MAX;
const ETH_P_IP_BE: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6_BE: u32 = 0x86ddu16.to_be() as u32;

#[inline(always)]
fn global(value: &u32) -> u32 {
    // SAFETY: a read of our own read-only data; volatile, for user space sets it at load.
    unsafe { read_volatile(value) }
}

/// Steps: IP? -> ports -> a connection of a socket here: pass -> a known flow: its verdict -> else judge.
#[inline(always)]
fn pass(skb: *mut __sk_buff, arriving: bool) -> bool {
    // SAFETY: a context load at a constant offset.
    let kind = unsafe { read_volatile(addr_of!((*skb).protocol)) };
    if kind != ETH_P_IP_BE && kind != ETH_P_IPV6_BE {
        return true;
    }
    let Some(config) = capture::config() else { return true };
    let mut packet = Packet::of(global(&DEVICE_NETNS));
    match packet.read(skb, global(&DEVICE_LINK)) {
        Ok(()) => {}
        Err(Other::NoPorts) => return true,
        Err(Other::Malformed) => {
            errs::count(Site::Malformed, 0);
            return false;
        }
    }
    if packet.protocol == protocol::TCP && of_a_socket(&packet.tuple) {
        return true;
    }
    let bytes = u64::from(packet::length(skb));
    if let Some(mut flow) = flows::find(&packet.tuple, packet.protocol, |_, _| true) {
        flow.settle(config);
        if flow.way == Way::Forth && packet.flags & (SYN | ACK) == SYN {
            return begun_again(config, skb, &mut flow, &packet, arriving);
        }
        return known(flow, &packet, bytes);
    }
    new(config, skb, &packet, arriving, bytes)
}

/// Whether the sockets' own hooks speak for it.
#[inline(always)]
fn of_a_socket(tuple: &Tuple) -> bool {
    CONNS.get_ptr(&tuple.conn_key()).is_some() || CONNS.get_ptr(&tuple.reversed().conn_key()).is_some()
}

/// A SYN where there is a flow: the first one came to nothing, or the connection that it began has ended.
#[inline(always)]
fn begun_again(config: Epoch, skb: *mut __sk_buff, flow: &mut Flow, packet: &Packet, arriving: bool) -> bool {
    flow.record.flags &= !(flow_flags::ENDING | flow_flags::ANSWERED);
    match flow.record.verdict {
        // A socket that is at work on it already finds its SYN: an earlier one came to something.
        action::REDIRECT => {
            let state = if arriving { socket_state(skb, &packet.tuple) } else { 0 };
            !arriving || (state != 0 && state != BPF_TCP_LISTEN) || to_the_proxy(config, skb, &packet.tuple)
        }
        action::DENY => {
            if flow.record.flags & flow_flags::REFUSED == 0 {
                // It was cut: what comes after it is judged as a new one. The SYN will come again.
                let _ = FLOWS.remove(&flow.key);
            }
            false
        }
        _ => true,
    }
}

#[inline(always)]
fn known(flow: Flow, packet: &Packet, bytes: u64) -> bool {
    if flow.record.verdict == action::DENY {
        return false;
    }
    if packet.flags & RST != 0 {
        let _ = FLOWS.remove(&flow.key);
    } else if packet.flags & FIN != 0 {
        flow.record.flags |= flow_flags::ENDING;
    } else if flow.way == Way::Forth && packet.flags & (SYN | ACK) == ACK {
        flow.record.flags |= flow_flags::ANSWERED;
    }
    flows::count(&flow.key, flow.record, reporter::DEVICE, |counters| {
        if flow.way == Way::Forth {
            telemetry::add(&mut counters.bytes_sent, bytes);
        } else {
            telemetry::add(&mut counters.bytes_received, bytes);
        }
    });
    true
}

/// A flow that nobody knows. Between two that are no business of ours it is not even noted.
#[inline(always)]
fn new(config: Epoch, skb: *mut __sk_buff, packet: &Packet, arriving: bool, bytes: u64) -> bool {
    let tuple = &packet.tuple;
    if packet.protocol == protocol::TCP && packet.flags & SYN == 0 {
        // The end of a connection that a socket here has closed, and that its hooks have spoken for until then.
        let ours = if arriving { *tuple } else { tuple.reversed() };
        if socket_state(skb, &ours) == BPF_TCP_TIME_WAIT {
            return true;
        }
    }
    let local = capture::is_local(&tuple.remote, tuple.netns);
    if local
        && let Some(found) = capture::listener(&tuple.remote, tuple.remote_port_be, packet.protocol, tuple.netns)
        && found.owner == config.daemon_cgroup
    {
        return true;
    }
    let source = inbound::by_address(&tuple.local, tuple.netns, config.generation);
    let (destination, service) = flows::destination_of(
        config,
        &tuple.remote,
        tuple.remote_port_be,
        packet.protocol,
        tuple.netns,
    );
    if source.identity < identity::FIRST && destination.identity < identity::FIRST {
        return true;
    }
    let who = Beginning {
        owner: 0,
        peer: 0,
        source,
        destination,
        service,
        port_be: tuple.remote_port_be,
        reporter: reporter::DEVICE,
        exempt: false,
        // Behind the device nobody of ours could look at it.
        seen: arriving && local && packet.flags & (SYN | ACK) == SYN,
        bytes,
    };
    match flows::begin(config, tuple, packet.protocol, &who).action() {
        action::DENY => false,
        action::REDIRECT => to_the_proxy(config, skb, tuple),
        _ => true,
    }
}

/// State of the socket here that has a connection, or listens for it; `tuple` as the other end sees it.
///
/// Not inlined: two callers, and a stack of its own.
#[inline(never)]
fn socket_state(skb: *mut __sk_buff, tuple: &Tuple) -> u32 {
    // SAFETY: integers, all zero is a value of it.
    let mut asked: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: writes to a union of integers on the stack; what the helper returns is a socket or null, looked at before use
    // and released on every path.
    unsafe {
        let size = if tuple.local.is_v4() {
            let v4 = &mut asked.__bindgen_anon_1.ipv4;
            (v4.saddr, v4.daddr) = (tuple.local.0[3], tuple.remote.0[3]);
            (v4.sport, v4.dport) = (tuple.local_port_be, tuple.remote_port_be);
            size_of_val(v4)
        } else {
            let v6 = &mut asked.__bindgen_anon_1.ipv6;
            (v6.saddr, v6.daddr) = (tuple.local.0, tuple.remote.0);
            (v6.sport, v6.dport) = (tuple.local_port_be, tuple.remote_port_be);
            size_of_val(v6)
        };
        let sk = bpf_skc_lookup_tcp(skb.cast(), addr_of_mut!(asked), size as u32, CURRENT_NETNS, 0);
        if sk.is_null() {
            return 0;
        }
        let state = read_volatile(addr_of!((*sk).state));
        bpf_sk_release(sk.cast());
        state
    }
}

/// Gives the SYN to our inbound listener of this namespace; what follows finds the socket by itself. Nobody listens: a
/// captured server's own hooks know what was declared for that, for any other it is looked up here.
#[inline(always)]
fn to_the_proxy(config: Epoch, skb: *mut __sk_buff, tuple: &Tuple) -> bool {
    let key = [tuple.netns, if tuple.local.is_v4() { 4u32 } else { 6 }];
    // SAFETY: map and key live; the socket is looked at before use and released after it, as the verifier wants.
    unsafe {
        let sk = bpf_map_lookup_elem(
            core::ptr::from_ref(&INBOUND).cast_mut().cast(),
            core::ptr::from_ref(&key).cast(),
        );
        if sk == null_mut() {
            let (server, port_be) = (&tuple.remote, tuple.remote_port_be);
            return capture::listener(server, port_be, protocol::TCP, tuple.netns).is_some()
                || inbound::endpoint_fails_open(config, server, port_be, tuple.netns);
        }
        let result = bpf_sk_assign(skb.cast(), sk, 0);
        bpf_sk_release(sk);
        if result != 0 {
            // Before Linux 6.6 where the listener has SO_REUSEPORT. Its requests are not seen: it goes nowhere.
            errs::count(Site::Assign, result as i32);
            return false;
        }
    }
    true
}

#[inline(always)]
fn act(passes: bool) -> i32 {
    // UNSPEC, not OK: whoever else has a program on this device is asked too.
    if passes { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

#[classifier]
pub fn weft_tc_in(ctx: TcContext) -> i32 {
    act(pass(ctx.skb.skb, true))
}

#[classifier]
pub fn weft_tc_out(ctx: TcContext) -> i32 {
    act(pass(ctx.skb.skb, false))
}
