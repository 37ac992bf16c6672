use serde::{Deserialize, Serialize};
use weft_abi::{LATENCY_BUCKETS, LatencyHistogram, latency_bound_us};
use weft_adapters::{EdgeDelta, FlowProtocol, Side};

/// Counters of an edge; fields as in [`EdgeDelta`], "sent" is from source to destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeTotals {
    pub opened: u64,
    pub closed: u64,
    pub refused: u64,
    pub denied: u64,
    pub resets: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub segments_sent: u64,
    pub segments_received: u64,
    pub retransmits: u64,
    pub connect: LatencyTotals,
    pub rtt: LatencyTotals,
}

/// Samples by the kernel's logarithmic buckets (`weft_abi::latency_bound_us`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyTotals {
    pub sum_us: u64,
    pub buckets: [u64; LATENCY_BUCKETS],
}

// === impl EdgeTotals ===

impl EdgeTotals {
    /// Adds what came since the last delta.
    pub fn add(&mut self, delta: &EdgeDelta) {
        for (total, grown) in [
            (&mut self.opened, delta.opened),
            (&mut self.closed, delta.closed),
            (&mut self.refused, delta.refused),
            (&mut self.denied, delta.denied),
            (&mut self.resets, delta.reset),
            (&mut self.bytes_sent, delta.bytes_sent),
            (&mut self.bytes_received, delta.bytes_received),
            (&mut self.segments_sent, delta.segments_sent),
            (&mut self.segments_received, delta.segments_received),
            (&mut self.retransmits, delta.retransmits),
        ] {
            *total = total.saturating_add(grown);
        }
        self.connect.add(&delta.connect);
        self.rtt.add(&delta.rtt);
    }

    /// What came after `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            opened: self.opened.saturating_sub(before.opened),
            closed: self.closed.saturating_sub(before.closed),
            refused: self.refused.saturating_sub(before.refused),
            denied: self.denied.saturating_sub(before.denied),
            resets: self.resets.saturating_sub(before.resets),
            bytes_sent: self.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_received: self.bytes_received.saturating_sub(before.bytes_received),
            segments_sent: self.segments_sent.saturating_sub(before.segments_sent),
            segments_received: self.segments_received.saturating_sub(before.segments_received),
            retransmits: self.retransmits.saturating_sub(before.retransmits),
            connect: self.connect.since(&before.connect),
            rtt: self.rtt.since(&before.rtt),
        }
    }

    /// Connections that live, told by `reporter`; none where no end of one is seen.
    pub fn open(&self, reporter: Side, protocol: FlowProtocol) -> u64 {
        if reporter.sees_ends(protocol) {
            self.opened.saturating_sub(self.closed)
        } else {
            0
        }
    }
}

// === impl LatencyTotals ===

impl LatencyTotals {
    fn add(&mut self, grown: &LatencyHistogram) {
        self.sum_us = self.sum_us.saturating_add(grown.sum_us);
        for (bucket, more) in self.buckets.iter_mut().zip(grown.buckets) {
            *bucket += u64::from(more);
        }
    }

    fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, old) in buckets.iter_mut().zip(before.buckets) {
            *bucket = bucket.saturating_sub(old);
        }
        Self {
            sum_us: self.sum_us.saturating_sub(before.sum_us),
            buckets,
        }
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The time that `share` (0 to 1) of the samples do not exceed, in µs; `None` without samples. Within a bucket samples
    /// count as evenly spread, so it is right within a factor of two; above 4.2 s it says 4.2 s.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = (share * count as f64).clamp(1.0, count as f64);
        let (mut below, mut lowest) = (0.0, 0.0);
        for (number, &held) in self.buckets.iter().enumerate() {
            let Some(highest) = latency_bound_us(number).map(f64::from) else {
                break;
            };
            if held > 0 && below + held as f64 >= wanted {
                return Some((lowest + (highest - lowest) * (wanted - below) / held as f64).ceil() as u64);
            }
            below += held as f64;
            lowest = highest;
        }
        Some(lowest as u64)
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::latency_bucket;

    use super::*;

    fn totals(samples: &[(u32, u64)]) -> LatencyTotals {
        let mut totals = LatencyTotals::default();
        for (us, times) in samples {
            totals.buckets[latency_bucket(*us)] += times;
        }
        totals
    }

    #[test]
    fn a_quantile_is_in_the_bucket_of_its_sample() {
        let mixed = totals(&[(100, 90), (3_000, 10)]);
        for (share, lowest, highest) in [
            (0.5, 65, 128),
            (0.9, 65, 128),
            (0.91, 2_049, 4_096),
            (0.99, 2_049, 4_096),
        ] {
            let found = mixed.quantile(share).expect("samples");
            assert!((lowest..=highest).contains(&found), "{share}: {found}");
        }
        assert_eq!(LatencyTotals::default().quantile(0.5), None);
        assert_eq!(totals(&[(1, 1)]).quantile(0.99), Some(1));
        assert_eq!(
            totals(&[(u32::MAX, 1)]).quantile(0.5),
            Some(4_194_304),
            "no more is known"
        );
    }
}
