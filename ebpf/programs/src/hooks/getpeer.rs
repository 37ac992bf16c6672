//! cgroup/getpeername4 and 6: the application sees the address it asked for.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::{protocol, sock_flags};

use crate::{asked, context::SockAddr};

#[inline(always)]
fn restore(hook: &SockAddr) -> i32 {
    if hook.protocol() == u32::from(protocol::UDP) {
        // It may have asked others since.
        asked::restore(hook);
    } else if let Some(record) = hook.record()
        && record.flags & sock_flags::TRANSLATED != 0
        && (hook.is_v6() || record.original.is_v4())
    {
        hook.rewrite(&record.original, record.original_port_be);
    }
    1
}

#[cgroup_sock_addr(getpeername4)]
pub fn weft_getpeer4(ctx: SockAddrContext) -> i32 {
    restore(&SockAddr::new(ctx.sock_addr, false))
}

#[cgroup_sock_addr(getpeername6)]
pub fn weft_getpeer6(ctx: SockAddrContext) -> i32 {
    restore(&SockAddr::new(ctx.sock_addr, true))
}
