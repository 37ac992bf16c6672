//! How often a failed instance is replaced.
//!
//! Starts may take a tenth of a worker's time, with a reserve for bursts: a small module that traps a thousand times a
//! second is replaced each time, one that starts slowly or never makes nobody else wait.

use std::time::{Duration, Instant};

/// What is saved up at most.
const RESERVE: Duration = Duration::from_secs(1);

/// One part in so many of a worker's time.
const SHARE: u32 = 10;

/// A start costs at least this, so that even an instant failure comes to an end.
const MIN_COST: Duration = Duration::from_micros(50);

/// Time that starts on one worker may take.
#[derive(Debug)]
pub(super) struct Budget {
    saved: Duration,
    /// What was spent beyond what was saved.
    owed: Duration,
    since: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self {
            saved: RESERVE,
            owed: Duration::ZERO,
            since: now,
        }
    }

    /// Whether an instance may be started now.
    pub fn may_start(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since) / SHARE;
        self.since = now;
        self.saved = (self.saved + earned.saturating_sub(self.owed)).min(RESERVE);
        self.owed = self.owed.saturating_sub(earned);
        self.owed.is_zero()
    }

    /// A start took so long.
    pub fn started(&mut self, cost: Duration) {
        let cost = cost.max(MIN_COST);
        self.owed += cost.saturating_sub(self.saved);
        self.saved = self.saved.saturating_sub(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_take_a_tenth_of_the_time_after_a_burst() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        let cost = Duration::from_millis(50);
        let mut burst = 0;
        while budget.may_start(now) {
            budget.started(cost);
            burst += 1;
        }
        assert_eq!(burst, 21, "a second's worth, and the one that goes beyond it");
        let mut later = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            if budget.may_start(now) {
                budget.started(cost);
                later += 1;
            }
        }
        assert!(
            (19..=21).contains(&later),
            "ten seconds hold one second of starts: {later}"
        );
    }

    #[test]
    fn small_modules_are_replaced_at_once() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..10_000 {
            assert!(budget.may_start(now));
            budget.started(Duration::from_micros(100));
        }
    }
}
