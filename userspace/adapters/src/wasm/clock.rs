//! A thread that ticks while callbacks run, and stands still while none do.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread::{self, Thread},
    time::Duration,
};

/// Between two ticks: how exact deadlines are. Shorter: more wake-ups of a process that runs filters.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// So many ticks after the last callback the clock stands: a second.
const STILL: u32 = 100;

/// Runs while somebody holds a [`Ticking`].
pub(super) struct Clock {
    tick: fn(),
    state: Mutex<State>,
    /// A callback began, or went on, since the last tick.
    called: AtomicBool,
    stands: AtomicBool,
}

#[derive(Default)]
struct State {
    holders: usize,
    thread: Option<Thread>,
}

/// Keeps a clock running.
pub(super) struct Ticking(&'static Clock);

// === impl Clock ===

impl Clock {
    pub const fn new(tick: fn()) -> Self {
        let state = State {
            holders: 0,
            thread: None,
        };
        Self {
            tick,
            state: Mutex::new(state),
            called: AtomicBool::new(false),
            stands: AtomicBool::new(false),
        }
    }

    /// Starts its thread, if it has none.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn hold(&'static self) -> io::Result<Ticking> {
        let mut state = self.state();
        if state.thread.is_none() {
            let named = thread::Builder::new().name("weft-wasm-clock".into());
            let started = named.spawn(|| self.run())?;
            state.thread = Some(started.thread().clone());
        }
        state.holders += 1;
        drop(state);
        // What holds it runs callbacks at once: its start.
        self.called();
        Ok(Ticking(self))
    }

    /// A callback begins, or was found running: there will be ticks from now on. Costs a look at what rarely changes.
    pub fn called(&self) {
        if self.called.load(Ordering::Relaxed) {
            return;
        }
        self.called.store(true, Ordering::Relaxed);
        // Either we see that it stands, or it sees the call in the look that it takes after saying so.
        fence(Ordering::SeqCst);
        if self.stands.load(Ordering::Relaxed) {
            self.wake(&self.state());
        }
    }

    fn run(&self) {
        let mut still = 0;
        while self.is_held() {
            thread::sleep(TICK);
            (self.tick)();
            still = if self.called.swap(false, Ordering::Relaxed) {
                0
            } else {
                still + 1
            };
            if still >= STILL {
                self.stand();
                still = 0;
            }
        }
    }

    /// Until a callback begins, or nobody holds it any more.
    fn stand(&self) {
        self.stands.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !self.called.load(Ordering::Relaxed) && self.state().holders > 0 {
            thread::park();
        }
        self.stands.store(false, Ordering::Relaxed);
    }

    /// If not, there is no thread from now on: whoever comes next starts one.
    fn is_held(&self) -> bool {
        let mut state = self.state();
        if state.holders == 0 {
            state.thread = None;
        }
        state.holders > 0
    }

    fn wake(&self, state: &State) {
        if let Some(thread) = &state.thread {
            thread.unpark();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holders -= 1;
        if state.holders == 0 {
            self.0.wake(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU32, time::Instant};

    use super::*;

    static TICKS: AtomicU32 = AtomicU32::new(0);
    static CLOCK: Clock = Clock::new(|| _ = TICKS.fetch_add(1, Ordering::Relaxed));

    fn wait(what: &str, mut is: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}");
            thread::yield_now();
        }
    }

    fn ticks() -> u32 {
        TICKS.load(Ordering::Relaxed)
    }

    fn stands() -> bool {
        CLOCK.stands.load(Ordering::Relaxed)
    }

    #[test]
    fn it_stands_while_nothing_is_called_and_ends_when_nobody_holds_it() {
        let held = CLOCK.hold().expect("a thread");
        let also = CLOCK.hold().expect("the same");
        wait("it ticks", || ticks() > 2);
        wait("it stands", stands);
        let before = ticks();
        CLOCK.called();
        wait("it ticks again", || ticks() > before);
        drop(held);
        wait("it stands again", stands);
        assert!(CLOCK.state().thread.is_some());
        drop(also);
        wait("it ends", || CLOCK.state().thread.is_none());
        let before = ticks();
        let _again = CLOCK.hold().expect("a new thread");
        wait("it ticks for the next", || ticks() > before);
    }
}
