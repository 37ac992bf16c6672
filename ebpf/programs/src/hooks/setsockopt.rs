//! cgroup/setsockopt: a socket whose upper layer changes (TCP_ULP: kernel TLS, SMC) stays on TCP from then on; and one that takes
//! no IPv4 (IPV6_V6ONLY, which Linux lets nobody change once it is bound) is noted, for others may have its port there.
//!
//! With kernel TLS, `weft_sk_msg` runs on what is not encrypted yet: handed over past TCP, the peer would get plaintext where
//! it expects records. To leave is safe: what was handed over before is read first. To be left alone by the other end is not
//! in this socket's hands, so one that may be handed bytes itself (`acceleration: full`) is refused with EPERM; libraries
//! then encrypt by themselves.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use weft_abi::{SockRecord, circuit, sock_flags, traits};

use crate::context::record;

const SOL_TCP: i32 = 6;
const TCP_ULP: i32 = 31;
const SOL_IPV6: i32 = 41;
const IPV6_V6ONLY: i32 = 26;
/// The least that a page has.
const PAGE: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
pub fn weft_setsockopt(ctx: SockoptContext) -> i32 {
    let may = may(&ctx);
    // SAFETY: a context load and store at a constant offset, both allowed for this field. 0: the kernel takes the caller's own
    // bytes, which are more than the page that programs are shown of them; what fits may be another program's.
    unsafe {
        if read_volatile(addr_of!((*ctx.sockopt).optlen)) > PAGE {
            write_volatile(addr_of_mut!((*ctx.sockopt).optlen), 0);
        }
    }
    i32::from(may)
}

#[inline(always)]
fn may(ctx: &SockoptContext) -> bool {
    // SAFETY: context loads at constant offsets; `sk` looked at before use as the verifier wants.
    unsafe {
        let level = read_volatile(addr_of!((*ctx.sockopt).level));
        let optname = read_volatile(addr_of!((*ctx.sockopt).optname));
        let ulp = level == SOL_TCP && optname == TCP_ULP;
        if !ulp && (level != SOL_IPV6 || optname != IPV6_V6ONLY) {
            return true;
        }
        let sk = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_1.sk));
        if sk.is_null() {
            return true;
        }
        let Some(record) = record(sk) else { return true };
        if ulp {
            change_layer(record)
        } else {
            note_only_v6(ctx, record);
            true
        }
    }
}

/// Whether it may.
#[inline(always)]
fn change_layer(record: &mut SockRecord) -> bool {
    if record.flags & sock_flags::FULL != 0 {
        return false;
    }
    // Also of one that is not connected yet.
    record.traits |= traits::PLAIN;
    record.circuit = circuit::TCP;
    true
}

#[inline(always)]
fn note_only_v6(ctx: &SockoptContext, record: &mut SockRecord) {
    // SAFETY: context loads at constant offsets; what they lead to looked at before use as the verifier wants.
    unsafe {
        let value = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_2.optval)).cast::<u32>();
        let end = read_volatile(addr_of!((*ctx.sockopt).__bindgen_anon_3.optval_end)).cast::<u32>();
        if value.add(1) > end {
            return;
        }
        if read_volatile(value) != 0 {
            record.traits |= traits::ONLY_V6;
        } else {
            record.traits &= !traits::ONLY_V6;
        }
    }
}
