//! Goals whose measurement is not built yet: they are named, so that nobody takes a table for all of them.

use super::rounds::{Goal, Row};

/// Scenario, what, unit and what is to be reached.
#[rustfmt::skip]
const ROWS: [(&str, &str, &str, Goal); 4] = [
    // weft has no mTLS between nodes yet.
    ("http", "two nodes, mTLS, L7 on both, vs. Envoy twice, requests a CPU second", "µs CPU", Goal::AtLeast(2.5)),
    ("http", "two nodes, mTLS, L4, vs. Envoy twice, requests a CPU second", "µs CPU", Goal::AtLeast(1.5)),
    ("bulk", "two nodes, mTLS, L4, vs. Envoy twice, throughput", "MiB/s", Goal::AtLeast(1.2)),
    ("http", "two nodes, mTLS, L4, vs. Envoy twice, new connections a CPU second", "µs CPU", Goal::AtLeast(3.0)),
];

/// Those of a scenario.
pub fn rows(scenario: &str) -> impl Iterator<Item = Row> {
    let of = ROWS.into_iter().filter(move |(name, ..)| *name == scenario);
    of.map(|(_, what, unit, goal)| Row::ratio(what, unit, Vec::new(), Vec::new(), goal))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::bench::{Scenario, rounds::Verdict};

    #[test]
    fn each_is_told_by_a_scenario_and_judged_by_none() {
        let scenarios = Scenario::value_variants().iter();
        let found: Vec<Row> = scenarios.flat_map(|scenario| rows(scenario.name())).collect();
        assert_eq!(found.len(), ROWS.len());
        assert!(found.iter().all(|row| row.verdict() == Verdict::NotBuilt));
    }
}
