//! sk_lookup in a network namespace: the accepting side's verdict before a socket is chosen, and inbound capture.
//!
//! Runs for a SYN and for a datagram to an unconnected socket. What it refuses is answered at once (RST, ICMP port
//! unreachable); what must be looked at per request gets our inbound listener, with its destination as it was.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{
        bpf_sk_lookup,
        sk_action::{SK_DROP, SK_PASS},
    },
    macros::sk_lookup,
    programs::SkLookupContext,
};
use weft_abi::{Addr, FlowRecord, Tuple, action, identity, protocol};

use crate::{
    capture::{self, ECONNREFUSED, Epoch},
    errs::{self, Site},
    flows::{self, Way},
    inbound::{self, Arrival},
    maps::INBOUND,
    verdict,
};

/// Low half of the network namespace's cookie, which this hook cannot ask for: the program is loaded once a namespace.
#[unsafe(no_mangle)]
static LOOKUP_NETNS: u32 = 0;

const AF_INET: u32 = 2;

#[inline(always)]
fn netns() -> u32 {
    // SAFETY: a read of our own read-only data; volatile, for user space sets it at load.
    unsafe { read_volatile(&LOOKUP_NETNS) }
}

/// As the accepting end sees it.
#[inline(always)]
fn tuple(lookup: *mut bpf_sk_lookup, v4: bool) -> Tuple {
    // SAFETY: context loads at constant offsets, whatever the family is (see `context::tuple`).
    unsafe {
        let local4 = read_volatile(addr_of!((*lookup).local_ip4));
        let remote4 = read_volatile(addr_of!((*lookup).remote_ip4));
        let local6 = [
            read_volatile(addr_of!((*lookup).local_ip6[0])),
            read_volatile(addr_of!((*lookup).local_ip6[1])),
            read_volatile(addr_of!((*lookup).local_ip6[2])),
            read_volatile(addr_of!((*lookup).local_ip6[3])),
        ];
        let remote6 = [
            read_volatile(addr_of!((*lookup).remote_ip6[0])),
            read_volatile(addr_of!((*lookup).remote_ip6[1])),
            read_volatile(addr_of!((*lookup).remote_ip6[2])),
            read_volatile(addr_of!((*lookup).remote_ip6[3])),
        ];
        Tuple {
            local: if v4 { Addr::v4(local4) } else { Addr(local6) },
            remote: if v4 { Addr::v4(remote4) } else { Addr(remote6) },
            local_port_be: (read_volatile(addr_of!((*lookup).local_port)) as u16).to_be(),
            remote_port_be: read_volatile(addr_of!((*lookup).remote_port)),
            netns: netns(),
        }
    }
}

#[inline(always)]
fn choose(ctx: &SkLookupContext) -> u32 {
    let Some(config) = capture::config() else {
        return SK_PASS;
    };
    // SAFETY: context loads at constant offsets.
    let (family, transport) = unsafe {
        (
            read_volatile(addr_of!((*ctx.lookup).family)),
            read_volatile(addr_of!((*ctx.lookup).protocol)) as u8,
        )
    };
    let tuple = tuple(ctx.lookup, family == AF_INET);
    let Some(listener) = capture::listener(&tuple.local, tuple.local_port_be, transport, tuple.netns) else {
        return SK_PASS;
    };
    let workload = match capture::workload(listener.owner) {
        Some(found) => found.identity != identity::PROXY,
        None => false,
    };
    if listener.owner == config.daemon_cgroup || !workload {
        return SK_PASS;
    }
    if transport == protocol::TCP {
        connection(ctx, config, &tuple, listener.owner, family == AF_INET)
    } else {
        datagram(config, &tuple, listener.owner)
    }
}

#[inline(always)]
fn connection(ctx: &SkLookupContext, config: Epoch, tuple: &Tuple, owner: u64, v4: bool) -> u32 {
    let arrival = inbound::arrive(config, tuple, owner, protocol::TCP);
    let verdict = arrival.ruling.action();
    if verdict == action::REDIRECT && arrival.before != action::REDIRECT && arrival.source.identity != identity::PROXY {
        let key = [tuple.netns, if v4 { 4 } else { 6 }];
        match INBOUND.redirect_sk_lookup(ctx, key, 0) {
            Ok(()) => return SK_PASS,
            Err(errno) if errno != -2 => errs::count(Site::Assign, errno),
            // Nobody of ours listens.
            Err(_) => {}
        }
        if inbound::fails_open(owner) {
            return SK_PASS;
        }
        return refuse(config, &arrival, tuple, protocol::TCP);
    }
    if verdict == action::DENY {
        return refuse(config, &arrival, tuple, protocol::TCP);
    }
    SK_PASS
}

/// Only the verdict: `weft_skb_in` notes the flow when it arrives at the socket.
#[inline(always)]
fn datagram(config: Epoch, tuple: &Tuple, owner: u64) -> u32 {
    let is_its = |way, flow: &FlowRecord| way == Way::Forth || flow.owner == owner;
    if let Some(mut flow) = flows::find(&tuple.reversed(), protocol::UDP, is_its) {
        if flow.way == Way::Forth && flow.record.peer != 0 && flow.record.peer != owner as u32 {
            // Another had the port when it came last: `weft_skb_in` judges it by the socket that has it now.
            return SK_PASS;
        }
        return if flow.settle(config) == action::DENY {
            SK_DROP
        } else {
            SK_PASS
        };
    }
    if capture::is_local(&tuple.remote, tuple.netns)
        && matches!(capture::listener(&tuple.remote, tuple.remote_port_be, protocol::UDP, tuple.netns),
            Some(found) if found.owner == config.daemon_cgroup)
    {
        return SK_PASS;
    }
    let source = inbound::by_address(&tuple.remote, tuple.netns, config.generation);
    let destination = inbound::party_of(owner);
    let port = u16::from_be(tuple.local_port_be);
    let ruling = verdict::judge(config, source, destination, protocol::UDP, port);
    if ruling.action() != action::DENY {
        return SK_PASS;
    }
    let arrival = Arrival {
        owner,
        peer_owner: 0,
        source,
        destination,
        ruling,
        before: action::ABSENT,
        captured: false,
    };
    refuse(config, &arrival, tuple, protocol::UDP)
}

#[inline(always)]
fn refuse(config: Epoch, arrival: &Arrival, tuple: &Tuple, protocol: u8) -> u32 {
    inbound::refused(config, arrival, tuple, protocol, ECONNREFUSED);
    SK_DROP
}

#[sk_lookup]
pub fn weft_sk_lookup(ctx: SkLookupContext) -> u32 {
    choose(&ctx)
}
