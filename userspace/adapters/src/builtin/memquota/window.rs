//! Counts within a rolling window.
//!
//! The window is divided into [`TICKS`] ticks, and a ring holds one count a tick. A count leaves when its *whole* tick has
//! left the window, so never more than the maximum is granted within any window; the price is that an amount may come back
//! up to one tick (a twentieth of the window) late.
//!
//! ```text
//!   ring   [ 3 | 0 | 5 | ... | 1 ]     TICKS + 1 slots: the current tick is not over
//!                    ^ newest tick (mod TICKS + 1)
//! ```

use std::time::Duration;

/// Ticks a window is divided into.
pub const TICKS: u32 = 20;

const SLOTS: usize = TICKS as usize + 1;

/// Most that may be granted, in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub max: u32,
    /// Length of a tick in nanoseconds.
    tick: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Window {
    limit: Limit,
    counts: [u32; SLOTS],
    /// Sum of `counts`.
    used: u32,
    /// The tick that `counts` was brought forward to.
    newest: u64,
}

// === impl Limit ===

impl Limit {
    pub fn new(max: u32, window: Duration) -> Self {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            max,
            tick: nanos.div_ceil(TICKS.into()),
        }
    }
}

// === impl Window ===

impl Window {
    pub fn new(limit: Limit) -> Self {
        Self {
            limit,
            counts: [0; SLOTS],
            used: 0,
            newest: 0,
        }
    }

    /// Takes one. `now` in nanoseconds since any fixed time, never less than before (if it is, it counts as before).
    ///
    /// # Errors
    /// Exhausted: the nanoseconds until one comes back; `u64::MAX`: never, the maximum is nought.
    pub fn take(&mut self, now: u64) -> Result<(), u64> {
        self.forward(now);
        if self.used >= self.limit.max {
            return Err(self.until_one_comes_back(now));
        }
        self.counts[slot(self.newest)] += 1;
        self.used += 1;
        Ok(())
    }

    /// Nothing within the window: it may be forgotten.
    pub fn is_idle(&mut self, now: u64) -> bool {
        self.forward(now);
        self.used == 0
    }

    fn forward(&mut self, now: u64) {
        let tick = now / self.limit.tick;
        if tick <= self.newest {
            return;
        }
        if tick - self.newest >= SLOTS as u64 {
            self.counts = [0; SLOTS];
            self.used = 0;
        } else {
            for passed in self.newest + 1..=tick {
                self.used -= std::mem::take(&mut self.counts[slot(passed)]);
            }
        }
        self.newest = tick;
    }

    fn until_one_comes_back(&self, now: u64) -> u64 {
        let oldest = self.newest.saturating_sub(u64::from(TICKS));
        (oldest..=self.newest)
            .find(|tick| self.counts[slot(*tick)] > 0)
            .map_or(u64::MAX, |tick| {
                ((tick + SLOTS as u64) * self.limit.tick).saturating_sub(now)
            })
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_taken_comes_back_when_its_tick_has_left() {
        // 20 ticks of 10.
        let mut window = Window::new(Limit { max: 2, tick: 10 });
        assert_eq!(window.take(5), Ok(()));
        assert_eq!(window.take(100), Ok(()));
        // The first was in tick 0, which ends at 10: it has left at 210.
        assert_eq!(window.take(150), Err(60));
        assert_eq!(window.take(209), Err(1));
        assert_eq!(window.take(210), Ok(()));
        assert_eq!(window.take(211), Err(99));
        assert!(!window.is_idle(419));
        assert!(window.is_idle(420));
        assert_eq!(Window::new(Limit { max: 0, tick: 10 }).take(1), Err(u64::MAX));
    }

    proptest! {
        /// Against a naive judge that remembers every grant.
        #[test]
        fn never_more_than_the_maximum_in_any_window_and_never_a_tick_too_strict(
            max in 1u32..6,
            steps in prop::collection::vec(0u64..120, 1..200),
        ) {
            let tick = 10;
            let mut window = Window::new(Limit { max, tick });
            let mut granted: VecDeque<u64> = VecDeque::new();
            let mut now = 0;
            for step in steps {
                now += step;
                let within = |length: u64| granted.iter().filter(|at| *at + length > now).count();
                let (strict, lenient) = (within(20 * tick), within(21 * tick));
                match window.take(now) {
                    Ok(()) => {
                        prop_assert!(strict < max as usize);
                        granted.push_back(now);
                    }
                    Err(wait) => {
                        prop_assert!(lenient >= max as usize);
                        prop_assert!(window.clone().take(now + wait - 1).is_err());
                        prop_assert!(window.clone().take(now + wait).is_ok());
                    }
                }
            }
        }
    }
}
