//! Reading the kernel's contexts: fixed offsets, one load a word, addresses in the one form of `weft_abi::Addr`.
//!
//! The verifier wants context loads at constant offsets and of the fields' own width; `read_volatile` keeps the
//! compiler from merging or moving them.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops, sk_msg_md},
    helpers::{bpf_get_netns_cookie, bpf_sk_storage_get},
};
use weft_abi::{Addr, Asked, SockRecord, Tuple};

use crate::maps::{ASKED, SOCKS};

const AF_INET: u32 = 2;
const SK_STORAGE_CREATE: u64 = 1;

/// The record a socket carries, if it has one. `sk` may be a program's context (sock_create) or its `sk` field.
///
/// # Safety
///
/// `sk` is a socket pointer as the verifier knows it, not null.
#[inline(always)]
pub unsafe fn record<'a, T>(sk: *mut T) -> Option<&'a mut SockRecord> {
    // SAFETY: the helper takes the map's own address and a socket the caller vouches for.
    unsafe {
        bpf_sk_storage_get(
            core::ptr::from_ref(&SOCKS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
        .cast::<SockRecord>()
        .as_mut()
    }
}

/// The same, made from `initial` if there is none.
///
/// # Safety
///
/// As [`record`].
#[inline(always)]
pub unsafe fn record_or_insert<'a, T>(sk: *mut T, initial: &mut SockRecord) -> Option<&'a mut SockRecord> {
    // SAFETY: as above; `initial` lives on the stack for the call.
    unsafe {
        bpf_sk_storage_get(
            core::ptr::from_ref(&SOCKS).cast_mut().cast(),
            sk.cast(),
            core::ptr::from_mut(initial).cast(),
            SK_STORAGE_CREATE,
        )
        .cast::<SockRecord>()
        .as_mut()
    }
}

/// connect, sendmsg, recvmsg and getpeername of one family.
pub struct SockAddr {
    ctx: *mut bpf_sock_addr,
    v6: bool,
}

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_addr, v6: bool) -> Self {
        Self { ctx, v6 }
    }

    /// Whether the hook is the IPv6 one (whose addresses may be v4-mapped).
    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// The address in the context: where to (connect, sendmsg), from whom (recvmsg), the peer (getpeername).
    #[inline(always)]
    pub fn addr(&self) -> Addr {
        // SAFETY: context loads at constant offsets.
        unsafe {
            if self.v6 {
                Addr([
                    read_volatile(addr_of!((*self.ctx).user_ip6[0])),
                    read_volatile(addr_of!((*self.ctx).user_ip6[1])),
                    read_volatile(addr_of!((*self.ctx).user_ip6[2])),
                    read_volatile(addr_of!((*self.ctx).user_ip6[3])),
                ])
            } else {
                Addr::v4(read_volatile(addr_of!((*self.ctx).user_ip4)))
            }
        }
    }

    /// Its port, wire order.
    #[inline(always)]
    pub fn port_be(&self) -> u16 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.ctx).user_port)) as u16 }
    }

    /// IP protocol of the socket (6, 17, 262 for MPTCP, ...).
    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.ctx).protocol)) }
    }

    /// Writes address and port into the context; an IPv4 hook takes the last four bytes.
    #[inline(always)]
    pub fn rewrite(&self, addr: &Addr, port_be: u16) {
        let words = addr.0;
        // SAFETY: context stores at constant offsets, allowed for these fields.
        unsafe {
            if self.v6 {
                write_volatile(addr_of_mut!((*self.ctx).user_ip6[0]), words[0]);
                write_volatile(addr_of_mut!((*self.ctx).user_ip6[1]), words[1]);
                write_volatile(addr_of_mut!((*self.ctx).user_ip6[2]), words[2]);
                write_volatile(addr_of_mut!((*self.ctx).user_ip6[3]), words[3]);
            } else {
                write_volatile(addr_of_mut!((*self.ctx).user_ip4), words[3]);
            }
            write_volatile(addr_of_mut!((*self.ctx).user_port), u32::from(port_be));
        }
    }

    /// What the socket carries; `None`: it was not made in a captured cgroup.
    #[inline(always)]
    pub fn record(&self) -> Option<&'static mut SockRecord> {
        // SAFETY: `sk` of a sock_addr context is a socket; the helper wants it not null, hence the look.
        unsafe {
            let sk = read_volatile(addr_of!((*self.ctx).__bindgen_anon_1.sk));
            if sk.is_null() { None } else { record(sk) }
        }
    }

    /// Gives a socket without record this one.
    #[inline(always)]
    pub fn insert_record(&self, initial: &mut SockRecord) -> Option<&'static mut SockRecord> {
        // SAFETY: as above.
        unsafe {
            let sk = read_volatile(addr_of!((*self.ctx).__bindgen_anon_1.sk));
            if sk.is_null() {
                None
            } else {
                record_or_insert(sk, initial)
            }
        }
    }

    /// Whom a datagram socket asked before whom its record names; `None`: nobody.
    #[inline(always)]
    pub fn asked(&self) -> Option<&'static mut Asked> {
        self.asked_with(0)
    }

    /// The same, made if there was nobody (all zero; Linux 5.2).
    #[inline(always)]
    pub fn asked_or_insert(&self) -> Option<&'static mut Asked> {
        self.asked_with(SK_STORAGE_CREATE)
    }

    #[inline(always)]
    fn asked_with(&self, flags: u64) -> Option<&'static mut Asked> {
        // SAFETY: as above; without an initial value the kernel makes one of zeros.
        unsafe {
            let sk = read_volatile(addr_of!((*self.ctx).__bindgen_anon_1.sk));
            if sk.is_null() {
                return None;
            }
            bpf_sk_storage_get(
                core::ptr::from_ref(&ASKED).cast_mut().cast(),
                sk.cast(),
                core::ptr::null_mut(),
                flags,
            )
            .cast::<Asked>()
            .as_mut()
        }
    }

    /// The context itself, for helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx
    }

    /// Network namespace cookie.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }
}

/// The connection of a sockops or sk_msg context, whose fields have the same names and meanings. Both families are read
/// whatever the socket's is: inside a branch the compiler would fold the two loads into one at a computed offset.
macro_rules! tuple {
    ($ctx:expr) => {{
        let ctx = $ctx;
        // SAFETY: context loads at constant offsets.
        unsafe {
            let family = read_volatile(addr_of!((*ctx).family));
            let local4 = read_volatile(addr_of!((*ctx).local_ip4));
            let remote4 = read_volatile(addr_of!((*ctx).remote_ip4));
            let local6 = [
                read_volatile(addr_of!((*ctx).local_ip6[0])),
                read_volatile(addr_of!((*ctx).local_ip6[1])),
                read_volatile(addr_of!((*ctx).local_ip6[2])),
                read_volatile(addr_of!((*ctx).local_ip6[3])),
            ];
            let remote6 = [
                read_volatile(addr_of!((*ctx).remote_ip6[0])),
                read_volatile(addr_of!((*ctx).remote_ip6[1])),
                read_volatile(addr_of!((*ctx).remote_ip6[2])),
                read_volatile(addr_of!((*ctx).remote_ip6[3])),
            ];
            // local_port is in host order, remote_port is the wire port in the upper half (include/uapi/linux/bpf.h).
            let local_port = read_volatile(addr_of!((*ctx).local_port));
            let remote_port = read_volatile(addr_of!((*ctx).remote_port));
            let v4 = family == AF_INET;
            Tuple {
                local: if v4 { Addr::v4(local4) } else { Addr(local6) },
                remote: if v4 { Addr::v4(remote4) } else { Addr(remote6) },
                local_port_be: (local_port as u16).to_be(),
                remote_port_be: (remote_port >> 16) as u16,
                netns: bpf_get_netns_cookie(ctx.cast()) as u32,
            }
        }
    }};
}

/// The connection of a sockops context as this end sees it.
#[inline(always)]
pub fn sockops_tuple(ops: *mut bpf_sock_ops) -> Tuple {
    tuple!(ops)
}

/// The connection of an sk_msg context as the sending end sees it.
#[inline(always)]
pub fn msg_tuple(msg: *mut sk_msg_md) -> Tuple {
    tuple!(msg)
}

/// The connection of a socket as this end sees it; `netns` is the low half of its namespace's cookie.
///
/// # Safety
///
/// `sk` is a full socket as the verifier knows it, not null.
#[inline(always)]
pub unsafe fn sock_tuple(sk: *mut bpf_sock, netns: u32) -> Tuple {
    // SAFETY: loads at constant offsets of what the caller vouches for; both families for the reason above.
    unsafe {
        let family = read_volatile(addr_of!((*sk).family));
        let local4 = read_volatile(addr_of!((*sk).src_ip4));
        let remote4 = read_volatile(addr_of!((*sk).dst_ip4));
        let local6 = [
            read_volatile(addr_of!((*sk).src_ip6[0])),
            read_volatile(addr_of!((*sk).src_ip6[1])),
            read_volatile(addr_of!((*sk).src_ip6[2])),
            read_volatile(addr_of!((*sk).src_ip6[3])),
        ];
        let remote6 = [
            read_volatile(addr_of!((*sk).dst_ip6[0])),
            read_volatile(addr_of!((*sk).dst_ip6[1])),
            read_volatile(addr_of!((*sk).dst_ip6[2])),
            read_volatile(addr_of!((*sk).dst_ip6[3])),
        ];
        // src_port is in host order, dst_port in wire order (include/uapi/linux/bpf.h).
        let local_port = read_volatile(addr_of!((*sk).src_port));
        let remote_port_be = read_volatile(addr_of!((*sk).dst_port));
        let v4 = family == AF_INET;
        Tuple {
            local: if v4 { Addr::v4(local4) } else { Addr(local6) },
            remote: if v4 { Addr::v4(remote4) } else { Addr(remote6) },
            local_port_be: (local_port as u16).to_be(),
            remote_port_be,
            netns,
        }
    }
}
