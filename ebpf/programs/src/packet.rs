//! What a packet says of itself: addresses, ports, flags. For cgroup_skb and tc, which see the same from the network
//! header on.

use core::ptr::{addr_of, from_mut, read_volatile};

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use weft_abi::{Addr, Tuple, protocol};

/// Headers between IPv6's own and the payload's that are walked (RFC 8200, 4.1 lists six kinds; more is no honest packet).
const MAX_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Judged as UDP, whose ports it has (RFC 3828).
pub const UDP_LITE: u8 = 136;

/// TCP flags (RFC 9293, 3.1).
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A packet with ports.
pub struct Packet {
    /// Local is the sender.
    pub tuple: Tuple,
    /// [`protocol`]; UDP-Lite is UDP.
    pub protocol: u8,
    /// Of TCP.
    pub flags: u8,
    /// Bytes of the datagram (UDP).
    pub payload: u16,
}

/// Why there is none.
pub enum Other {
    /// None of the protocols of [`has_ports`], or a later fragment.
    NoPorts,
    /// Shorter than its headers say, or more of them than [`MAX_EXTENSIONS`].
    Malformed,
}

#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, offset: u32, into: &mut T) -> bool {
    // SAFETY: the helper writes exactly the size it is given into a live place of that size, or fails.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, from_mut(into).cast(), size_of::<T>() as u32) == 0 }
}

/// The protocols whose packets are judged by port; all begin with source and destination port (RFC 9293, 768, 3828, 9260, 4340).
#[inline(always)]
pub fn has_ports(number: u8) -> bool {
    matches!(
        number,
        protocol::TCP | protocol::UDP | UDP_LITE | protocol::SCTP | protocol::DCCP
    )
}

/// Bytes of the packet, on tc with its link header.
#[inline(always)]
pub fn length(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a context load at a constant offset.
    unsafe { read_volatile(addr_of!((*skb).len)) }
}

// === impl Packet ===

impl Packet {
    /// Of namespace `netns`, not read yet.
    #[inline(always)]
    pub fn of(netns: u32) -> Self {
        Self {
            tuple: Tuple {
                netns,
                ..Tuple::default()
            },
            protocol: 0,
            flags: 0,
            payload: 0,
        }
    }

    /// Reads the headers. `net` is where the network header begins (cgroup_skb: 0; tc: after the link header).
    #[inline(always)]
    pub fn read(&mut self, skb: *mut __sk_buff, net: u32) -> Result<(), Other> {
        match read(skb, net, self) {
            READ => Ok(()),
            NO_PORTS => Err(Other::NoPorts),
            _ => Err(Other::Malformed),
        }
    }
}

const READ: u32 = 0;
const NO_PORTS: u32 = 1;
const MALFORMED: u32 = 2;

/// Not inlined: what it reads headers into is not on its callers' stack, of which Linux 6.1 leaves little.
#[inline(never)]
fn read(skb: *mut __sk_buff, net: u32, packet: &mut Packet) -> u32 {
    let mut first = 0u8;
    if !load(skb, net, &mut first) {
        return MALFORMED;
    }
    let tuple = &mut packet.tuple;
    let (at, next) = if first >> 4 == 4 {
        let mut head = [0u32; 5];
        if !load(skb, net, &mut head) {
            return MALFORMED;
        }
        // Word 1 ends in flags and fragment offset, word 2 has time to live, protocol, checksum.
        if u32::from_be(head[1]) & 0x1fff != 0 {
            return NO_PORTS;
        }
        tuple.local = Addr::v4(head[3]);
        tuple.remote = Addr::v4(head[4]);
        (net + u32::from(first & 15) * 4, (u32::from_be(head[2]) >> 16) as u8)
    } else if first >> 4 == 6 {
        let mut head = [0u32; 10];
        if !load(skb, net, &mut head) {
            return MALFORMED;
        }
        tuple.local = Addr([head[2], head[3], head[4], head[5]]);
        tuple.remote = Addr([head[6], head[7], head[8], head[9]]);
        let mut next = (u32::from_be(head[1]) >> 8) as u8;
        let mut at = net + 40;
        let mut walked = 0;
        while walked < MAX_EXTENSIONS
            && (next == HOP_BY_HOP || next == ROUTING || next == DESTINATION || next == FRAGMENT)
        {
            let mut extension = [0u8; 4];
            if !load(skb, at, &mut extension) {
                return MALFORMED;
            }
            if next == FRAGMENT {
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    return NO_PORTS;
                }
                at += 8;
            } else {
                at += (u32::from(extension[1]) + 1) * 8;
            }
            next = extension[0];
            walked += 1;
        }
        (at, next)
    } else {
        return NO_PORTS;
    };
    if !has_ports(next) {
        return if next == HOP_BY_HOP || next == ROUTING || next == DESTINATION || next == FRAGMENT {
            MALFORMED
        } else {
            NO_PORTS
        };
    }
    let mut ports = [0u16; 4];
    if !load(skb, at, &mut ports) {
        return MALFORMED;
    }
    (tuple.local_port_be, tuple.remote_port_be) = (ports[0], ports[1]);
    packet.protocol = if next == UDP_LITE { protocol::UDP } else { next };
    if packet.protocol == protocol::UDP {
        // The length counts the header's eight bytes. (UDP-Lite has there how much its checksum covers.)
        packet.payload = u16::from_be(ports[2]).saturating_sub(8);
    } else if next == protocol::TCP && !load(skb, at + 13, &mut packet.flags) {
        return MALFORMED;
    }
    READ
}
