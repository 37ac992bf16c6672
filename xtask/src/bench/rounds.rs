//! Rounds of two arms that take turns, and what came of them.

/// One row of a table: the ratio of two arms, round by round.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    /// The arm that is compared with.
    pub base: Vec<f64>,
    pub arm: Vec<f64>,
    /// The ratio of medians aimed for: at most this. `None`: shown only.
    pub at_most: Option<f64>,
}

/// Median, least and greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

// === impl Row ===

impl Row {
    /// Ratios of the rounds.
    pub fn ratio(&self) -> Spread {
        let ratios: Vec<f64> = self.arm.iter().zip(&self.base).map(|(arm, base)| arm / base).collect();
        spread(&ratios)
    }

    /// Whether the goal is reached; a row without one always does.
    pub fn reaches(&self) -> bool {
        self.at_most.is_none_or(|goal| self.ratio().median <= goal)
    }

    /// One line of the table.
    pub fn line(&self) -> String {
        let (base, arm, ratio) = (spread(&self.base), spread(&self.arm), self.ratio());
        let goal = match self.at_most {
            Some(goal) if self.reaches() => format!("PASS (at most {goal})"),
            Some(goal) => format!("FALLS SHORT (at most {goal})"),
            None => String::new(),
        };
        format!(
            "{:<34} {:>9.0} {:>9.0} {:<3} {:>6.3} [{:.3}, {:.3}]  {goal}",
            self.what, base.median, arm.median, self.unit, ratio.median, ratio.least, ratio.greatest
        )
    }
}

/// Of at least one value.
pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
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

    #[test]
    fn a_row_is_judged_by_the_median_of_its_rounds() {
        let row = |arm: &[f64]| Row {
            what: "x".into(),
            unit: "ns",
            base: vec![100.0; arm.len()],
            arm: arm.to_vec(),
            at_most: Some(1.2),
        };
        assert!(row(&[110.0, 500.0, 119.0]).reaches());
        assert!(!row(&[130.0, 100.0, 121.0]).reaches());
    }
}
