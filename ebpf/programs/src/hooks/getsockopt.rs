//! cgroup/getsockopt, attached to the cgroups of foreign proxies alone: SO_ORIGINAL_DST as behind iptables.
//!
//! What it answers is the *endpoint* that the kernel picked, not the virtual IP that was asked for: an unmodified Envoy's
//! ORIGINAL_DST cluster connects there, its connects are not captured, and behind a virtual IP there is nobody. A proxy
//! that routes by Host or SNI does not ask.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_netns_cookie, macros::cgroup_sockopt, programs::SockoptContext};
use weft_abi::{Addr, sock_flags};

use crate::{
    context::{record, sock_tuple},
    maps::CONNS,
};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`, netfilter's.
const ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Bytes of `struct sockaddr_in` and `struct sockaddr_in6`.
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;

/// Steps: another option, another connection -> as the kernel answered; else the endpoint, and 0 instead of the kernel's
/// ENOPROTOOPT (no netfilter) or ENOENT (no such flow there).
#[cgroup_sockopt(getsockopt)]
pub fn weft_getsockopt(ctx: SockoptContext) -> i32 {
    let length = answer(&ctx).unwrap_or(0);
    // SAFETY: context stores at constant offsets, allowed for these fields. One store of each: two of one value in different
    // branches are merged at a computed offset, which the verifier refuses.
    unsafe {
        if length != 0 {
            write_volatile(addr_of_mut!((*ctx.sockopt).retval), 0);
        }
        // 0: nothing is copied back, so what the kernel wrote stays, also where the caller's buffer is larger than the page
        // that programs are shown of it (a length above that would be refused).
        write_volatile(addr_of_mut!((*ctx.sockopt).optlen), length as i32);
    }
    1
}

/// Writes the answer into the caller's buffer; its length.
#[inline(always)]
fn answer(ctx: &SockoptContext) -> Option<usize> {
    // SAFETY: context loads at constant offsets.
    let (level, optname) = unsafe {
        (
            read_volatile(addr_of!((*ctx.sockopt).level)),
            read_volatile(addr_of!((*ctx.sockopt).optname)),
        )
    };
    if optname != ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        return None;
    }
    let (addr, port_be) = original(ctx)?;
    if level == SOL_IP && !addr.is_v4() {
        return None;
    }
    // SAFETY: the buffer's two ends, compared before each store as the verifier wants; its start is as aligned as a
    // page.
    unsafe {
        let start = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_2.optval)) as usize;
        let end = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_3.optval_end)) as usize;
        let words = start as *mut u32;
        if level == SOL_IP {
            if start + SOCKADDR_IN > end {
                return None;
            }
            write_volatile(words, family_and_port(AF_INET, port_be));
            write_volatile(words.add(1), addr.0[3]);
            write_volatile(words.add(2), 0);
            write_volatile(words.add(3), 0);
            Some(SOCKADDR_IN)
        } else {
            if start + SOCKADDR_IN6 > end {
                return None;
            }
            write_volatile(words, family_and_port(AF_INET6, port_be));
            write_volatile(words.add(1), 0);
            write_volatile(words.add(2), addr.0[0]);
            write_volatile(words.add(3), addr.0[1]);
            write_volatile(words.add(4), addr.0[2]);
            write_volatile(words.add(5), addr.0[3]);
            write_volatile(words.add(6), 0);
            Some(SOCKADDR_IN6)
        }
    }
}

/// The first word of a sockaddr: the family in host order, then the port in wire order.
#[inline(always)]
fn family_and_port(family: u16, port_be: u16) -> u32 {
    let ([a, b], [c, d]) = (family.to_ne_bytes(), port_be.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The endpoint picked for an accepted connection: from the socket itself, if `weft_sockops` saw it come, else by the
/// dialling end's tuple. `None`: the connection was not handed over.
#[inline(always)]
fn original(ctx: &SockoptContext) -> Option<(Addr, u16)> {
    const HANDED_OVER: u16 = sock_flags::REDIRECTED | sock_flags::EXTERNAL;
    // SAFETY: `sk` of the context, looked at before use as the verifier wants.
    unsafe {
        let sk = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_1.sk));
        if sk.is_null() {
            return None;
        }
        if let Some(record) = record(sk)
            && record.flags & sock_flags::CLAIMED != 0
        {
            return (record.flags & HANDED_OVER == HANDED_OVER).then_some((record.original, record.original_port_be));
        }
        let tuple = sock_tuple(sk, bpf_get_netns_cookie(ctx.as_ptr()) as u32).reversed();
        let conn = CONNS.get_ptr_mut(&tuple.conn_key())?;
        if (*conn).flags & HANDED_OVER != HANDED_OVER {
            return None;
        }
        (*conn).flags |= sock_flags::CLAIMED;
        Some(((*conn).original, (*conn).original_port_be))
    }
}
