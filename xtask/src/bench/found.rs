//! What a scenario came to: rows that are judged, and figures that explain them.

use std::time::Duration;

use super::rounds::Row;

#[derive(Default)]
pub struct Found {
    pub rows: Vec<Row>,
    pub arms: Vec<ArmFound>,
    pub programs: Vec<Program>,
    /// How long it took to find all that.
    pub took: Duration,
}

/// An arm's figures.
pub struct ArmFound {
    pub name: &'static str,
    pub series: Vec<Series>,
}

/// A value a round.
pub struct Series {
    pub what: &'static str,
    pub unit: &'static str,
    pub values: Vec<f64>,
}

/// A kernel program, and what a run of it costs under load.
#[derive(Debug, PartialEq)]
pub struct Program {
    pub name: String,
    pub ns: f64,
}

// === impl Found ===

impl Found {
    pub fn of(rows: Vec<Row>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }
}
