//! cgroup_skb on the captured cgroup: what goes in and out of workloads' sockets, packet by packet.
//!
//! The backstop: established connections are judged again when the generation moved, connections that only the accepting
//! side sees are judged at their SYN, and datagrams at the first of a flow. The usual packet costs a storage look-up and a
//! comparison; one that leaves a clock reading as well, for here connections that live give their counts to their edges.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use weft_abi::{
    FlowRecord, PolicyValue, SockRecord, action, flow_flags, identity, protocol, reporter, role, sock_flags,
};

use crate::{
    capture::{self, Epoch},
    context::record,
    errs::{self, Site},
    external,
    flows::{self, Beginning, Way},
    inbound,
    packet::{self, ACK, Other, Packet, RST, SYN},
    progress, telemetry, verdict,
};

const DROP: u64 = 0;
const PASS: u64 = 1;
/// A datagram to a service that is nowhere.
const NOWHERE: u64 = 2;
/// With the sender's class (of 31 bits) and identity: a datagram that may have come to several.
const FOR_SEVERAL: u64 = 1 << 63;

/// The socket a packet belongs to and its record, with the configuration; `None`: nobody's business.
#[inline(always)]
fn ours(skb: *mut __sk_buff) -> Option<(Epoch, *mut bpf_sock, &'static mut SockRecord)> {
    // SAFETY: a context load; the pointer is looked at before use as the verifier wants. The helper itself refuses what
    // is no full socket.
    let (sk, record) = unsafe {
        let sk = read_volatile(addr_of!((*skb).__bindgen_anon_2.sk));
        if sk.is_null() {
            return None;
        }
        (sk, record(sk)?)
    };
    let config = capture::config()?;
    if record.owner == config.daemon_cgroup {
        None
    } else {
        Some((config, sk, record))
    }
}

#[inline(always)]
fn is_connection(record: &SockRecord) -> bool {
    record.role == role::ACTIVE || record.role == role::PASSIVE
}

/// The end of a connection that was cut may be told.
///
/// Not inlined: most connections are not cut.
#[inline(never)]
fn is_reset(skb: *mut __sk_buff, record: &SockRecord) -> bool {
    let mut packet = Packet::of(record.netns);
    packet.read(skb, 0).is_ok() && packet.flags & RST != 0
}

/// Steps: a connection of TCP -> may it go on? anything else: by what the packet is, for raw sockets write what they like.
#[inline(always)]
fn leave(skb: *mut __sk_buff) -> bool {
    let Some((config, sk, record)) = ours(skb) else {
        return true;
    };
    if record.protocol == protocol::TCP {
        if !is_connection(record) {
            return true;
        }
        // SAFETY: the verifier knows it as a socket, not null.
        unsafe { progress::flush(sk, record) };
        return verdict::may_go_on(config, record) || is_reset(skb, record);
    }
    match leave_otherwise(skb, config.generation, record) {
        // The sender is answered EPERM, as for any packet that is refused here. Told from here, for the stack of three calls has no
        // room for it there.
        NOWHERE => {
            telemetry::nowhere(record);
            false
        }
        verdict => verdict != DROP,
    }
}

/// Not inlined: what it needs for datagrams, connections need not have on their stack.
#[inline(never)]
fn leave_otherwise(skb: *mut __sk_buff, generation: u64, record: &mut SockRecord) -> u64 {
    let Some(config) = capture::config_of(generation) else {
        return PASS;
    };
    let mut packet = Packet::of(record.netns);
    match packet.read(skb, 0) {
        Ok(()) => {}
        Err(Other::NoPorts) => return PASS,
        Err(Other::Malformed) => {
            errs::count(Site::Malformed, 0);
            return DROP;
        }
    }
    send_datagram(config, record, &packet)
}

#[inline(always)]
fn send_datagram(config: Epoch, record: &mut SockRecord, packet: &Packet) -> u64 {
    let bytes = u64::from(packet.payload);
    let owner = record.owner;
    let (remote, port_be) = (packet.tuple.remote, packet.tuple.remote_port_be);
    let translated = record.flags & sock_flags::TRANSLATED != 0
        && record.translated_port_be == port_be
        && record.translated == remote;
    if translated && record.verdict == action::DENY {
        return NOWHERE;
    }
    // What another workload began from this port a moment ago, or received at it, says nothing about this one.
    // What was refused is begun anew when something changed: somebody may listen there by now.
    let is_its = |way, flow: &FlowRecord| match way {
        Way::Forth => {
            flow.owner == owner && (flow.flags & flow_flags::REFUSED == 0 || flow.generation == config.generation)
        }
        Way::Back => flow.peer == owner as u32,
    };
    if let Some(mut flow) = flows::find(&packet.tuple, packet.protocol, is_its) {
        let passes = flow.settle(config) != action::DENY;
        let side = if flow.way == Way::Forth {
            reporter::SOURCE
        } else {
            reporter::DESTINATION
        };
        if passes {
            flows::count(&flow.key, flow.record, side, |counters| {
                telemetry::add(&mut counters.bytes_sent, bytes)
            });
        }
        return u64::from(passes);
    }
    let listener = if capture::is_local(&remote, record.netns) {
        capture::listener(&remote, port_be, packet.protocol, record.netns)
    } else {
        None
    };
    if matches!(listener, Some(found) if found.owner == config.daemon_cgroup) {
        // Our DNS; what it answers is let in likewise.
        return PASS;
    }
    let (destination, mut service) = flows::destination_of(config, &remote, port_be, packet.protocol, record.netns);
    let mut asked_be = port_be;
    if translated {
        service = record.service;
        asked_be = record.original_port_be;
    }
    let who = Beginning {
        owner: record.owner,
        peer: 0,
        source: inbound::party_of(record.owner),
        destination,
        service,
        port_be: asked_be,
        reporter: reporter::SOURCE,
        exempt: matches!(listener, Some(found) if found.owner == record.owner),
        seen: false,
        bytes,
    };
    u64::from(flows::begin(config, &packet.tuple, packet.protocol, &who).action() != action::DENY)
}

/// Steps: a connection -> may it go on? a listener -> the SYN's verdict; a datagram -> its flow's.
#[inline(always)]
fn enter(skb: *mut __sk_buff) -> bool {
    let Some((config, _, record)) = ours(skb) else {
        return true;
    };
    if record.protocol == protocol::TCP && is_connection(record) {
        progress::heard(record);
        return verdict::may_go_on(config, record) || is_reset(skb, record);
    }
    match enter_otherwise(skb, config.generation, record) {
        // Judged from here, for the stack of three calls has no room for it there.
        asked if asked & FOR_SEVERAL != 0 => reaches(config, asked & !FOR_SEVERAL, record),
        verdict => verdict != DROP,
    }
}

/// Not inlined, as `leave_otherwise`. [`DROP`], [`PASS`], or [`FOR_SEVERAL`].
#[inline(never)]
fn enter_otherwise(skb: *mut __sk_buff, generation: u64, record: &mut SockRecord) -> u64 {
    let Some(config) = capture::config_of(generation) else {
        return PASS;
    };
    if !packet::has_ports(record.protocol) {
        return PASS;
    }
    let mut packet = Packet::of(record.netns);
    match packet.read(skb, 0) {
        Ok(()) => {}
        Err(Other::NoPorts) => return PASS,
        Err(Other::Malformed) => {
            errs::count(Site::Malformed, 0);
            return DROP;
        }
    }
    if record.protocol == protocol::TCP {
        return u64::from(packet.flags & (SYN | ACK) != SYN || knock(config, record, &packet));
    }
    receive_datagram(config, record, &packet)
}

/// A SYN at a workload's listener. Where `weft_sk_lookup` is attached it has decided before, with a reset for those denied;
/// here they are dropped.
#[inline(always)]
fn knock(config: Epoch, record: &mut SockRecord, packet: &Packet) -> bool {
    if external::is_proxy(record.owner) {
        return true;
    }
    let tuple = packet.tuple.reversed();
    let arrival = inbound::arrive(config, &tuple, record.owner, protocol::TCP);
    let verdict = arrival.ruling.action();
    // Requests are to be looked at and it comes past the proxy, without a client's side that knew so and decided that it may: that
    // may have dialled an address that it took for somebody else's.
    let unseen = verdict == action::REDIRECT
        && arrival.before != action::REDIRECT
        && arrival.before != action::AUDIT
        && arrival.source.identity != identity::PROXY
        && !inbound::goes_past(config, record.owner);
    if verdict == action::DENY || unseen {
        inbound::refused(config, &arrival, &tuple, protocol::TCP, 0);
        return false;
    }
    if !arrival.captured {
        inbound::admitted(config, &arrival, &tuple, protocol::TCP);
    }
    true
}

#[inline(always)]
fn receive_datagram(config: Epoch, record: &mut SockRecord, packet: &Packet) -> u64 {
    let bytes = u64::from(packet.payload);
    let owner = record.owner;
    // An answer to what another workload began from this port is none to this one.
    let is_its = |way, flow: &FlowRecord| way == Way::Forth || flow.owner == owner;
    if let Some(mut flow) = flows::find(&packet.tuple, packet.protocol, is_its) {
        let others = flow.way == Way::Forth && flow.record.peer != owner as u32;
        let here = others && capture::is_local(&packet.tuple.remote, record.netns);
        if here {
            flow.arrive(owner);
        }
        if flow.settle(config) == action::DENY {
            return DROP;
        }
        let side = if flow.way == Way::Forth {
            reporter::DESTINATION
        } else {
            reporter::SOURCE
        };
        let first = flow.way == Way::Forth && flow.record.flags & flow_flags::ARRIVED == 0;
        if first {
            flow.record.flags |= flow_flags::ARRIVED;
        }
        flows::count(&flow.key, flow.record, side, |counters| {
            telemetry::add(&mut counters.opened, u64::from(first));
            telemetry::add(&mut counters.bytes_received, bytes);
        });
        if others && !here && flow.record.owner != owner {
            return FOR_SEVERAL | u64::from(flow.record.source_class) << 32 | u64::from(flow.record.source);
        }
        return PASS;
    }
    let (sender, port_be) = (packet.tuple.local, packet.tuple.local_port_be);
    if capture::is_local(&sender, record.netns)
        && matches!(capture::listener(&sender, port_be, packet.protocol, record.netns), Some(found) if found.owner == config.daemon_cgroup)
    {
        return PASS;
    }
    let (_, service) = flows::destination_of(
        config,
        &packet.tuple.remote,
        packet.tuple.remote_port_be,
        packet.protocol,
        record.netns,
    );
    let who = Beginning {
        owner: 0,
        peer: record.owner,
        source: inbound::by_address(&sender, record.netns, config.generation),
        // The socket says whose it is; its address alone may be anybody's.
        destination: inbound::party_of(record.owner),
        service,
        port_be: packet.tuple.remote_port_be,
        reporter: reporter::DESTINATION,
        exempt: false,
        seen: false,
        bytes,
    };
    u64::from(flows::begin(config, &packet.tuple, packet.protocol, &who).action() != action::DENY)
}

/// Whether who sent a datagram may reach this workload, to which it came by an address of several (broadcast, multicast) or by one
/// that nobody knows as this machine's: the flow is with that address, and many may get it. `source`: its identity, and its class
/// above it.
#[inline(always)]
fn reaches(config: Epoch, source: u64, record: &SockRecord) -> bool {
    let whose = inbound::party_of(record.owner);
    let port = u16::from_be(record.bound_port_be);
    let ruling = inbound::weft_admit(
        config.generation,
        source,
        u64::from(whose.class) << 32 | u64::from(whose.identity),
        u32::from(record.protocol) << 16 | u32::from(port),
        record.owner,
    );
    let denied = (ruling >> 32) as u8 == action::DENY;
    if denied {
        telemetry::decided(PolicyValue::new(ruling as u32, action::DENY, 0, false));
    }
    !denied
}

#[cgroup_skb(egress)]
pub fn weft_skb_out(ctx: SkBuffContext) -> i32 {
    i32::from(leave(ctx.skb.skb))
}

#[cgroup_skb(ingress)]
pub fn weft_skb_in(ctx: SkBuffContext) -> i32 {
    i32::from(enter(ctx.skb.skb))
}
