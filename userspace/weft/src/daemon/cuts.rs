//! How long changes of policy take until denied connections are cut.

use std::time::Duration;

use crate::admin::api::{CutView, CutsView};

/// What a change denies is dropped and reset within so long, from the beginning of its compilation on: `weft doctor` tells when
/// the last one was not.
pub const BOUND: Duration = Duration::from_millis(100);

/// What became of the changes that cut something, since the daemon started.
#[derive(Default)]
pub struct Cuts {
    last: Option<Cut>,
    slowest: Option<Cut>,
}

/// One change.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub generation: u64,
    /// So many were reset.
    pub connections: usize,
    /// From the beginning of its compilation until the kernel drops what it denies.
    pub in_force: Duration,
    /// From there on until all of them were reset.
    pub reset: Duration,
}

// === impl Cuts ===

impl Cuts {
    pub fn note(&mut self, cut: Cut) {
        self.last = Some(cut);
        if self.slowest.is_none_or(|slowest| slowest.total() < cut.total()) {
            self.slowest = Some(cut);
        }
    }

    pub fn view(&self) -> CutsView {
        CutsView {
            last: self.last.map(Cut::view),
            slowest: self.slowest.map(Cut::view),
        }
    }
}

// === impl Cut ===

impl Cut {
    fn total(&self) -> Duration {
        self.in_force + self.reset
    }

    fn view(self) -> CutView {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        CutView {
            generation: self.generation,
            connections: self.connections,
            in_force_ms: ms(self.in_force),
            reset_ms: ms(self.reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_and_the_slowest_are_kept() {
        let mut cuts = Cuts::default();
        for (generation, reset) in [(1, 2), (2, 40), (3, 3)] {
            cuts.note(Cut {
                generation,
                connections: 1,
                in_force: Duration::from_millis(5),
                reset: Duration::from_millis(reset),
            });
        }
        let view = cuts.view();
        let of = |view: Option<CutView>| view.map(|cut| (cut.generation, cut.in_force_ms + cut.reset_ms));
        assert_eq!((of(view.last), of(view.slowest)), (Some((3, 8.0)), Some((2, 45.0))));
    }
}
