//! Rounds of arms that take turns, and what came of them.

use anyhow::{Result, ensure};

/// Microseconds of a difference that cannot be told from nothing.
const RESOLUTION: f64 = 1.0;

/// What can be measured again and again.
pub trait Scenario {
    /// All arms once, in an order of the round's own. Returns processor seconds that the host took from loads that it
    /// disturbed; 0: it disturbed none.
    ///
    /// # Errors
    /// A response was wrong, or a figure could not be had.
    fn round(&mut self, number: usize) -> Result<f64>;

    /// Forgets the last round.
    fn drop_last(&mut self);

    /// What the rounds so far come to.
    fn rows(&self) -> Vec<Row>;
}

/// How many rounds: at least, and at most where a goal is within the spread.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    pub least: usize,
    pub most: usize,
    /// Rounds dropped because the host took too much, before the rest are taken as they are.
    pub drops: usize,
}

/// One row of a table: two arms, and what their rounds come to when put beside each other.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub arm: Vec<f64>,
    /// Empty: there is none.
    pub peer: Vec<f64>,
    /// A value a round; NaN: it cannot be told. Such a round counts against PASS and against FALLS SHORT. None at all: the
    /// measurement is not built.
    pub compared: Vec<f64>,
    pub goal: Goal,
}

/// What the median of the compared values is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// None: told only.
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The goal is within the interval: another run may say otherwise.
    Undecided,
    FallsShort,
    Told,
    /// Counts neither way.
    NotBuilt,
}

/// Median, least and greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

/// Runs a scenario until every row is decided or the most rounds are done; `tell` gets a line a round.
///
/// # Errors
/// As [`Scenario::round`], or a row has no value.
pub fn run(scenario: &mut dyn Scenario, rounds: Rounds, mut tell: impl FnMut(String)) -> Result<Vec<Row>> {
    let (mut done, mut dropped) = (0, 0);
    while done < rounds.least || (done < rounds.most && scenario.rows().iter().any(Row::is_open)) {
        let stolen = scenario.round(done)?;
        if stolen > 0.0 && dropped < rounds.drops {
            scenario.drop_last();
            dropped += 1;
            tell(format!(
                "a round dropped: the host took {stolen:.2} s of processor time"
            ));
            continue;
        }
        if stolen > 0.0 {
            tell(format!(
                "the host took {stolen:.2} s of processor time in the next round"
            ));
        }
        done += 1;
        tell(format!("round {done} of {} to {}", rounds.least, rounds.most));
    }
    let rows = scenario.rows();
    for row in &rows {
        ensure!(row.verdict() != Verdict::NotBuilt, "`{}` was not measured", row.what);
    }
    Ok(rows)
}

/// `a / b`, round by round.
pub fn ratio(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// `a / b` of two differences in microseconds, round by round. Where `b` cannot be told from nothing it counts as
/// [`RESOLUTION`]: the least that the ratio may be, and 1 or more, so that it buys no goal (those of `AtMost` are below 1). NaN where `a`
/// cannot be told either.
pub fn ratio_of_differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    let of = |(a, b): (&f64, &f64)| {
        if a.max(*b) < RESOLUTION {
            f64::NAN
        } else {
            a / b.max(RESOLUTION)
        }
    };
    a.iter().zip(b).map(of).collect()
}

/// `a - b`, round by round.
pub fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

// === impl Rounds ===

impl Rounds {
    /// Of a scenario whose arms are spread; `quick`: as few as can bound a median ([`interval`]).
    pub fn new(quick: bool) -> Self {
        let (least, most, drops) = if quick { (6, 6, 2) } else { (7, 11, 3) };
        Self { least, most, drops }
    }
}

// === impl Row ===

impl Row {
    /// `arm / peer`.
    pub fn ratio(what: &str, unit: &'static str, arm: Vec<f64>, peer: Vec<f64>, goal: Goal) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            compared: ratio(&arm, &peer),
            arm,
            peer,
            goal,
        }
    }

    /// Of an arm without a peer.
    pub fn alone(what: &str, unit: &'static str, arm: Vec<f64>, goal: Goal) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            compared: arm.clone(),
            arm,
            peer: Vec::new(),
            goal,
        }
    }

    /// By the median, with every round that cannot be told on the wrong side of the goal.
    pub fn verdict(&self) -> Verdict {
        if self.compared.is_empty() {
            return Verdict::NotBuilt;
        }
        let reached = match self.goal {
            Goal::AtLeast(goal) => spread(&self.untold_as(f64::NEG_INFINITY)).median >= goal,
            Goal::AtMost(goal) => spread(&self.untold_as(f64::INFINITY)).median <= goal,
            Goal::Told => return Verdict::Told,
        };
        if reached {
            Verdict::Pass
        } else if self.is_open() {
            Verdict::Undecided
        } else {
            Verdict::FallsShort
        }
    }

    /// Whether more rounds may change the verdict: the interval spans the goal, whatever the rounds were that cannot be told.
    fn is_open(&self) -> bool {
        let (Goal::AtLeast(goal) | Goal::AtMost(goal)) = self.goal else {
            return false;
        };
        let (low, _) = interval(&self.untold_as(f64::NEG_INFINITY));
        let (_, high) = interval(&self.untold_as(f64::INFINITY));
        low < goal && goal < high
    }

    /// The values, with this one for each that cannot be told.
    fn untold_as(&self, value: f64) -> Vec<f64> {
        let or = |compared: &f64| if compared.is_nan() { value } else { *compared };
        self.compared.iter().map(or).collect()
    }
}

/// Of at least one value.
pub fn spread(values: &[f64]) -> Spread {
    let sorted = sorted(values);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) && middle > 0 {
        f64::midpoint(at(middle - 1), at(middle))
    } else {
        at(middle)
    };
    Spread {
        median,
        least: at(0),
        greatest: at(sorted.len().saturating_sub(1)),
    }
}

/// The interval that holds the median with 95 % confidence whatever the distribution (the sign test's, from order statistics);
/// fewer than six values cannot say so much: all of them then.
fn interval(values: &[f64]) -> (f64, f64) {
    let sorted = sorted(values);
    let count = sorted.len();
    // The greatest number of values that may be cut off each end: 2 P(Binomial(count, 1/2) <= cut - 1) <= 5 %.
    let mut cut = 0;
    let mut below = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut term = below;
    while 2.0 * below <= 0.05 && cut + 1 < count / 2 {
        cut += 1;
        term *= (count - cut + 1) as f64 / cut as f64;
        below += term;
    }
    let cut = cut.saturating_sub(1);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    (at(cut), at(count.saturating_sub(1 + cut)))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        let one = spread(&[7.0]);
        assert_eq!((one.least, one.median, one.greatest), (7.0, 7.0, 7.0));
    }

    fn row(compared: &[f64], goal: Goal) -> Row {
        Row {
            what: "x".into(),
            unit: "ns",
            arm: Vec::new(),
            peer: Vec::new(),
            compared: compared.to_vec(),
            goal,
        }
    }

    #[test]
    fn a_row_is_judged_by_the_median_of_its_rounds() {
        let at_most = |values: &[f64]| row(values, Goal::AtMost(1.2)).verdict();
        assert_eq!(at_most(&[1.1, 5.0, 1.19]), Verdict::Pass);
        assert_eq!(at_most(&[1.3, 1.0, 1.21]), Verdict::Undecided);
        assert_eq!(at_most(&[1.3, 1.25, 1.21]), Verdict::FallsShort);
        assert_eq!(row(&[3.9, 4.0, 4.1], Goal::AtLeast(4.0)).verdict(), Verdict::Pass);
        assert_eq!(row(&[3.9, 3.8], Goal::Told).verdict(), Verdict::Told);
    }

    #[test]
    fn a_round_that_cannot_be_told_counts_against_every_verdict_and_forbids_none() {
        let verdict = |values: &[f64], goal| row(values, goal).verdict();
        let unclear = [30.0, f64::NAN, 40.0];
        assert_eq!(verdict(&unclear, Goal::AtLeast(20.0)), Verdict::Pass);
        assert_eq!(verdict(&unclear, Goal::AtMost(20.0)), Verdict::Undecided);
        let mostly = [30.0, f64::NAN, f64::NAN];
        assert_eq!(verdict(&mostly, Goal::AtLeast(20.0)), Verdict::Undecided);
        assert_eq!(verdict(&mostly, Goal::AtMost(20.0)), Verdict::Undecided);
        // The interval of nine rounds leaves out the outermost: one that cannot be told keeps nothing open then.
        let mut nine = [30.0; 9];
        nine[4] = f64::NAN;
        assert!(!row(&nine, Goal::AtLeast(20.0)).is_open());
        assert_eq!(verdict(&nine, Goal::AtLeast(20.0)), Verdict::Pass);
        assert_eq!(verdict(&nine, Goal::AtMost(20.0)), Verdict::FallsShort);
    }

    /// Remote is 200 µs; what the other adds is in the noise, or below it.
    #[test]
    fn a_ratio_to_nothing_is_at_least_that_to_the_resolution() {
        let compared = ratio_of_differences(&[200.0, 200.0, 200.0], &[20.0, 0.25, -3.0]);
        assert_eq!(compared, [10.0, 200.0, 200.0]);
        assert_eq!(row(&compared, Goal::AtLeast(20.0)).verdict(), Verdict::Pass);
        // Not the other way round: what takes time where the peer takes none is no small part of it.
        let slower = ratio_of_differences(&[5.0], &[-2.0]);
        assert_eq!(row(&slower, Goal::AtMost(0.2)).verdict(), Verdict::FallsShort);
        assert_eq!(ratio_of_differences(&[-5.0], &[50.0]), [-0.1]);
        assert!(ratio_of_differences(&[0.5], &[-2.0])[0].is_nan());
    }

    /// From a table of the sign test: of 6 to 8 values the outermost bound it, of 9 to 11 the second ones, of 12 to 14 the third.
    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        let of = |count: u32| interval(&(1..=count).map(f64::from).collect::<Vec<_>>());
        assert_eq!(of(3), (1.0, 3.0));
        assert_eq!(of(6), (1.0, 6.0));
        assert_eq!(of(8), (1.0, 8.0));
        assert_eq!(of(9), (2.0, 8.0));
        assert_eq!(of(11), (2.0, 10.0));
        assert_eq!(of(12), (3.0, 10.0));
        assert_eq!(of(15), (4.0, 12.0));
    }

    struct Fixed(Vec<f64>, usize);

    impl Scenario for Fixed {
        fn round(&mut self, number: usize) -> Result<f64> {
            self.0.push([1.0, 3.0][number % 2]);
            self.1 += 1;
            Ok(if self.1 == 2 { 9.0 } else { 0.0 })
        }

        fn drop_last(&mut self) {
            self.0.pop();
        }

        fn rows(&self) -> Vec<Row> {
            vec![row(&self.0, Goal::AtMost(2.0))]
        }
    }

    #[test]
    fn what_a_scenario_does_not_measure_is_an_error_and_never_told_as_not_built() {
        assert_eq!(row(&[], Goal::AtLeast(1.0)).verdict(), Verdict::NotBuilt);
        let none = Rounds {
            least: 0,
            most: 0,
            drops: 0,
        };
        let error = run(&mut Fixed(Vec::new(), 0), none, |_| ()).err();
        let error = error.map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("`x` was not measured"));
    }

    #[test]
    fn quick_runs_drop_rounds_too() {
        let dropped = [true, false].map(|quick| Rounds::new(quick).drops);
        assert!(dropped.iter().all(|drops| *drops > 0), "{dropped:?}");
    }

    #[test]
    fn open_rows_get_more_rounds_and_stolen_time_drops_one() -> Result<()> {
        let mut scenario = Fixed(Vec::new(), 0);
        let mut told = Vec::new();
        run(
            &mut scenario,
            Rounds {
                least: 3,
                most: 7,
                drops: 1,
            },
            |line| told.push(line),
        )?;
        assert_eq!((scenario.0.len(), scenario.1), (7, 8));
        assert!(told.iter().any(|line| line.contains("dropped")), "{told:?}");
        Ok(())
    }
}
