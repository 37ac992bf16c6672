//! The generated table kernel x feature x result in vm-test's README: written by a full run, compared by the others.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    event::Outcome,
    found::{Found, budget_of},
    limits::BUDGETS,
};
use crate::{
    paths,
    tidy::{GENERATED_BEGIN, GENERATED_END},
};

/// One line: what, and the answer of each kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    label: String,
    cells: Vec<String>,
    /// The cells may not differ on the same version of a kernel; else they are figures that may.
    strict: bool,
}

const VERSION: &str = "version";
const ABSENT: &str = "absent: ";
const TESTED: &str = "tested";

fn readme() -> PathBuf {
    paths::root().join("vm-test/README.md")
}

/// Puts the table of `found` into the README.
///
/// # Errors
/// The README is not there or lacks the markers.
pub fn write(found: &[Found]) -> Result<()> {
    let file = readme();
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (before, _, after) = parts(&text)?;
    let new = format!("{before}{GENERATED_BEGIN}\n{}{GENERATED_END}{after}", render(found));
    if new == text {
        println!("table in {}: unchanged", file.display());
    } else {
        fs::write(&file, new).with_context(|| format!("write {}", file.display()))?;
        println!("table in {}: written", file.display());
    }
    Ok(())
}

/// Compares `found` with the table in the README: the rows, and what every kernel answered if it is the same version.
/// What another version answers differently is told and no error, since Debian's updates come when they come. A quick run
/// agrees with the table of a full one: how many tests there were is a figure, and a test that did not run answers nothing.
///
/// # Errors
/// It differs: every difference, a line each.
pub fn compare(found: &[Found]) -> Result<()> {
    let file = readme();
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (_, table, _) = parts(&text)?;
    let (wrong, notes) = differences(table, found);
    for note in &notes {
        println!("   note: {note}");
    }
    if !wrong.is_empty() {
        bail!(
            "the table in {} is not what was found (`cargo xtask vm-test` writes it):\n  {}",
            file.display(),
            wrong.join("\n  ")
        );
    }
    println!("table in {}: agrees", file.display());
    Ok(())
}

/// Before the markers, between, behind.
fn parts(text: &str) -> Result<(&str, &str, &str)> {
    let find = || {
        let (before, rest) = text.split_once(GENERATED_BEGIN)?;
        let (table, after) = rest.split_once(GENERATED_END)?;
        Some((before, table, after))
    };
    find().with_context(|| {
        format!(
            "{} has no `{GENERATED_BEGIN}` and `{GENERATED_END}`",
            readme().display()
        )
    })
}

fn render(found: &[Found]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads: Vec<String> = found.iter().map(|found| format!("Linux {}", found.kernel)).collect();
    let mut text = line(&[&[String::new()], heads.as_slice()].concat());
    text += &line(&vec!["---".to_owned(); found.len() + 1]);
    for row in rows(found) {
        text += &line(&[&[row.label], row.cells.as_slice()].concat());
    }
    for found in found {
        if let Some(why) = &found.report.unfit_for_short_circuit {
            text += &format!("\nShort-circuit on {}: {why}.\n", found.kernel);
        }
    }
    text
}

fn rows(found: &[Found]) -> Vec<Row> {
    let row = |label: String, strict, cell: &dyn Fn(&Found) -> String| Row {
        label,
        strict,
        cells: found.iter().map(cell).collect(),
    };
    let mut rows = vec![row(VERSION.to_owned(), false, &|found| found.version.clone())];
    let features = found.iter().flat_map(|found| &found.report.features);
    for name in unique(features.map(|feature| feature.name.as_str())) {
        rows.push(row(name.to_owned(), true, &|found| {
            let feature = found.report.features.iter().find(|feature| feature.name == name);
            let words = feature.map(|feature| if feature.present { "yes" } else { "NO" });
            words.unwrap_or("-").to_owned()
        }));
    }
    rows.push(row("short-circuit self-test (FIONREAD)".to_owned(), true, &|found| {
        let unfit = found.report.unfit_for_short_circuit.is_some();
        if unfit { "fails: not used" } else { "passes" }.to_owned()
    }));
    let programs = found.iter().flat_map(|found| &found.report.programs);
    for name in unique(programs.map(|program| program.name.as_str())) {
        let budget = budget_of(BUDGETS, name).unwrap_or(0);
        rows.push(row(format!("`{name}`: instructions, of {budget}"), false, &|found| {
            let program = found.report.programs.iter().find(|program| program.name == name);
            let count = program.and_then(|program| program.instructions);
            count.map_or_else(|| "-".to_owned(), |count| count.to_string())
        }));
    }
    rows.push(row("tests on real traffic".to_owned(), false, &traffic));
    let absent = |found: &Found, name: &str| {
        found.tests.iter().find_map(|(_, test, outcome)| match outcome {
            Outcome::Absent(why) if test == name => Some(why.clone()),
            _ => None,
        })
    };
    let tests = found.iter().flat_map(|found| &found.tests).map(|test| test.1.as_str());
    for name in unique(tests)
        .into_iter()
        .filter(|name| found.iter().any(|found| absent(found, name).is_some()))
    {
        rows.push(row(format!("{ABSENT}{name}"), true, &|found| {
            absent(found, name).unwrap_or_else(|| TESTED.to_owned())
        }));
    }
    rows
}

/// How much of the tests ran: nobody shall take a part for the whole.
fn traffic(found: &Found) -> String {
    let passed = found.count(|outcome| *outcome == Outcome::Passed);
    let (begun, all) = (found.begun, found.binaries);
    if begun < all {
        format!("quick: {begun} of {all} binaries, {passed} passed")
    } else {
        format!("all {all} binaries, {passed} passed")
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// What is wrong, and what is only worth telling.
fn differences(table: &str, found: &[Found]) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut notes) = (Vec::new(), Vec::new());
    let lines: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let cell = |label: &str, column: usize| {
        let line = lines.iter().find(|line| line.first() == Some(&label));
        line.and_then(|line| line.get(column)).copied()
    };
    for kernel in found {
        let head = format!("Linux {}", kernel.kernel);
        let Some(column) = lines
            .first()
            .and_then(|line| line.iter().position(|cell| *cell == head))
        else {
            wrong.push(format!("no column {head}"));
            continue;
        };
        let recorded = cell(VERSION, column).unwrap_or("");
        let rows = rows(std::slice::from_ref(kernel));
        let mut strict = Vec::new();
        for row in &rows {
            if cell(&row.label, column).is_none() {
                wrong.push(format!("no row {}", row.label));
            } else if row.strict {
                strict.push((row.label.clone(), row.cells[0].as_str()));
            }
        }
        // Those that the table says are absent may run by now.
        let passed = kernel.tests.iter().filter(|test| test.2 == Outcome::Passed);
        strict.extend(passed.map(|(_, test, _)| (format!("{ABSENT}{test}"), TESTED)));
        for (label, now) in strict {
            let Some(recorded_cell) = cell(&label, column).filter(|recorded_cell| *recorded_cell != now) else {
                continue;
            };
            let text = format!("{label}: {now} on {}, {recorded_cell} in the table", kernel.version);
            if recorded == kernel.version {
                &mut wrong
            } else {
                &mut notes
            }
            .push(text);
        }
        // The first line is the head, the second its rule. Tests that are absent may not have been run this time.
        let known = |label: &str| label.starts_with(ABSENT) || rows.iter().any(|row| row.label == label);
        let stale = lines
            .iter()
            .skip(2)
            .filter_map(|line| line.first())
            .filter(|label| !known(label));
        wrong.extend(stale.map(|label| format!("row {label} is of something that is no more")));
        if recorded != kernel.version {
            notes.push(format!("{head} is {} now, recorded was {recorded}", kernel.version));
        }
    }
    wrong.dedup();
    (wrong, notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_test::event::{Feature, Program};

    fn found(kernel: &str, version: &str, tls: bool, instructions: u32) -> Found {
        let mut found = Found::new(kernel);
        found.version = version.to_owned();
        found.report.features = vec![Feature {
            name: "tls".to_owned(),
            present: tls,
            used_for: String::new(),
        }];
        found.report.programs = vec![Program {
            name: "weft_a".to_owned(),
            instructions: Some(instructions),
            refused: None,
        }];
        found
    }

    #[test]
    fn a_table_agrees_with_what_it_was_made_of_and_with_one_kernel_of_it() {
        let both = [found("6.1", "6.1.1", true, 5), found("6.12", "6.12.1", false, 6)];
        let table = render(&both);
        assert_eq!(differences(&table, &both), (vec![], vec![]), "{table}");
        assert_eq!(differences(&table, &both[1..]), (vec![], vec![]), "{table}");
    }

    #[test]
    fn figures_may_differ_and_answers_may_not_unless_the_kernel_is_another() {
        let table = render(&[found("6.1", "6.1.1", true, 5)]);
        assert_eq!(
            differences(&table, &[found("6.1", "6.1.1", true, 50)]),
            (vec![], vec![])
        );
        let (wrong, notes) = differences(&table, &[found("6.1", "6.1.1", false, 5)]);
        assert_eq!((wrong.len(), notes.len()), (1, 0), "{wrong:?} {notes:?}");
        let (wrong, notes) = differences(&table, &[found("6.1", "6.1.2", false, 5)]);
        assert_eq!((wrong.len(), notes.len()), (0, 2), "{wrong:?} {notes:?}");
    }

    #[test]
    fn a_row_too_few_or_too_many_is_found() {
        let (two, mut one) = (found("6.1", "6.1.1", true, 5), found("6.1", "6.1.1", true, 5));
        one.report.programs.clear();
        let (wrong, _) = differences(&render(std::slice::from_ref(&one)), std::slice::from_ref(&two));
        assert_eq!(wrong, ["no row `weft_a`: instructions, of 0"]);
        let (wrong, _) = differences(&render(&[two]), &[one]);
        assert_eq!(
            wrong,
            ["row `weft_a`: instructions, of 0 is of something that is no more"]
        );
        assert_eq!(differences("", &[Found::new("6.1")]).0, ["no column Linux 6.1"]);
    }

    /// A full run of two binaries; the second has a test that this kernel lacks something for.
    fn full() -> Found {
        let mut full = found("6.1", "6.1.1", true, 5);
        (full.begun, full.binaries) = (2, 2);
        let test = |target: &str, name: &str, outcome| (target.to_owned(), name.to_owned(), outcome);
        full.tests = vec![
            test("deny", "denies", Outcome::Passed),
            test("device", "shadowed", Outcome::Absent("no TCX".to_owned())),
        ];
        full
    }

    #[test]
    fn a_part_of_the_tests_is_not_told_as_the_whole() {
        let mut quick = full();
        assert!(render(&[full()]).contains("| tests on real traffic | all 2 binaries, 1 passed |"));
        quick.begun = 1;
        assert!(render(&[quick]).contains("| tests on real traffic | quick: 1 of 2 binaries, 1 passed |"));
    }

    #[test]
    fn a_quick_run_agrees_with_the_table_of_a_full_one() {
        let table = render(&[full()]);
        for (begun, tests) in [(1, 1), (0, 0)] {
            let mut quick = full();
            quick.begun = begun;
            quick.tests.truncate(tests);
            assert_eq!(differences(&table, &[quick]), (vec![], vec![]), "{table}");
        }
    }

    #[test]
    fn a_test_that_runs_now_is_absent_no_more() {
        let table = render(&[full()]);
        let mut now = full();
        now.tests[1].2 = Outcome::Passed;
        let (wrong, notes) = differences(&table, std::slice::from_ref(&now));
        assert_eq!(wrong, ["absent: shadowed: tested on 6.1.1, no TCX in the table"]);
        assert!(notes.is_empty(), "{notes:?}");
        now.version = "6.1.2".to_owned();
        let (wrong, notes) = differences(&table, &[now]);
        assert_eq!((wrong.len(), notes.len()), (0, 2), "{wrong:?} {notes:?}");
    }

    #[test]
    fn the_readme_has_its_markers() -> Result<()> {
        parts(&fs::read_to_string(readme())?).map(drop)
    }
}
