//! What a bench prints, and what it keeps.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    found::{Found, Series},
    peers,
    rounds::{Goal, Row, Spread, Verdict, spread},
};
use crate::shell;

/// Prints a scenario's rows.
pub fn table(scenario: &str, rows: &[Row]) {
    let width = rows
        .iter()
        .map(|row| row.what.chars().count())
        .max()
        .unwrap_or_default();
    println!(
        "\n{scenario:<width$}  {:>9}  {:>9}  {:<7} {:>8}  {:<18} {:>8}  verdict",
        "weft", "peer", "", "compared", "[least, greatest]", "goal"
    );
    for row in rows {
        println!("{}", line(row, width));
    }
}

fn line(row: &Row, width: usize) -> String {
    let goal = words(row.goal);
    if row.verdict() == Verdict::NotBuilt {
        return format!("{:<width$}  {goal:>67}  {}", row.what, Verdict::NotBuilt.text());
    }
    let (arm, peer, compared) = (median(&row.arm), median(&row.peer), spread(&row.compared));
    let range = format!("[{:.3}, {:.3}]", compared.least, compared.greatest);
    format!(
        "{:<width$}  {arm:>9}  {peer:>9}  {:<7} {:>8.3}  {range:<18} {goal:>8}  {}",
        row.what,
        row.unit,
        compared.median,
        row.verdict().text()
    )
}

/// A median as it is printed; nothing where there is none.
pub fn median(values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    format!("{:.1}", spread(values).median)
}

/// A goal as it is printed.
pub fn words(goal: Goal) -> String {
    match goal {
        Goal::AtLeast(goal) => format!(">= {goal}"),
        Goal::AtMost(goal) => format!("<= {goal}"),
        Goal::Told => String::new(),
    }
}

/// Prints what a run of each kernel program cost.
pub fn programs(found: &Found) {
    for program in &found.programs {
        println!("{:<16} {:>6.0} ns a run", program.name, program.ns);
    }
}

/// A duration as it is printed.
pub fn minutes(took: Duration) -> String {
    let seconds = took.as_secs();
    format!("{} min {} s", seconds / 60, seconds % 60)
}

/// That of this checkout as it is now: to be asked before a result is written into it. Of a binary that was given nobody knows it.
pub fn commit() -> Option<String> {
    match env::var_os("WEFT_BIN") {
        Some(_) => None,
        None => shell::ask(shell::git().args(["describe", "--always", "--dirty"])),
    }
}

/// All that was found, with what it was measured on. `other`: the build that it was compared with.
pub fn value(scenarios: &[(&str, Found)], quick: bool, commit: Option<&str>, other: Option<&Path>) -> Value {
    let of = |spread: Spread| json!({"median": spread.median, "least": spread.least, "greatest": spread.greatest});
    let row = |row: &Row| {
        json!({
            "what": row.what,
            "unit": row.unit,
            "weft": of(spread(&row.arm)),
            "peer": of(spread(&row.peer)),
            "compared": of(spread(&row.compared)),
            "rounds": row.compared.len(),
            "goal": row.goal.json(),
            "verdict": row.verdict().text(),
        })
    };
    let series = |series: &Series| json!({"what": series.what, "unit": series.unit, "rounds": series.values});
    let scenario = |(name, found): &(&str, Found)| {
        let arms = found.arms.iter().map(|arm| {
            let figures: Vec<Value> = arm.series.iter().map(series).collect();
            json!({"arm": arm.name, "figures": figures})
        });
        let programs = found.programs.iter();
        json!({
            "scenario": name,
            "seconds": found.took.as_secs(),
            "rows": found.rows.iter().map(row).collect::<Vec<_>>(),
            "arms": arms.collect::<Vec<_>>(),
            "programs": programs.map(|program| json!({"name": program.name, "ns_per_run": program.ns})).collect::<Vec<_>>(),
        })
    };
    json!({
        "commit": commit,
        "against": other,
        "date": shell::ask(std::process::Command::new("date").args(["--utc", "--iso-8601=seconds"])),
        "quick": quick,
        "machine": peers::versions(),
        "scenarios": scenarios.iter().map(scenario).collect::<Vec<_>>(),
    })
}

/// Writes what [`value`] made.
///
/// # Errors
/// The file cannot be written.
pub fn json(file: &Path, results: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(results).context("results")?;
    fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}

// === impl Goal ===

impl Goal {
    fn json(self) -> Value {
        match self {
            Self::AtLeast(goal) => json!({"at_least": goal}),
            Self::AtMost(goal) => json!({"at_most": goal}),
            Self::Told => Value::Null,
        }
    }
}

// === impl Verdict ===

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Undecided => "UNDECIDED",
            Self::FallsShort => "FALLS SHORT",
            Self::Told => "",
            Self::NotBuilt => "NOT BUILT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_in_minutes_and_seconds() {
        assert_eq!(minutes(Duration::from_millis(359_999)), "5 min 59 s");
        assert_eq!(minutes(Duration::from_secs(7)), "0 min 7 s");
    }

    #[test]
    fn a_row_without_a_peer_shows_none() {
        let row = Row::alone("x", "ns", vec![150.0], Goal::AtMost(200.0));
        let line = line(&row, 1);
        assert!(!line.contains("NaN") && line.ends_with("<= 200  PASS"), "{line}");
    }

    #[test]
    fn a_row_that_is_not_built_has_a_goal_and_no_figures() {
        let built = Row::ratio("x", "µs CPU", vec![2.0], vec![8.0], Goal::AtLeast(3.0));
        let not_built = Row::ratio("y", "ms", Vec::new(), Vec::new(), Goal::AtMost(50.0));
        let (built, not_built) = (line(&built, 4), line(&not_built, 4));
        assert!(
            !not_built.contains("NaN") && not_built.ends_with("  <= 50  NOT BUILT"),
            "{not_built}"
        );
        let verdict = |line: &str, text: &str| line.find(text).map(|at| line[..at].chars().count());
        assert_eq!(verdict(&built, "FALLS SHORT"), verdict(&not_built, "NOT BUILT"));
    }
}
