//! What the torture suite found in each kernel: a table in vm-test's README for people, and a constant for the daemon, which
//! short-circuits by default only where all of `proxy` is green.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use vm_test::torture::{Cell, MODES, Mode, Outcome};

use super::found::Found;
use crate::{
    paths,
    shell::{self, cargo},
    tidy::{TORTURE_BEGIN, TORTURE_END},
};

fn readme() -> PathBuf {
    paths::root().join("vm-test/README.md")
}

fn recorded() -> PathBuf {
    paths::root().join("userspace/dataplane/src/recorded.rs")
}

/// Puts the results of `found` into the README and beside the daemon's code.
///
/// # Errors
/// A file is not there, or the README lacks the markers.
pub fn write(found: &[Found]) -> Result<()> {
    let text = fs::read_to_string(readme()).context("read vm-test/README.md")?;
    let (before, _, after) = parts(&text)?;
    let new = format!("{before}{TORTURE_BEGIN}\n{}{TORTURE_END}{after}", render(found));
    fs::write(readme(), new).context("write vm-test/README.md")?;
    fs::write(recorded(), constant(found)).with_context(|| format!("write {}", recorded().display()))?;
    shell::run(cargo("fmt").args(["--package", "weft-dataplane"]))?;
    println!("torture: table and {} written", recorded().display());
    Ok(())
}

/// Compares the results of `found` with what is recorded of the same version of each kernel.
///
/// # Errors
/// It differs: every difference, a line each.
pub fn compare(found: &[Found]) -> Result<()> {
    let text = fs::read_to_string(readme()).context("read vm-test/README.md")?;
    let (_, table, _) = parts(&text)?;
    let (wrong, notes) = differences(table, found);
    for note in notes {
        println!("   note: {note}");
    }
    if !wrong.is_empty() {
        bail!(
            "the torture found something else than what is recorded (`cargo xtask vm-test --torture --write` records it):\n  {}",
            wrong.join("\n  ")
        );
    }
    println!("torture: agrees with what is recorded");
    Ok(())
}

fn parts(text: &str) -> Result<(&str, &str, &str)> {
    let find = || {
        let (before, rest) = text.split_once(TORTURE_BEGIN)?;
        let (table, after) = rest.split_once(TORTURE_END)?;
        Some((before, table, after))
    };
    find().with_context(|| format!("vm-test/README.md has no `{TORTURE_BEGIN}` and `{TORTURE_END}`"))
}

fn heads(found: &[Found]) -> Vec<(String, &Found, Mode)> {
    found
        .iter()
        .flat_map(|found| MODES.map(|mode| (format!("{} {mode}", found.version), found, mode)))
        .collect()
}

/// The cases of all cells, in the order they were told.
fn cases(found: &[Found]) -> Vec<&str> {
    let mut cases = Vec::new();
    for cell in found.iter().flat_map(|found| &found.cells) {
        if !cases.contains(&cell.case.as_str()) {
            cases.push(&cell.case);
        }
    }
    cases
}

fn outcome<'a>(found: &'a Found, mode: Mode, case: &str) -> Option<&'a Outcome> {
    let cell = |cell: &&Cell| cell.mode == mode && cell.case == case;
    found.cells.iter().find(cell).map(|cell| &cell.outcome)
}

fn render(found: &[Found]) -> String {
    let line = |first: &str, rest: &[String]| format!("| {first} | {} |\n", rest.join(" | "));
    let heads = heads(found);
    let mut text = line("", &heads.iter().map(|head| head.0.clone()).collect::<Vec<_>>());
    text += &line("---", &vec!["---".to_owned(); heads.len()]);
    for case in cases(found) {
        let cells: Vec<String> = heads
            .iter()
            .map(|(_, found, mode)| outcome(found, *mode, case).map_or_else(|| "-".to_owned(), ToString::to_string))
            .collect();
        text += &line(case, &cells);
    }
    let wrong = heads.iter().flat_map(|(head, found, mode)| {
        let cells = found.cells.iter().filter(|cell| cell.mode == *mode);
        cells.filter_map(move |cell| match &cell.outcome {
            Outcome::Wrong(why) => Some(format!("- {head}, {}: {why}\n", cell.case)),
            _ => None,
        })
    });
    let wrong: String = wrong.collect();
    if !wrong.is_empty() {
        text += "\n";
        text += &wrong;
    }
    text
}

/// `recorded.rs`: which kernels, and what is wrong with mode `proxy` in each.
fn constant(found: &[Found]) -> String {
    let mut text = String::from(
        "//! What the torture suite found in kernels. Written by `cargo xtask vm-test --torture --write`.\n\n\
         use crate::default_acceleration::Record;\n\n\
         /// One run a kernel.\npub const RECORDS: &[Record] = &[\n",
    );
    for found in found {
        let red: Vec<&str> = cases(std::slice::from_ref(found))
            .into_iter()
            .filter(|case| !outcome(found, Mode::Proxy, case).is_some_and(Outcome::is_green))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "Record {{ series: {:?}, version: {:?}, wrong: &{red:?} }},",
            found.kernel, found.version
        );
    }
    text + "];\n"
}

/// What is wrong, and what is only worth telling.
fn differences(table: &str, found: &[Found]) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut notes) = (Vec::new(), Vec::new());
    let lines: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for (head, found, mode) in heads(found) {
        let Some(column) = lines
            .first()
            .and_then(|line| line.iter().position(|cell| *cell == head))
        else {
            notes.push(format!("nothing is recorded of {head}"));
            continue;
        };
        for case in cases(std::slice::from_ref(found)) {
            let line = lines.iter().find(|line| line.first() == Some(&case));
            let recorded = line.and_then(|line| line.get(column)).copied().unwrap_or("-");
            let now = outcome(found, mode, case).map_or_else(|| "-".to_owned(), ToString::to_string);
            if recorded != now {
                wrong.push(format!("{head}, {case}: {now}, recorded is {recorded}"));
            }
        }
    }
    (wrong, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(version: &str, splice: Outcome) -> Found {
        let mut found = Found::new("6.1");
        found.version = version.to_owned();
        found.cells = MODES
            .map(|mode| Cell {
                mode,
                case: "splice".to_owned(),
                outcome: if mode == Mode::Off { Outcome::Ok } else { splice.clone() },
            })
            .to_vec();
        found
    }

    #[test]
    fn what_is_found_agrees_with_what_was_made_of_it_and_with_nothing_else() {
        let (good, bad) = (
            found("6.1.1", Outcome::Ok),
            found("6.1.1", Outcome::Wrong("lost".into())),
        );
        let table = render(std::slice::from_ref(&good));
        assert_eq!(
            differences(&table, std::slice::from_ref(&good)),
            (vec![], vec![]),
            "{table}"
        );
        let (wrong, _) = differences(&table, &[bad]);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        let (wrong, notes) = differences(&table, &[found("6.1.2", Outcome::Ok)]);
        assert_eq!((wrong.len(), notes.len()), (0, 3), "{notes:?}");
    }

    #[test]
    fn the_daemon_is_told_what_is_wrong_with_the_mode_it_would_take() {
        assert!(constant(&[found("6.1.1", Outcome::Ok)]).contains("wrong: &[] }"));
        assert!(constant(&[found("6.1.1", Outcome::Wrong("lost".into()))]).contains("wrong: &[\"splice\"] }"));
    }

    #[test]
    fn the_readme_has_its_markers() -> Result<()> {
        parts(&fs::read_to_string(readme())?).map(drop)
    }
}
