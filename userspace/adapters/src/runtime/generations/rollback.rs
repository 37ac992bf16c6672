//! When a generation is taken out.
//!
//! Failures count at once, on the worker that met them. Latency and denies are compared with those of the generations before it
//! in the list, once both had [`ENOUGH`] requests: so the first generation is never rolled back, and one that does better than
//! an old one is not either.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Notify;
use weft_policy::WasmRollback;

use super::{Generation, Set};
use crate::{
    background::{self, Task},
    error::AdapterError,
    wasm::Stats,
};

/// Failures are counted anew so often, and the other figures looked at. Longer: more failures count as a burst.
pub(super) const WATCH: Duration = Duration::from_secs(1);

/// Requests that both must have had before they are compared. Fewer: chance decides.
const ENOUGH: u64 = 200;

/// Less is no difference in the time a request takes, whatever it is in percent.
const SLOWER_AT_LEAST: Duration = Duration::from_micros(100);

/// What happened since the last comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    streams: u64,
    denies: u64,
    time: Duration,
}

/// Looks at them until the set goes; `None`: there is nothing to look at.
///
/// # Errors
/// The background thread cannot be started.
pub(super) fn watch(set: &Arc<Set>) -> Result<Option<Task>, AdapterError> {
    if set.all.len() < 2 {
        return Ok(None);
    }
    let last: Vec<Stats> = set.all.iter().map(stats).collect();
    let (set, news) = (Arc::downgrade(set), Arc::clone(&set.news));
    background::spawn(look(set, news, last)).map(Some)
}

async fn look(set: Weak<Set>, news: Arc<Notify>, mut last: Vec<Stats>) {
    loop {
        let told = tokio::time::timeout(WATCH, news.notified()).await.is_ok();
        // Not held while waiting: the set's plugins end with their last request.
        let Some(alive) = set.upgrade() else { return };
        // Also of what a request of an earlier set rolled back.
        alive.record();
        if told {
            continue;
        }
        for generation in &alive.all {
            if let Ok(made) = &generation.made {
                made.failures.store(0, Ordering::Relaxed);
            }
        }
        if let Some(rollback) = &alive.rollback {
            compare(&alive, rollback, &mut last);
        }
    }
}

fn compare(set: &Set, rollback: &WasmRollback, last: &mut [Stats]) {
    let now: Vec<Stats> = set.all.iter().map(stats).collect();
    let since = |at: usize, last: &[Stats]| Seen::between(&last[at], &now[at]);
    let mut before = Seen::default();
    let mut judged = false;
    for (at, generation) in set.all.iter().enumerate() {
        if !generation.gets_requests() {
            continue;
        }
        let seen = since(at, last);
        if before.streams >= ENOUGH && seen.streams >= ENOUGH {
            judged = true;
            if let Some(why) = seen.is_worse_than(&before, rollback) {
                set.roll_back(at, why);
                continue;
            }
        }
        before = before.plus(seen);
    }
    if judged {
        last.copy_from_slice(&now);
    }
}

fn stats(generation: &Generation) -> Stats {
    let made = generation.made.as_ref();
    made.map_or(Stats::default(), |made| made.plugin.stats())
}

// === impl Seen ===

impl Seen {
    fn between(before: &Stats, now: &Stats) -> Self {
        Self {
            streams: now.streams.saturating_sub(before.streams),
            denies: now.local_responses.saturating_sub(before.local_responses),
            time: now.callback_time.saturating_sub(before.callback_time),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            streams: self.streams + other.streams,
            denies: self.denies + other.denies,
            time: self.time + other.time,
        }
    }

    /// Why it is to go, in words. Both had requests.
    fn is_worse_than(&self, before: &Self, rollback: &WasmRollback) -> Option<String> {
        let denies = |seen: &Self| 100.0 * seen.denies as f64 / seen.streams as f64;
        if denies(self) - denies(before) > rollback.denies_percent as f64 {
            return Some(format!(
                "answers {:.0}% of the requests itself, those before it {:.0}%",
                denies(self),
                denies(before)
            ));
        }
        let mean = |seen: &Self| seen.time.as_secs_f64() / seen.streams as f64;
        let limit = mean(before) * (1.0 + rollback.slower_percent as f64 / 100.0);
        if mean(self) > limit && mean(self) - mean(before) > SLOWER_AT_LEAST.as_secs_f64() {
            let us = |seen: &Self| mean(seen) * 1e6;
            return Some(format!(
                "takes {:.0} us a request, those before it {:.0} us",
                us(self),
                us(before)
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(streams: u64, denies: u64, us: u64) -> Seen {
        Seen {
            streams,
            denies,
            time: Duration::from_micros(us * streams),
        }
    }

    #[test]
    fn a_generation_that_drifts_goes() {
        let rollback = WasmRollback {
            failures: 3,
            slower_percent: 100,
            denies_percent: 10,
        };
        for (now, before, expect) in [
            (seen(200, 10, 10), seen(200, 10, 10), None),
            (seen(200, 30, 10), seen(200, 10, 10), None),
            (
                seen(200, 31, 10),
                seen(200, 10, 10),
                Some("answers 16% of the requests itself, those before it 5%"),
            ),
            // It does better.
            (seen(200, 0, 10), seen(200, 200, 1000), None),
            // Ten times as slow, and nobody notices.
            (seen(200, 0, 100), seen(200, 0, 10), None),
            (
                seen(200, 0, 120),
                seen(200, 0, 10),
                Some("takes 120 us a request, those before it 10 us"),
            ),
            (seen(200, 0, 1990), seen(200, 0, 1000), None),
        ] {
            let found = now.is_worse_than(&before, &rollback);
            assert_eq!(found.as_deref(), expect, "{now:?} {before:?}");
        }
    }
}
