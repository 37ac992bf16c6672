//! When a generation is taken out.
//!
//! A burst of failures counts at once, on the worker that met them. Latency (in callbacks, and held), denies and failures are
//! compared with those of the generations before it in the list, once both had [`ENOUGH`] requests: so the first generation is
//! never rolled back, and one that does better than an old one is not either. Failures that are no chance any more do not wait
//! for as many of its own.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Notify;
use weft_policy::WasmRollback;

use super::{Generation, Set, waits::Waited};
use crate::{
    background::{self, Task},
    error::AdapterError,
    wasm::Stats,
};

/// Failures are counted anew so often, and the other figures looked at. Longer: more failures count as a burst.
pub(super) const WATCH: Duration = Duration::from_secs(1);

/// Requests that both must have had before they are compared. Fewer: chance decides.
const ENOUGH: u64 = 200;

/// Requests that it fails on, in percent of its requests, above theirs: more, and it goes. There is no filter that should fail.
const FAILS_PERCENT: f64 = 5.0;

/// So many failures more than those before it would have had: fewer are chance.
const FAILS_AT_LEAST: f64 = 10.0;

/// Less is no difference in the time a request takes, whatever it is in percent.
const SLOWER_AT_LEAST: Duration = Duration::from_micros(100);

/// Less is no difference in the time a request is kept waiting, whatever it is in percent: other programs on a busy machine cost
/// as much.
const WAITS_AT_LEAST: Duration = Duration::from_millis(5);

/// Nor is what is less than so many standard errors of that difference: a few requests that met a slow answer are chance.
const WAITS_ERRORS: f64 = 3.0;

/// What a generation has done up to a look.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    stats: Stats,
    /// Of waits that are over.
    waited: Waited,
    /// Of those that go on.
    waiting: Waited,
}

/// What happened since the last comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    streams: u64,
    denies: u64,
    /// On requests, and beside them.
    failures: u64,
    /// In callbacks.
    time: Duration,
    waited: Waited,
}

/// Looks at them until the set goes; `None`: there is nothing to look at.
///
/// # Errors
/// The background thread cannot be started.
pub(super) fn watch(set: &Arc<Set>) -> Result<Option<Task>, AdapterError> {
    if set.all.len() < 2 {
        return Ok(None);
    }
    let now: Vec<Figures> = set.all.iter().map(Figures::of).collect();
    let windows = vec![now; set.all.len()];
    let (set, news) = (Arc::downgrade(set), Arc::clone(&set.news));
    background::spawn(look(set, news, windows)).map(Some)
}

/// `windows`: what all had done when the comparison of each with those before it began.
async fn look(set: Weak<Set>, news: Arc<Notify>, mut windows: Vec<Vec<Figures>>) {
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
            compare(&alive, rollback, &mut windows);
        }
    }
}

fn compare(set: &Set, rollback: &WasmRollback, windows: &mut [Vec<Figures>]) {
    let now: Vec<Figures> = set.all.iter().map(Figures::of).collect();
    for (at, window) in windows.iter_mut().enumerate() {
        let since = |at: usize| Seen::between(&window[at], &now[at]);
        let looks = |at: &usize| set.all[*at].gets_requests();
        let before = (0..at).filter(looks).map(since).fold(Seen::default(), Seen::plus);
        if !looks(&at) {
            // Should it come again, it begins anew.
            window.clone_from(&now);
            continue;
        }
        if before.streams < ENOUGH {
            continue;
        }
        let seen = since(at);
        let enough = seen.streams >= ENOUGH;
        let fails = seen.fails_more_than(&before);
        let why = fails.or_else(|| seen.is_worse_than(&before, rollback).filter(|_| enough));
        match why {
            Some(why) => set.roll_back(at, why),
            None if enough => window.clone_from(&now),
            None => {}
        }
    }
}

// === impl Figures ===

impl Figures {
    fn of(generation: &Generation) -> Self {
        let Ok(made) = &generation.made else {
            return Self::default();
        };
        let (waited, waiting) = made.waits.look();
        Self {
            stats: made.plugin.stats(),
            waited,
            waiting,
        }
    }
}

// === impl Seen ===

impl Seen {
    fn between(before: &Figures, now: &Figures) -> Self {
        // Who waits still has no end to be counted at, and may never have: it counts with what it has waited by now.
        let waited = now.waited.since(before.waited).plus(now.waiting);
        let (before, now) = (&before.stats, &now.stats);
        let failed = now.failed_streams.saturating_sub(before.failed_streams);
        Self {
            // Where there was no instance, there was no stream in it.
            streams: now.streams.saturating_sub(before.streams).max(failed),
            denies: now.local_responses.saturating_sub(before.local_responses),
            failures: failed + now.failed_beside.saturating_sub(before.failed_beside),
            time: now.callback_time.saturating_sub(before.callback_time),
            waited,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            streams: self.streams + other.streams,
            denies: self.denies + other.denies,
            failures: self.failures + other.failures,
            time: self.time + other.time,
            waited: self.waited.plus(other.waited),
        }
    }

    /// Seconds a request in callbacks.
    fn computes(&self) -> f64 {
        self.time.as_secs_f64() / self.streams as f64
    }

    /// Seconds a request that it is held, and in callbacks.
    fn keeps(&self) -> f64 {
        self.waited.mean() + self.computes()
    }

    /// Why it is to go for its failures, in words. Those before it had requests.
    fn fails_more_than(&self, before: &Self) -> Option<String> {
        let share = |seen: &Self| (seen.failures as f64 / seen.streams as f64).min(1.0);
        let more = share(self) - share(before);
        // Nothing where it had no requests: there is no share.
        let fails = more * 100.0 > FAILS_PERCENT && more * self.streams as f64 >= FAILS_AT_LEAST;
        fails.then(|| {
            format!(
                "fails on {:.0}% of its requests, those before it on {:.0}%",
                share(self) * 100.0,
                share(before) * 100.0
            )
        })
    }

    /// Why it is to go for what it does, in words. Both had requests.
    fn is_worse_than(&self, before: &Self, rollback: &WasmRollback) -> Option<String> {
        let denies = |seen: &Self| 100.0 * seen.denies as f64 / seen.streams as f64;
        if denies(self) - denies(before) > rollback.denies_percent as f64 {
            return Some(format!(
                "answers {:.0}% of the requests itself, those before it {:.0}%",
                denies(self),
                denies(before)
            ));
        }
        let times = 1.0 + rollback.slower_percent as f64 / 100.0;
        let (own, theirs) = (self.computes(), before.computes());
        if own > theirs * times && own - theirs > SLOWER_AT_LEAST.as_secs_f64() {
            return Some(format!(
                "takes {:.0} us a request, those before it {:.0} us",
                own * 1e6,
                theirs * 1e6
            ));
        }
        let (own, theirs) = (self.keeps(), before.keeps());
        let error = (self.waited.error_squared() + before.waited.error_squared()).sqrt();
        let least = WAITS_AT_LEAST.as_secs_f64().max(WAITS_ERRORS * error);
        let longer = own > theirs * times && own - theirs > least;
        longer.then(|| {
            format!(
                "keeps a request waiting for {:.0} ms on average, those before it for {:.0} ms",
                own * 1e3,
                theirs * 1e3
            )
        })
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
            ..Seen::default()
        }
    }

    /// Requests of which so many waited for so long, and the others not at all.
    fn waited(requests: u64, of_these: u64, ms: u64) -> Seen {
        let (of_these, seconds) = (of_these as f64, ms as f64 / 1e3);
        Seen {
            waited: Waited {
                requests,
                seconds: of_these * seconds,
                squares: of_these * seconds * seconds,
            },
            ..seen(requests, 0, 10)
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

    #[test]
    fn a_generation_that_keeps_requests_waiting_goes() {
        let rollback = WasmRollback {
            failures: 3,
            slower_percent: 100,
            denies_percent: 10,
        };
        let all = |requests, ms| waited(requests, requests, ms);
        let computing = Seen {
            time: Duration::from_millis(500 * 1800),
            ..all(1800, 0)
        };
        for (now, before, expect) in [
            (
                all(200, 500),
                all(1800, 2),
                Some("keeps a request waiting for 500 ms on average, those before it for 2 ms"),
            ),
            (all(200, 500), all(1800, 500), None),
            (all(200, 990), all(1800, 500), None),
            (all(200, 1), all(1800, 500), None),
            // Many times as long, and nobody notices.
            (all(200, 4), all(1800, 0), None),
            (
                all(200, 6),
                all(1800, 0),
                Some("keeps a request waiting for 6 ms on average, those before it for 0 ms"),
            ),
            // Chance, and no chance any more: the same mean.
            (waited(200, 8, 1000), all(1800, 0), None),
            (
                all(200, 40),
                all(1800, 0),
                Some("keeps a request waiting for 40 ms on average, those before it for 0 ms"),
            ),
            // What the others compute, it asks for.
            (all(200, 500), computing, None),
        ] {
            let found = now.is_worse_than(&before, &rollback);
            assert_eq!(found.as_deref(), expect, "{now:?} {before:?}");
        }
    }

    #[test]
    fn waits_that_go_on_count_with_those_that_ended_since_the_last_look() {
        let figures = |waited: Seen, waiting: Seen| Figures {
            waited: waited.waited,
            waiting: waiting.waited,
            ..Figures::default()
        };
        let before = figures(waited(10, 10, 1000), waited(4, 4, 1000));
        let now = figures(waited(14, 14, 2000), waited(2, 2, 500));
        let found = Seen::between(&before, &now).waited;
        assert_eq!((found.requests, found.seconds), (4 + 2, 28.0 - 10.0 + 1.0));
    }

    #[test]
    fn a_generation_that_fails_goes_as_soon_as_it_is_no_chance() {
        let seen = |streams, failures| Seen {
            streams,
            failures,
            ..Seen::default()
        };
        for (now, before, expect) in [
            (seen(9, 9), seen(200, 0), None),
            (
                seen(10, 10),
                seen(200, 0),
                Some("fails on 100% of its requests, those before it on 0%"),
            ),
            (seen(200, 10), seen(200, 0), None),
            (
                seen(200, 11),
                seen(200, 0),
                Some("fails on 6% of its requests, those before it on 0%"),
            ),
            // As many as before, and fewer.
            (seen(200, 50), seen(1000, 250), None),
            (seen(200, 0), seen(1000, 250), None),
            // Beside requests, and more often than there are any.
            (
                seen(10, 30),
                seen(200, 0),
                Some("fails on 100% of its requests, those before it on 0%"),
            ),
            (seen(0, 0), seen(200, 0), None),
            (seen(0, 30), seen(200, 0), None),
        ] {
            assert_eq!(now.fails_more_than(&before).as_deref(), expect, "{now:?} {before:?}");
        }
    }
}
