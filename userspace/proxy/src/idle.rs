//! Client connections that wait for their next request, and wait too long.
//!
//! A worker looks through them now and then. A timer for each would be cheap to set, but as long as there is one, each wait of the
//! runtime's has an end (see [`crate::ticks`]).

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    task::{Context, Waker},
};

use crate::{io::ConnClock, limits::IDLE_TIMEOUT};

/// Those of one worker.
#[derive(Default)]
pub(crate) struct Idlers {
    places: RefCell<Places>,
    /// How often they were looked through.
    sweeps: Cell<u64>,
}

#[derive(Default)]
struct Places {
    /// `None`: free.
    all: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

struct Waiting {
    clock: Arc<ConnClock>,
    waker: Waker,
}

/// A connection among them, for as long as it lives.
pub(crate) struct Idler<'a> {
    idlers: &'a Idlers,
    clock: &'a Arc<ConnClock>,
    /// `None`: it has not waited yet.
    place: Option<usize>,
    /// Sweeps that it knows of.
    seen: u64,
}

// === impl Idlers ===

impl Idlers {
    /// A connection, whose requests `clock` sees.
    pub(crate) fn join<'a>(&'a self, clock: &'a Arc<ConnClock>) -> Idler<'a> {
        Idler {
            idlers: self,
            clock,
            place: None,
            seen: self.sweeps.get(),
        }
    }

    /// Wakes those that have waited for too long.
    pub(crate) fn sweep(&self) {
        self.sweeps.set(self.sweeps.get() + 1);
        for waiting in self.places.borrow().all.iter().flatten() {
            if waiting.clock.is_idle(IDLE_TIMEOUT) {
                waiting.waker.wake_by_ref();
            }
        }
    }

    fn place(&self, waiting: Waiting) -> usize {
        let mut places = self.places.borrow_mut();
        match places.free.pop() {
            Some(place) => {
                places.all[place] = Some(waiting);
                place
            }
            None => {
                places.all.push(Some(waiting));
                places.all.len() - 1
            }
        }
    }
}

// === impl Idler ===

impl Idler<'_> {
    /// Whether the connection has waited for too long; if not, its task, which must be the same each time, is woken when it has.
    pub(crate) fn has_waited(&mut self, cx: &Context<'_>) -> bool {
        if self.place.is_none() {
            self.place = Some(self.idlers.place(Waiting {
                clock: Arc::clone(self.clock),
                waker: cx.waker().clone(),
            }));
        }
        let sweeps = self.idlers.sweeps.get();
        let swept = std::mem::replace(&mut self.seen, sweeps) != sweeps;
        // The clock is read when that may be news.
        swept && self.clock.is_idle(IDLE_TIMEOUT)
    }
}

impl Drop for Idler<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut places = self.idlers.places.borrow_mut();
            places.all[place] = None;
            places.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
        time::Duration,
    };

    use tokio::time::{Instant, advance};

    use super::*;

    /// How often a task was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_too_long_is_woken_and_told_and_others_are_not() {
        let (idlers, woken) = (Idlers::default(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        let (waits, asks, gone) = (ConnClock::new(), ConnClock::new(), ConnClock::new());
        let (mut waiting, mut asking) = (idlers.join(&waits), idlers.join(&asks));
        let mut leaving = idlers.join(&gone);
        for idler in [&mut waiting, &mut asking, &mut leaving] {
            assert!(!idler.has_waited(&cx));
        }
        drop(leaving);
        advance(IDLE_TIMEOUT).await;
        asks.request_began();
        asks.request_ended(Instant::now());
        advance(Duration::from_secs(1)).await;
        assert!(!waiting.has_waited(&cx), "nobody has looked");
        idlers.sweep();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(waiting.has_waited(&cx) && !asking.has_waited(&cx));
    }

    #[test]
    fn places_are_taken_again() {
        let (idlers, clock) = (Idlers::default(), ConnClock::new());
        for _ in 0..3 {
            let (mut one, mut other) = (idlers.join(&clock), idlers.join(&clock));
            let cx = Context::from_waker(Waker::noop());
            assert!(!one.has_waited(&cx) && !other.has_waited(&cx));
        }
        assert_eq!(idlers.places.borrow().all.len(), 2);
    }
}
