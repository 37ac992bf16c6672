//! One signal that stops everything, seen by every connection.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::sync::watch;

/// How far stopping has come. It only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything runs.
    Serve,
    /// Another process serves the listeners: no new connections here. Those that are open go on; HTTP ones end with their next
    /// answer, which is the only moment at which no request can be on its way to a closed connection.
    Retire,
    /// No new connections; those that are open finish what they do.
    Drain,
    /// What is left is cut.
    Cut,
}

/// Sender's side.
#[derive(Debug)]
pub(crate) struct StopSignal {
    told: watch::Sender<Phase>,
    now: Arc<Now>,
}

/// A connection's side.
#[derive(Debug, Clone)]
pub(crate) struct StopWatch {
    told: watch::Receiver<Phase>,
    now: Arc<Now>,
}

/// The phase, for those who look at each request: without a lock, and in a cache line that nobody writes to while the phase stays
/// (counts of references are in another).
#[derive(Debug)]
#[repr(align(64))]
struct Now(AtomicU8);

// === impl StopSignal ===

impl StopSignal {
    pub(crate) fn new() -> Self {
        Self {
            told: watch::Sender::new(Phase::Serve),
            now: Arc::new(Now(AtomicU8::new(Phase::Serve as u8))),
        }
    }

    pub(crate) fn watch(&self) -> StopWatch {
        StopWatch {
            told: self.told.subscribe(),
            now: Arc::clone(&self.now),
        }
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.told.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
                // Before anybody is told of it: who was told also finds it here.
                self.now.0.store(phase as u8, Ordering::Release);
            }
            forward
        });
    }
}

// === impl StopWatch ===

impl StopWatch {
    /// Whether `phase` or a later one is reached.
    pub(crate) fn has_reached(&self, phase: Phase) -> bool {
        self.now.0.load(Ordering::Acquire) >= phase as u8
    }

    /// Returns once `phase` or a later one is reached, or the sender is gone.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        let _sender_gone = self.told.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_told_of_a_phase_also_finds_it() {
        let signal = StopSignal::new();
        let mut stop = signal.watch();
        assert!(stop.has_reached(Phase::Serve) && !stop.has_reached(Phase::Retire));
        signal.advance(Phase::Drain);
        signal.advance(Phase::Retire);
        stop.reached(Phase::Drain).await;
        assert!(stop.has_reached(Phase::Drain) && !stop.has_reached(Phase::Cut));
    }
}
