//! Which policy may have been in force when: between the start of a change and its end either may be.

/// One host's policy for the account that is allowed and denied in turn. Times are those of `vm_test::soak::now`.
#[derive(Debug)]
pub struct Timeline {
    /// Whether it allows before the first change.
    first: bool,
    changes: Vec<Change>,
}

/// One `weft apply`.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub allows: bool,
    pub start: u64,
    pub end: End,
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    UnderWay,
    /// In force since then at the latest.
    At(u64),
    /// It failed in the middle: it may be in force or not, until another one is.
    Unknown,
}

/// What may have been in force at some moment of an interval. At least one is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Possible {
    pub allow: bool,
    pub deny: bool,
}

// === impl Timeline ===

impl Timeline {
    pub fn new(allows: bool) -> Self {
        Self {
            first: allows,
            changes: Vec::new(),
        }
    }

    /// A change begins.
    pub fn begin(&mut self, start: u64, allows: bool) {
        self.changes.push(Change {
            allows,
            start,
            end: End::UnderWay,
        });
    }

    /// The change that was begun last has ended so.
    pub fn end(&mut self, end: End) {
        if let Some(change) = self.changes.last_mut() {
            change.end = end;
        }
    }

    /// The change that was begun last has not happened at all.
    pub fn withdraw(&mut self) {
        self.changes.pop();
    }

    pub fn change(&self, index: usize) -> Option<&Change> {
        self.changes.get(index)
    }

    /// All that may have been in force between `from` and `to`.
    pub fn possible(&self, from: u64, to: u64) -> Possible {
        let mut possible = Possible::default();
        // A policy is possible from the start of its change until the next one is in force for sure.
        let mut until = u64::MAX;
        for change in self.changes.iter().rev() {
            if change.start <= to && from <= until {
                possible.add(change.allows);
            }
            if let End::At(end) = change.end {
                until = end;
            }
            if until < from {
                return possible;
            }
        }
        possible.add(self.first);
        possible
    }

    /// The last change that denies and began in `from..=to`.
    pub fn denial(&self, from: u64, to: u64) -> Option<usize> {
        let in_time = |change: &Change| !change.allows && (from..=to).contains(&change.start);
        self.changes.iter().rposition(in_time)
    }

    /// Whether what was opened at `opened` and still worked at `last` outlived a denial by more than `grace`.
    pub fn outlived(&self, opened: u64, last: u64, grace: u64) -> bool {
        let over = |change: &Change| matches!(change.end, End::At(end) if end.saturating_add(grace) < last);
        let mut denials = self
            .changes
            .iter()
            .filter(|change| !change.allows && change.start > opened);
        denials.any(over)
    }
}

// === impl Possible ===

impl Possible {
    pub const ALLOW: Self = Self {
        allow: true,
        deny: false,
    };
    pub const DENY: Self = Self {
        allow: false,
        deny: true,
    };

    fn add(&mut self, allows: bool) {
        if allows {
            self.allow = true;
        } else {
            self.deny = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EITHER: Possible = Possible {
        allow: true,
        deny: true,
    };

    /// Allowed; denied by a change from 100 to 110; allowed again by one from 200 to 210.
    fn timeline() -> Timeline {
        let mut timeline = Timeline::new(true);
        for (start, allows) in [(100, false), (200, true)] {
            timeline.begin(start, allows);
            timeline.end(End::At(start + 10));
        }
        timeline
    }

    #[test]
    fn either_is_possible_while_a_change_is_under_way_and_only_then() {
        for (from, to, expect) in [
            (0, 99, Possible::ALLOW),
            (0, 100, EITHER),
            (105, 106, EITHER),
            (110, 120, EITHER),
            (111, 199, Possible::DENY),
            (111, 200, EITHER),
            (205, 300, EITHER),
            (211, 300, Possible::ALLOW),
            (0, 300, EITHER),
        ] {
            assert_eq!(timeline().possible(from, to), expect, "{from} to {to}");
        }
    }

    #[test]
    fn a_change_under_way_is_open_to_the_end() {
        let mut timeline = timeline();
        timeline.begin(300, false);
        assert_eq!(timeline.possible(250, 299), Possible::ALLOW);
        assert_eq!(timeline.possible(250, 1000), EITHER);
        timeline.withdraw();
        assert_eq!(timeline.possible(250, 1000), Possible::ALLOW);
    }

    #[test]
    fn a_change_that_failed_is_possible_until_the_next_one_is_in_force() {
        let mut timeline = timeline();
        timeline.begin(300, false);
        timeline.end(End::Unknown);
        assert_eq!(timeline.possible(350, 360), EITHER);
        timeline.begin(400, false);
        timeline.end(End::At(410));
        assert_eq!(timeline.possible(405, 405), EITHER);
        assert_eq!(timeline.possible(411, 420), Possible::DENY);
    }

    #[test]
    fn what_lives_on_after_a_denial_has_outlived_it() {
        let timeline = timeline();
        assert!(!timeline.outlived(50, 110, 0));
        assert!(timeline.outlived(50, 111, 0));
        assert!(!timeline.outlived(50, 115, 10));
        assert!(!timeline.outlived(150, 300, 0), "opened after it");
        assert_eq!(timeline.denial(90, 300), Some(0));
        assert_eq!(timeline.denial(101, 300), None);
    }
}
