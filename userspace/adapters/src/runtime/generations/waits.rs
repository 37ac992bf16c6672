//! How long requests wait for a generation: from the callback that holds something of them to the step that lets it go.
//!
//! Only what is whole counts: a head, trailers, a new connection, a body that has come to its end. While a body is still coming
//! nobody can tell whether the module waits for the rest of it, and that is its sender's time.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::GenerationWaits;

/// Of one generation, on all workers. A request that is never held costs an addition, and no look at a clock.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Requests that have passed with their head, or ended before.
    passed: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Of the waits that are over, as in [`Waited`].
    seconds: f64,
    squares: f64,
    /// Since when others are held, by the number of their stream.
    since: BTreeMap<u64, Instant>,
}

/// How long some requests waited, those that did not have to among them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Waited {
    pub requests: u64,
    pub seconds: f64,
    /// The same of the squares: how far the waits scatter.
    pub squares: f64,
}

/// Where one stream is held.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The request (what the client sends), and the answer.
    ways: [bool; 2],
    /// It is counted among those that have passed.
    passed: bool,
}

// === impl Waits ===

impl Waits {
    /// The waits that are over, and those that go on, as long as they are by now.
    pub fn look(&self) -> (Waited, Waited) {
        let held = self.held();
        let now = Instant::now();
        let over = Waited {
            requests: self.passed.load(Ordering::Relaxed),
            seconds: held.seconds,
            squares: held.squares,
        };
        let waiting = held.since.values().map(|since| Waited::once(now, *since));
        (over, waiting.fold(Waited::default(), Waited::plus))
    }

    /// The same for those who look at it from outside. The time never goes back: what goes on is in it.
    pub fn state(&self) -> GenerationWaits {
        let (over, waiting) = self.look();
        let all = over.plus(waiting);
        GenerationWaits {
            requests: all.requests,
            held: waiting.requests,
            time: Duration::try_from_secs_f64(all.seconds).unwrap_or(Duration::MAX),
        }
    }

    fn begin(&self, stream: u64) {
        self.held().since.insert(stream, Instant::now());
    }

    fn end(&self, stream: u64) {
        let mut held = self.held();
        if let Some(since) = held.since.remove(&stream) {
            let wait = Waited::once(Instant::now(), since);
            held.seconds += wait.seconds;
            held.squares += wait.squares;
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waited ===

impl Waited {
    fn once(now: Instant, since: Instant) -> Self {
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        Self {
            requests: 1,
            seconds,
            squares: seconds * seconds,
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            seconds: self.seconds + other.seconds,
            squares: self.squares + other.squares,
        }
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            seconds: self.seconds - earlier.seconds,
            squares: self.squares - earlier.squares,
        }
    }

    /// Seconds a request; of no requests no number, than which nothing is longer.
    pub fn mean(&self) -> f64 {
        self.seconds / self.requests as f64
    }

    /// The square of the standard error of the mean.
    pub fn error_squared(&self) -> f64 {
        let requests = self.requests as f64;
        let variance = self.squares / requests - self.mean() * self.mean();
        // Rounded, it may be less than nothing.
        variance.max(0.0) / requests
    }
}

// === impl Hold ===

impl Hold {
    /// Whether the stream is held on this way (0: the request, 1: the answer) from now on.
    pub fn set(&mut self, way: usize, holds: bool, stream: u64, waits: &Waits) {
        let was_held = self.is_held();
        self.ways[way] = holds;
        // Held on both ways, it waits once.
        match (was_held, self.is_held()) {
            (false, true) => waits.begin(stream),
            (true, false) => waits.end(stream),
            _ => {}
        }
        if !self.is_held() && !mem::replace(&mut self.passed, true) {
            waits.passed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The stream is over, or another generation's.
    pub fn leave(&mut self, stream: u64, waits: &Waits) {
        (0..self.ways.len()).for_each(|way| self.set(way, false, stream, waits));
        *self = Self::default();
    }

    fn is_held(&self) -> bool {
        self.ways.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_waits_while_it_is_held_and_counts_once() {
        let (waits, mut hold) = (Waits::default(), Hold::default());
        let requests = || {
            let (over, waiting) = waits.look();
            (over.requests, waiting.requests)
        };
        hold.set(0, true, 7, &waits);
        assert_eq!(requests(), (0, 1));
        hold.set(0, false, 7, &waits);
        assert_eq!(requests(), (1, 0));
        let (first, _) = waits.look();
        assert_eq!(first.squares, first.seconds * first.seconds);
        // The rest of the request, and the answer.
        hold.set(0, true, 7, &waits);
        hold.set(1, true, 7, &waits);
        assert_eq!(requests(), (1, 1));
        hold.set(0, false, 7, &waits);
        assert_eq!(requests(), (1, 1), "the answer is held still");
        hold.leave(7, &waits);
        assert_eq!(requests(), (1, 0));
        let (both, _) = waits.look();
        assert!(
            both.seconds >= first.seconds && both.squares >= first.squares,
            "{both:?} {first:?}"
        );
    }

    #[test]
    fn who_never_waits_or_leaves_while_it_waits_is_counted_too() {
        let waits = Waits::default();
        let mut hold = Hold::default();
        hold.set(0, false, 1, &waits);
        hold.leave(1, &waits);
        let (over, _) = waits.look();
        assert_eq!((over.requests, over.seconds), (1, 0.0));
        hold.set(0, true, 2, &waits);
        hold.leave(2, &waits);
        let (over, waiting) = waits.look();
        assert_eq!((over.requests, waiting), (2, Waited::default()));
    }
}
