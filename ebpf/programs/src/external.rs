//! Foreign proxies (`l7: {mode: external}`): whether one is there, and what of a connection's record it still needs.

use aya_ebpf::{
    bindings::{bpf_sock_addr, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_tcp, bpf_sk_release},
};
use core::ptr::{addr_of, addr_of_mut, read_volatile};
use weft_abi::{
    Addr, Dest, PolicyValue, SockRecord, Tuple, action, backend_flags, dest_flags, external_guard, identity, sock_flags,
};

use crate::{
    capture::{self, Epoch, Way},
    context::{SockAddr, record},
    maps::{CONNS, EXTERNALS},
};

const BPF_TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`
const CURRENT_NETNS: u64 = u64::MAX;

/// Where the foreign proxy of a service takes connections to endpoints of this family; `None`: it is not there.
///
/// The family is the endpoint's: SOL_IP's SO_ORIGINAL_DST has no room for an IPv6 address, and a proxy dials what
/// SOL_IPV6's answers from a socket that may be IPv6 only.
#[inline(always)]
pub fn proxy(config: Epoch, hook: &SockAddr, service: u32, v4: bool) -> Option<Way> {
    // SAFETY: shared read of a map value.
    let found = unsafe { EXTERNALS.get(&service) }?.at(config.generation);
    let addr = if v4 { found.addr4 } else { found.addr6 };
    if found.cgroup == 0 || addr == Addr::default() {
        return None;
    }
    let [a, b, c, d] = addr.0;
    let (high, low) = (u64::from(a) << 32 | u64::from(b), u64::from(c) << 32 | u64::from(d));
    if listens(hook.raw(), high, low, u64::from(found.port_be), found.cgroup) == 0 {
        return None;
    }
    Some(Way::to(addr, found.port_be))
}

/// Whether an IPv6 socket may be given an IPv6 endpoint of this service. Not if its foreign proxy takes IPv4 alone.
#[inline(always)]
pub fn takes_v6(config: Epoch, hook: &SockAddr, dest: &Dest) -> bool {
    dest.flags & dest_flags::EXTERNAL == 0
        || proxy(config, hook, dest.service, false).is_some()
        || proxy(config, hook, dest.service, true).is_none()
}

/// 1: something listens at the address (two words in memory order each) and port, in the calling socket's network
/// namespace, that the owner of `cgroup` made, or somebody whom no hook of ours saw: a foreign proxy that was there before us.
/// A captured workload's socket always has a record, so none can take the place of a proxy that is away.
///
/// Asked of the kernel's own table (Linux 4.20) rather than of `weft_listen`: nobody saw the listener of a proxy outside the
/// captured cgroup come. Not inlined: two callers, and its own stack.
#[inline(never)]
fn listens(ctx: *mut bpf_sock_addr, high: u64, low: u64, port_be: u64, cgroup: u64) -> u64 {
    let addr = Addr([(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]);
    // SAFETY: integers, all zero is a value of it.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: writes to a union of integers on the stack.
    let size = unsafe {
        if addr.is_v4() {
            tuple.__bindgen_anon_1.ipv4.daddr = addr.0[3];
            tuple.__bindgen_anon_1.ipv4.dport = port_be as u16;
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = addr.0;
            tuple.__bindgen_anon_1.ipv6.dport = port_be as u16;
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        }
    };
    // SAFETY: the helper takes this context and a tuple of the size said; what it returns is a socket or null and is
    // released on every path.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx.cast(), addr_of_mut!(tuple), size as u32, CURRENT_NETNS, 0);
        if sk.is_null() {
            return 0;
        }
        let state = read_volatile(addr_of!((*sk).state));
        // Somebody's sk_lookup program may have put another socket in its place.
        let port = read_volatile(addr_of!((*sk).src_port)) as u16;
        let theirs = match record(sk) {
            Some(found) => found.owner == cgroup,
            None => true,
        };
        bpf_sk_release(sk.cast());
        u64::from(state == BPF_TCP_LISTEN && port == u16::from_be(port_be as u16) && theirs)
    }
}

/// Whether `owner` may bind or dial this port of this machine. A foreign proxy's is its own: who could join it would take
/// connections that are handed over; who could dial it would be let in everywhere, as the proxy is.
#[inline(always)]
pub fn may_use(config: Epoch, port_be: u16, owner: u64) -> bool {
    // SAFETY: shared read of a map value.
    match unsafe { EXTERNALS.get(&external_guard(port_be)) } {
        Some(found) => {
            let found = found.at(config.generation);
            found.cgroup == 0 || found.cgroup == owner
        }
        None => true,
    }
}

/// Whether the record of a connection in `weft_conns` may go with its dialling end: the foreign proxy has asked for it. One
/// that has not yet (the client wrote and closed before it was accepted) is left to the daemon's sweep.
#[inline(always)]
pub fn is_settled(record: &SockRecord, key: &Tuple) -> bool {
    if record.flags & sock_flags::EXTERNAL == 0 {
        return false;
    }
    // SAFETY: shared read of a map value.
    match unsafe { CONNS.get(key) } {
        Some(conn) => conn.flags & sock_flags::CLAIMED != 0,
        None => false,
    }
}

/// The foreign proxy has the record, on its accepted socket or by having asked. The entry stays for as long as the dialling end
/// lives, by which the daemon finds it if it is denied later.
#[inline(always)]
pub fn claim(key: &Tuple) {
    if let Some(conn) = CONNS.get_ptr_mut(key) {
        // SAFETY: the value is valid for the run (RCU); nobody else writes the flags of a connection that is handed over.
        unsafe { (*conn).flags |= sock_flags::CLAIMED };
    }
}

/// Whether a cgroup is a foreign proxy's, whose connections are nobody's to judge: its clients were judged, by the endpoint
/// that they will reach, before they were handed over.
#[inline(always)]
pub fn is_proxy(owner: u64) -> bool {
    matches!(capture::workload(owner), Some(found) if found.identity == identity::PROXY)
}

/// A verdict for a backend with these [`backend_flags`]: where nobody on the way sees requests, what only a rule about them
/// allows is denied, or reported under audit.
#[inline(always)]
pub fn unseen(ruling: PolicyValue, flags: u16) -> PolicyValue {
    if ruling.action() != action::REDIRECT || flags & backend_flags::UNASKED == 0 {
        return ruling;
    }
    let instead = if flags & backend_flags::AUDITED == 0 {
        action::DENY
    } else {
        action::AUDIT
    };
    PolicyValue::new(ruling.rule, instead, 0, false)
}
