//! A count in parts: what all workers write to with each request would go from core to core with it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::{counter, gauge};

/// Parts of a count. Of more threads than these, some share one; each part takes a cache line.
const PARTS: usize = 16;

/// What threads count in, each in a part of its own. Changing it answers with what the part was, not the whole.
#[derive(Debug, Default)]
pub struct Spread([Part; PARTS]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Part(AtomicU64);

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Index of this thread's part.
    static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PARTS;
}

// === impl Spread ===

impl Spread {
    fn add(&self, count: u64) -> u64 {
        let Part(own) = &self.0[OWN.with(|own| *own)];
        own.fetch_add(count, Ordering::Relaxed)
    }

    /// Parts of a gauge may be below zero: what one thread began, another one may end.
    fn sum(&self) -> u64 {
        let parts = self.0.iter().map(|Part(part)| part.load(Ordering::Relaxed));
        parts.fold(0, u64::wrapping_add)
    }
}

impl counter::Atomic<u64> for Spread {
    fn inc(&self) -> u64 {
        self.add(1)
    }

    fn inc_by(&self, count: u64) -> u64 {
        self.add(count)
    }

    fn get(&self) -> u64 {
        self.sum()
    }
}

impl gauge::Atomic<i64> for Spread {
    fn inc(&self) -> i64 {
        self.add(1).cast_signed()
    }

    fn inc_by(&self, count: i64) -> i64 {
        self.add(count.cast_unsigned()).cast_signed()
    }

    fn dec(&self) -> i64 {
        gauge::Atomic::dec_by(self, 1)
    }

    fn dec_by(&self, count: i64) -> i64 {
        self.add(count.wrapping_neg().cast_unsigned()).cast_signed()
    }

    fn set(&self, value: i64) -> i64 {
        let before = self.sum();
        self.add(value.cast_unsigned().wrapping_sub(before));
        before.cast_signed()
    }

    fn get(&self) -> i64 {
        self.sum().cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    #[test]
    fn what_threads_count_adds_up_whoever_ends_what_others_began() {
        let counter = Counter::<u64, Spread>::default();
        let gauge = Gauge::<i64, Spread>::default();
        thread::scope(|scope| {
            for _ in 0..2 * PARTS {
                scope.spawn(|| {
                    counter.inc();
                    counter.inc_by(2);
                    gauge.inc();
                });
            }
        });
        let threads = 2 * PARTS as u64;
        assert_eq!((counter.get(), gauge.get()), (3 * threads, threads.cast_signed()));
        for _ in 0..threads {
            gauge.dec();
        }
        assert_eq!(gauge.get(), 0);
        gauge.set(-3);
        gauge.dec_by(2);
        assert_eq!(gauge.get(), -5);
    }
}
