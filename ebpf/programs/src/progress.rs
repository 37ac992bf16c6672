//! What a connection has carried, and giving it to its edge: once a second while it lives, and at its end.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_tcp_sock};
use weft_abi::{SockRecord, circuit, identity, sock_flags};

use crate::telemetry;

const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// How a connection ended, for [`settle`].
pub mod ending {
    /// It lives.
    pub const NONE: u32 = 0;
    /// By the FIN exchange.
    pub const ORDERLY: u32 = 1;
    /// In any other way.
    pub const RESET: u32 = 2;
    /// It never began.
    pub const REFUSED: u32 = 3;
}

/// What TCP counts of a connection since its socket was made.
pub struct Progress {
    /// `bytes_acked`; payload, from [`Progress::payload_of`] on.
    pub acked: u64,
    /// `bytes_received`; likewise.
    pub received: u64,
    pub segments_sent: u32,
    pub segments_received: u32,
    pub retransmits: u32,
    /// Eight times the smoothed round trip time; 0: no sample yet (never less than 1 with one: `tcp_rtt_estimator`).
    pub rtt_us_8: u32,
}

// === impl Progress ===

impl Progress {
    /// `None`: no TCP.
    ///
    /// # Safety
    ///
    /// `sk` is a socket pointer as the verifier knows it, not null.
    #[inline(always)]
    unsafe fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: the helper takes a socket the caller vouches for; loads at constant offsets of what it answers, not null.
        unsafe {
            let tcp = bpf_tcp_sock(sk).as_ref()?;
            Some(Self {
                acked: read_volatile(&tcp.bytes_acked),
                received: read_volatile(&tcp.bytes_received),
                segments_sent: read_volatile(&tcp.segs_out),
                segments_received: read_volatile(&tcp.segs_in),
                retransmits: read_volatile(&tcp.total_retrans),
                rtt_us_8: read_volatile(&tcp.srtt_us),
            })
        }
    }

    /// Leaves payload alone in the bytes that TCP carried: they count the sequence numbers of SYN and FIN (RFC 4898 says octets;
    /// `tcp_snd_una_update`, `tcp_rcv_nxt_update` count what moves the window).
    #[inline(always)]
    pub fn payload_of(&mut self, record: &SockRecord, fin_acked: bool, fin_received: bool) {
        self.acked = self.acked.saturating_sub(record.acked_base + u64::from(fin_acked));
        self.received = self.received.saturating_sub(u64::from(fin_received));
    }
}

/// A connection that lives sends a segment, maybe a bare acknowledgement: once a second its counts go to its edge. Costs a
/// comparison and a clock reading otherwise. The socket is locked (`tcp_transmit_skb`), so nobody else counts it now; but
/// for segments that netfilter had handed to a program (NFQUEUE), of which two at the same moment may count the same second twice.
///
/// # Safety
///
/// As [`Progress::of`].
#[inline(always)]
pub unsafe fn flush(sk: *mut bpf_sock, record: &mut SockRecord) {
    let counted = record.flags & (sock_flags::ESTABLISHED | sock_flags::PROXY) == sock_flags::ESTABLISHED;
    if counted && telemetry::due(&mut record.flushed_at) {
        // SAFETY: the caller vouches for it.
        unsafe { flush_now(sk, record) };
    }
}

/// The other end answers, so it has read what it was handed; by the rules of most protocols, and the proxy's.
#[inline(always)]
pub fn heard(record: &mut SockRecord) {
    if record.circuit == circuit::DIRECT {
        record.heard_direct = record.direct_bytes;
    }
}

/// Not inlined: a stack of its own.
#[inline(never)]
unsafe fn flush_now(sk: *mut bpf_sock, record: &mut SockRecord) {
    // SAFETY: as the caller's; a load at a constant offset.
    let (state, progress) = unsafe { (read_volatile(addr_of!((*sk).state)), Progress::of(sk)) };
    let Some(mut progress) = progress else { return };
    // A FIN may be among the acknowledged and the received: taken off here wherever it can be, it is not missing at the
    // close, which knows.
    let fin_acked = state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT;
    let fin_received = state != TCP_ESTABLISHED;
    progress.payload_of(record, fin_acked, fin_received);
    settle_far_end(record);
    settle(record, &progress, ending::NONE);
}

/// Gives the edge what it does not have yet, and notes what it has: counted once, whenever the counting happens.
///
/// Not inlined: several callers, and a stack of its own.
#[inline(never)]
pub fn settle(record: &mut SockRecord, progress: &Progress, end: u32) {
    let &Progress {
        acked,
        received,
        segments_sent,
        segments_received,
        retransmits,
        rtt_us_8,
    } = progress;
    let sent = acked.saturating_sub(record.flushed_acked) + (record.direct_bytes - record.flushed_direct);
    let got = received.saturating_sub(record.flushed_received);
    let segments_out = segments_sent.wrapping_sub(record.flushed_segments_sent);
    let segments_in = segments_received.wrapping_sub(record.flushed_segments_received);
    let again = retransmits.wrapping_sub(record.flushed_retransmits);
    if acked > record.flushed_acked {
        record.flushed_acked = acked;
    }
    if received > record.flushed_received {
        record.flushed_received = received;
    }
    record.flushed_direct = record.direct_bytes;
    record.flushed_segments_sent = segments_sent;
    record.flushed_segments_received = segments_received;
    record.flushed_retransmits = retransmits;
    let _ = telemetry::edge(&telemetry::edge_key(record), |counters| {
        telemetry::add(&mut counters.bytes_sent, sent);
        telemetry::add(&mut counters.bytes_received, got);
        telemetry::add(&mut counters.segments_sent, u64::from(segments_out));
        telemetry::add(&mut counters.segments_received, u64::from(segments_in));
        telemetry::add(&mut counters.retransmits, u64::from(again));
        if rtt_us_8 > 0 {
            telemetry::observe(&mut counters.rtt, rtt_us_8 >> 3);
        }
        match end {
            ending::NONE => {}
            ending::REFUSED => telemetry::add(&mut counters.refused, 1),
            _ => {
                telemetry::add(&mut counters.closed, 1);
                if end == ending::RESET {
                    telemetry::add(&mut counters.reset, 1);
                }
            }
        }
    });
}

/// Whether this end counts for the other one what it hands over past TCP, which nothing there sees come: where both ways are
/// short-circuited, and the other end is a workload's. The proxy has no edges.
#[inline(always)]
pub fn tells_far_end(record: &SockRecord) -> bool {
    let to_proxy = record.flags & sock_flags::REDIRECTED != 0 || record.source == identity::PROXY;
    record.flags & sock_flags::FULL != 0 && (record.flags & sock_flags::PROXY != 0 || !to_proxy)
}

/// Gives the other end's edge what this end handed over; before [`settle`], and not in it: the stacks of three calls
/// together were 528 bytes, of 512.
#[inline(always)]
pub fn settle_far_end(record: &SockRecord) {
    let direct = record.direct_bytes - record.flushed_direct;
    if direct > 0 && tells_far_end(record) {
        telemetry::handed_over(record, direct);
    }
}
