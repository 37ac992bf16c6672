//! One signal that stops everything, seen by every connection.

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
pub(crate) struct StopSignal(watch::Sender<Phase>);

/// A connection's side.
#[derive(Debug, Clone)]
pub(crate) struct StopWatch(watch::Receiver<Phase>);

// === impl StopSignal ===

impl StopSignal {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Serve))
    }

    pub(crate) fn watch(&self) -> StopWatch {
        StopWatch(self.0.subscribe())
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }
}

// === impl StopWatch ===

impl StopWatch {
    /// Whether `phase` or a later one is reached.
    pub(crate) fn has_reached(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }

    /// Returns once `phase` or a later one is reached, or the sender is gone.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        let _sender_gone = self.0.wait_for(|now| *now >= phase).await;
    }
}
