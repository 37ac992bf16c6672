//! Nobody writes files or kernel tables while two daemons are at work.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Whoever changes what another daemon would take over goes through here.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    inside: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// A hand-over is under way: wait.
    Closed,
    /// Another daemon is in charge, or none.
    Gone,
}

/// Held while something is changed.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

/// Another daemon is in charge, which is to be asked; or this one stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this daemon is in charge no more: another has taken over, or it was stopped; ask again")]
pub struct HandedOver;

// === impl Gate ===

impl Gate {
    /// Blocks while a hand-over is under way (a few seconds).
    ///
    /// # Errors
    ///
    /// It succeeded, or the daemon stops.
    pub fn enter(&self) -> Result<Pass<'_>, HandedOver> {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Open => {
                    state.inside += 1;
                    return Ok(Pass(self));
                }
                Phase::Closed => state = self.wait(state, None),
                Phase::Gone => return Err(HandedOver),
            }
        }
    }

    /// Lets nobody in any more and waits until everybody is out. False (and open again): somebody stays too long.
    pub fn close(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.phase = Phase::Closed;
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                self.open();
                return false;
            }
            state = self.wait(state, Some(left));
        }
        true
    }

    /// As it was before [`Gate::close`].
    pub fn open(&self) {
        self.set(Phase::Open);
    }

    /// For good.
    pub fn give_away(&self) {
        self.set(Phase::Gone);
    }

    fn set(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, bound: Option<Duration>) -> MutexGuard<'a, State> {
        match bound {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(bound) => {
                let waited = self.changed.wait_timeout(state, bound);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_closed_gate_is_waited_at_and_one_given_away_is_said() {
        let gate = Gate::default();
        let inside = gate.enter().expect("open");
        assert!(!gate.close(Duration::from_millis(10)), "somebody is inside");
        drop(inside);
        assert!(gate.close(Duration::from_millis(10)));
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let gate = &gate;
            scope.spawn(move || tell.send(gate.enter().map(drop)));
            assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
            gate.give_away();
            assert_eq!(told.recv().expect("an answer"), Err(HandedOver));
        });
    }
}
