//! Telemetry aggregated in the kernel, one entry an edge.

use crate::{action, protocol};

/// Which end counted.
pub mod reporter {
    /// The dialling end.
    pub const SOURCE: u8 = 0;
    /// The accepting end.
    pub const DESTINATION: u8 = 1;
    /// A packet hook of a device (tc): bytes are those of whole frames, headers included (a packet that is cut into
    /// segments later has them once); "sent" is from who began the flow. Nothing is told of a flow's end.
    pub const DEVICE: u8 = 2;
}

/// `weft_edges` key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Service port number, 0 = reached by its own address.
    pub service: u32,
    /// Destination port, host order.
    pub port: u16,
    /// [`crate::protocol`].
    pub protocol: u8,
    /// [`crate::action`].
    pub verdict: u8,
    /// [`reporter`].
    pub reporter: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 3],
}

/// Buckets of a [`LatencyHistogram`].
pub const LATENCY_BUCKETS: usize = 24;

/// Microseconds on a logarithmic scale: bucket 0 holds up to 1 µs, bucket `n` more than 2^(n-1) and up to 2^n µs, the last
/// one everything above 2^22 µs (4.2 s).
///
/// Buckets count modulo 2^32, which halves the table: readers take differences ([`EdgeCounters::since`]), exact as long
/// as they read before 4 billion samples came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Sum of all samples, µs.
    pub sum_us: u64,
    /// Samples by [`latency_bucket`].
    pub buckets: [u32; LATENCY_BUCKETS],
}

/// `weft_edges` value, per CPU. Counters only grow; bytes are payload, segments are what TCP counts (SYN, FIN and bare
/// acknowledgements among them; short-circuited bytes need none).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Connections that reached ESTABLISHED (or were denied, under `verdict` DENY).
    pub opened: u64,
    /// Connections closed after ESTABLISHED.
    pub closed: u64,
    /// Connections that never reached ESTABLISHED.
    pub refused: u64,
    /// Closed without the FIN exchange.
    pub reset: u64,
    /// Payload this end sent (and the peer acknowledged, or got past TCP).
    pub bytes_sent: u64,
    /// Payload this end received.
    pub bytes_received: u64,
    /// Segments this end sent, retransmitted ones included.
    pub segments_sent: u64,
    /// Segments this end received.
    pub segments_received: u64,
    /// Segments this end sent again.
    pub retransmits: u64,
    /// From the SYN to ESTABLISHED; at the source only.
    pub connect: LatencyHistogram,
    /// Smoothed round trip time: a sample a flush, so at least one a connection and at most one a second.
    pub rtt: LatencyHistogram,
}

/// The bucket of a time. Exact at its bounds, no loop: a kernel program calls it.
#[inline(always)]
pub const fn latency_bucket(us: u32) -> usize {
    // The number of bits of `us - 1` is the logarithm, rounded up.
    let mut rest = us.saturating_sub(1);
    let mut bucket = 0;
    if rest >= 1 << 16 {
        rest >>= 16;
        bucket += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        bucket += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        bucket += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        bucket += 2;
    }
    if rest >= 1 << 1 {
        rest >>= 1;
        bucket += 1;
    }
    bucket += rest as usize;
    if bucket < LATENCY_BUCKETS {
        bucket
    } else {
        LATENCY_BUCKETS - 1
    }
}

/// Largest time a bucket holds, µs; `None`: there is no largest.
pub const fn latency_bound_us(bucket: usize) -> Option<u32> {
    if bucket < LATENCY_BUCKETS - 1 {
        Some(1 << bucket)
    } else {
        None
    }
}

// === impl EdgeKey ===

impl EdgeKey {
    /// Source and destination of an overflow edge; no identity has this number.
    pub const OVERFLOW: u32 = u32::MAX;

    /// Where the counts of an edge go for which the table has no room: who is lost, what happened is not.
    #[inline(always)]
    pub const fn overflow(reporter: u8, protocol: u8, verdict: u8) -> Self {
        Self {
            source: Self::OVERFLOW,
            destination: Self::OVERFLOW,
            service: 0,
            port: 0,
            protocol: if protocol == protocol::UDP {
                protocol::UDP
            } else {
                protocol::TCP
            },
            verdict: if verdict == action::DENY {
                action::DENY
            } else {
                action::ALLOW
            },
            reporter,
            pad: [0; 3],
        }
    }

    /// Every key that [`EdgeKey::overflow`] gives: made by the daemon before the first program runs.
    pub fn overflows() -> impl Iterator<Item = Self> {
        [reporter::SOURCE, reporter::DESTINATION, reporter::DEVICE]
            .into_iter()
            .flat_map(|reporter| [protocol::TCP, protocol::UDP].map(|protocol| (reporter, protocol)))
            .flat_map(|(reporter, protocol)| {
                [action::ALLOW, action::DENY].map(|verdict| Self::overflow(reporter, protocol, verdict))
            })
    }

    /// Whether it stands for all edges that found no room.
    pub const fn is_overflow(&self) -> bool {
        self.source == Self::OVERFLOW && self.destination == Self::OVERFLOW
    }
}

// === impl LatencyHistogram ===

impl LatencyHistogram {
    /// Adds the samples of another CPU.
    pub fn merge(&mut self, other: &Self) {
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.wrapping_add(more);
        }
    }

    /// What came since `before` was read.
    pub fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, old) in buckets.iter_mut().zip(before.buckets) {
            *bucket = bucket.wrapping_sub(old);
        }
        Self {
            sum_us: self.sum_us.wrapping_sub(before.sum_us),
            buckets,
        }
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().copied().map(u64::from).sum()
    }
}

// === impl EdgeCounters ===

impl EdgeCounters {
    /// No traffic. A constant of its own, so that a kernel program finds it in read-only data and not on its stack.
    pub const ZERO: Self = Self {
        opened: 0,
        closed: 0,
        refused: 0,
        reset: 0,
        bytes_sent: 0,
        bytes_received: 0,
        segments_sent: 0,
        segments_received: 0,
        retransmits: 0,
        connect: LatencyHistogram {
            sum_us: 0,
            buckets: [0; LATENCY_BUCKETS],
        },
        rtt: LatencyHistogram {
            sum_us: 0,
            buckets: [0; LATENCY_BUCKETS],
        },
    };

    /// Adds the counters of another CPU.
    pub fn merge(&mut self, other: &Self) {
        self.combine(other, u64::wrapping_add);
        self.connect.merge(&other.connect);
        self.rtt.merge(&other.rtt);
    }

    /// What came since `before` was read.
    pub fn since(&self, before: &Self) -> Self {
        let mut grown = *self;
        grown.combine(before, u64::wrapping_sub);
        grown.connect = self.connect.since(&before.connect);
        grown.rtt = self.rtt.since(&before.rtt);
        grown
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        for (mine, theirs) in [
            (&mut self.opened, other.opened),
            (&mut self.closed, other.closed),
            (&mut self.refused, other.refused),
            (&mut self.reset, other.reset),
            (&mut self.bytes_sent, other.bytes_sent),
            (&mut self.bytes_received, other.bytes_received),
            (&mut self.segments_sent, other.segments_sent),
            (&mut self.segments_received, other.segments_received),
            (&mut self.retransmits, other.retransmits),
        ] {
            *mine = with(*mine, theirs);
        }
    }
}

const _: () = assert!(size_of::<EdgeKey>() == 20);
const _: () = assert!(size_of::<LatencyHistogram>() == 104);
const _: () = assert!(size_of::<EdgeCounters>() == 280);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_above_the_bound_before_and_up_to_its_own() {
        let mut before = None;
        for bucket in 0..LATENCY_BUCKETS {
            let lowest = before.map_or(0, |bound: u32| bound + 1);
            let highest = latency_bound_us(bucket).unwrap_or(u32::MAX);
            for us in [lowest, lowest + (highest - lowest) / 2, highest] {
                assert_eq!(latency_bucket(us), bucket, "{us} µs");
            }
            before = latency_bound_us(bucket);
        }
        assert_eq!(before, None, "the last bucket has no bound");
        assert_eq!(latency_bound_us(LATENCY_BUCKETS - 2), Some(4_194_304));
    }

    #[test]
    fn differences_are_exact_across_a_wrap() {
        let mut before = EdgeCounters::ZERO;
        (before.bytes_sent, before.rtt.buckets[3], before.rtt.sum_us) = (7, u32::MAX, 10);
        let mut one = EdgeCounters::ZERO;
        (one.bytes_sent, one.rtt.buckets[3], one.rtt.sum_us) = (5, 2, 14);
        let mut after = before;
        after.merge(&one);
        assert_eq!(after.since(&before), one);
        assert_eq!(after.since(&before).rtt.count(), 2);
    }

    #[test]
    fn every_edge_has_an_overflow_that_is_made_beforehand() {
        for reporter in [reporter::SOURCE, reporter::DESTINATION, reporter::DEVICE] {
            for protocol in [protocol::TCP, protocol::UDP, 1] {
                for verdict in 0..=u8::MAX {
                    let key = EdgeKey::overflow(reporter, protocol, verdict);
                    assert!(
                        key.is_overflow() && EdgeKey::overflows().any(|made| made == key),
                        "{key:?}"
                    );
                }
            }
        }
        assert!(!EdgeKey::default().is_overflow());
    }
}
