//! Rounds on something that is kept: a connection, a connected socket.

use std::time::{Duration, Instant};

use vm_test::soak::{End, Outcome, Told, now};

use super::{Round, Stream};

/// What is kept.
pub trait Kept: Sized {
    /// # Errors
    /// It does not come about.
    fn open(stream: &mut Stream<'_>) -> Result<Self, Outcome>;

    /// One question and its answer.
    fn round(&mut self, stream: &mut Stream<'_>) -> Round;

    /// Waits, and notices its end at once where it can.
    ///
    /// # Errors
    /// It has ended.
    fn idle(&mut self, pause: Duration) -> Result<(), Outcome>;

    /// Whether opening it says that the other side agreed.
    const CONNECTS: bool;
}

/// How often a kept connection is told to be alive.
const HEARTBEAT: Duration = Duration::from_millis(500);

// === impl Stream ===

impl Stream<'_> {
    /// Keeps one, and the next one when it has ended.
    pub fn sessions<K: Kept>(&mut self) {
        loop {
            std::thread::sleep(self.pause());
            let opened = now();
            let mut connected = false;
            let first = K::open(self).and_then(|mut kept| {
                connected = K::CONNECTS;
                let bytes = kept.round(self)?;
                Ok((kept, bytes))
            });
            let (result, kept) = match first {
                Ok((kept, bytes)) => (Ok(bytes), Some(kept)),
                Err(outcome) => (Err(outcome), None),
            };
            self.attempted(opened, connected, &result);
            if let Some(kept) = kept {
                self.session(kept, opened);
            }
        }
    }

    fn session<K: Kept>(&mut self, mut kept: K, opened: u64) {
        let (mut last_ok, mut told) = (opened, Instant::now());
        let flow = self.index;
        let end = loop {
            let pause = self.pause();
            if let Err(outcome) = kept.idle(pause) {
                break End { at: now(), outcome };
            }
            let start = now();
            let result = kept.round(self);
            self.teller.count(self.index, &result);
            if let Err(outcome) = result {
                let lost = outcome == Outcome::Lost && !K::CONNECTS;
                break End {
                    at: if lost { start } else { now() },
                    outcome,
                };
            }
            last_ok = start;
            if self.flow.tell_all && told.elapsed() >= HEARTBEAT {
                self.teller.tell(&Told::Session {
                    flow,
                    opened,
                    last_ok,
                    ended: None,
                });
                told = Instant::now();
            }
        };
        self.teller.tell(&Told::Session {
            flow,
            opened,
            last_ok,
            ended: Some(end),
        });
    }
}
