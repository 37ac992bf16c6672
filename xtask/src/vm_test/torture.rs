//! What the torture suite found in each kernel, kept in `vm-test/torture.json`. From that are made a table in vm-test's README
//! for people, and a constant for the daemon, which short-circuits by default only where all of `proxy` is green.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vm_test::torture::{Cell, MODES, Mode, Outcome};

use super::found::Found;
use crate::{
    paths,
    setup::guests,
    shell::{self, cargo},
    tidy::{TORTURE_BEGIN, TORTURE_END},
};

/// One kernel's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Its series, `6.1`.
    kernel: String,
    version: String,
    cells: Vec<Cell>,
}

fn file() -> PathBuf {
    paths::root().join("vm-test/torture.json")
}

/// Records the results of `found` in the place of what was recorded of the same kernels.
///
/// # Errors
/// A file is not there or cannot be written, or the README lacks the markers.
pub fn write(found: &[Found]) -> Result<()> {
    let mut runs = recorded()?;
    for new in found.iter().filter_map(Run::of) {
        runs.retain(|run| run.kernel != new.kernel);
        runs.push(new);
    }
    let place = |run: &Run| guests::KERNELS.iter().position(|kernel| kernel.name == run.kernel);
    runs.sort_by_key(place);
    let json = serde_json::to_string_pretty(&runs).context("encode the results")? + "\n";
    fs::write(file(), json).with_context(|| format!("write {}", file().display()))?;

    let readme = paths::root().join("vm-test/README.md");
    let text = fs::read_to_string(&readme).context("read vm-test/README.md")?;
    let new = with_table(&text, &render(&runs))
        .with_context(|| format!("vm-test/README.md has no `{TORTURE_BEGIN}` and `{TORTURE_END}`"))?;
    fs::write(&readme, new).context("write vm-test/README.md")?;

    let constant_file = paths::root().join("userspace/dataplane/src/recorded.rs");
    fs::write(&constant_file, constant(&runs)).with_context(|| format!("write {}", constant_file.display()))?;
    shell::run(cargo("fmt").args(["--package", "weft-dataplane"]))?;
    println!("torture: recorded in {}", file().display());
    Ok(())
}

/// Compares the results of `found` with what is recorded of the same version of each kernel.
///
/// # Errors
/// It differs: every difference, a line each.
pub fn compare(found: &[Found]) -> Result<()> {
    let new: Vec<Run> = found.iter().filter_map(Run::of).collect();
    let (wrong, notes) = differences(&recorded()?, &new);
    for note in notes {
        println!("   note: {note}");
    }
    if !wrong.is_empty() {
        bail!(
            "the torture suite found something else than is recorded (`cargo xtask vm-test --torture --write` records it):\n  {}",
            wrong.join("\n  ")
        );
    }
    println!("torture: agrees with what is recorded");
    Ok(())
}

fn recorded() -> Result<Vec<Run>> {
    let text = fs::read_to_string(file()).with_context(|| format!("read {}", file().display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", file().display()))
}

fn with_table(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(TORTURE_BEGIN)?;
    let (_, after) = rest.split_once(TORTURE_END)?;
    Some(format!("{before}{TORTURE_BEGIN}\n{table}{TORTURE_END}{after}"))
}

/// The cases of all runs, in the order of the alphabet.
fn cases(runs: &[Run]) -> Vec<&str> {
    let mut cases: Vec<&str> = runs
        .iter()
        .flat_map(|run| &run.cells)
        .map(|cell| cell.case.as_str())
        .collect();
    cases.sort_unstable();
    cases.dedup();
    cases
}

fn render(runs: &[Run]) -> String {
    let line = |first: &str, rest: &[String]| format!("| {first} | {} |\n", rest.join(" | "));
    let columns: Vec<(&Run, Mode)> = runs.iter().flat_map(|run| MODES.map(|mode| (run, mode))).collect();
    let heads: Vec<String> = columns
        .iter()
        .map(|(run, mode)| format!("{} {mode}", run.kernel))
        .collect();
    let mut text = line("", &heads);
    text += &line("---", &vec!["---".to_owned(); heads.len()]);
    for case in cases(runs) {
        let cells: Vec<String> = columns.iter().map(|(run, mode)| run.word(*mode, case)).collect();
        text += &line(case, &cells);
    }
    text += "\n";
    for run in runs {
        // Writing to a string does not fail.
        let _ = writeln!(text, "Linux {} was {}.", run.kernel, run.version);
        for cell in &run.cells {
            if let Outcome::Wrong(why) = &cell.outcome {
                let _ = writeln!(text, "- {} {}, {}: {why}", run.kernel, cell.mode, cell.case);
            }
        }
        text += "\n";
    }
    text
}

/// `recorded.rs`: which kernels, and what is wrong with mode `proxy` in each.
fn constant(runs: &[Run]) -> String {
    let mut text = String::from(
        "//! What the torture suite found in kernels. Written by `cargo xtask vm-test --torture --write`.\n\n\
         use crate::default_acceleration::Record;\n\n\
         /// One run a kernel.\npub const RECORDS: &[Record] = &[\n",
    );
    for run in runs {
        let green = |case: &&str| run.outcome(Mode::Proxy, case).is_some_and(Outcome::is_green);
        let wrong: Vec<&str> = cases(std::slice::from_ref(run))
            .into_iter()
            .filter(|case| !green(case))
            .collect();
        let _ = writeln!(
            text,
            "Record {{ series: {:?}, version: {:?}, wrong: &{wrong:?} }},",
            run.kernel, run.version
        );
    }
    text + "];\n"
}

/// What is wrong, and what is only worth telling.
fn differences(recorded: &[Run], found: &[Run]) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut notes) = (Vec::new(), Vec::new());
    for new in found {
        let Some(old) = recorded.iter().find(|run| run.kernel == new.kernel) else {
            notes.push(format!("nothing is recorded of Linux {}", new.kernel));
            continue;
        };
        for mode in MODES {
            for case in cases(&[old.clone(), new.clone()]) {
                let (then, now) = (old.word(mode, case), new.word(mode, case));
                if then != now {
                    let text = format!("Linux {} {mode}, {case}: {now}, recorded is {then}", new.version);
                    let place = if old.version == new.version {
                        &mut wrong
                    } else {
                        &mut notes
                    };
                    place.push(text);
                }
            }
        }
    }
    (wrong, notes)
}

// === impl Run ===

impl Run {
    /// `None`: the suite did not run, or not to its end.
    fn of(found: &Found) -> Option<Self> {
        let whole = MODES
            .iter()
            .all(|mode| found.cells.iter().any(|cell| cell.mode == *mode));
        let mut cells = found.cells.clone();
        cells.sort_by(|a, b| (a.mode, &a.case).cmp(&(b.mode, &b.case)));
        whole.then(|| Self {
            kernel: found.kernel.clone(),
            version: found.version.clone(),
            cells,
        })
    }

    fn outcome(&self, mode: Mode, case: &str) -> Option<&Outcome> {
        let cell = |cell: &&Cell| cell.mode == mode && cell.case == case;
        self.cells.iter().find(cell).map(|cell| &cell.outcome)
    }

    fn word(&self, mode: Mode, case: &str) -> String {
        self.outcome(mode, case)
            .map_or_else(|| "-".to_owned(), ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(version: &str, splice: Outcome) -> Run {
        let mut found = Found::new("6.1");
        found.version = version.to_owned();
        found.cells = MODES
            .map(|mode| Cell {
                mode,
                case: "splice".to_owned(),
                outcome: if mode == Mode::Off { Outcome::Ok } else { splice.clone() },
            })
            .to_vec();
        Run::of(&found).expect("all modes")
    }

    #[test]
    fn another_answer_of_the_same_kernel_is_wrong_and_of_another_version_is_told() {
        let (good, bad) = (run("6.1.1", Outcome::Ok), run("6.1.1", Outcome::Wrong("lost".into())));
        let recorded = std::slice::from_ref(&good);
        assert_eq!(differences(recorded, recorded), (vec![], vec![]));
        assert_eq!(differences(recorded, &[bad]).0.len(), 2);
        let (wrong, notes) = differences(recorded, &[run("6.1.2", Outcome::Wrong("lost".into()))]);
        assert_eq!((wrong.len(), notes.len()), (0, 2), "{notes:?}");
    }

    #[test]
    fn a_run_that_did_not_end_is_not_recorded() {
        let mut found = Found::new("6.1");
        found.cells = run("6.1.1", Outcome::Ok).cells;
        found.cells.retain(|cell| cell.mode != Mode::Full);
        assert_eq!(Run::of(&found), None);
    }

    #[test]
    fn the_daemon_is_told_what_is_wrong_with_the_mode_it_would_take() {
        assert!(constant(&[run("6.1.1", Outcome::Ok)]).contains("wrong: &[] }"));
        assert!(constant(&[run("6.1.1", Outcome::Wrong("lost".into()))]).contains("wrong: &[\"splice\"] }"));
    }

    #[test]
    fn table_and_daemon_say_what_is_recorded() -> Result<()> {
        let runs = recorded()?;
        let readme = fs::read_to_string(paths::root().join("vm-test/README.md"))?;
        assert_eq!(with_table(&readme, &render(&runs)).as_ref(), Some(&readme));
        let source = fs::read_to_string(paths::root().join("userspace/dataplane/src/recorded.rs"))?;
        let plain = |text: &str| text.replace([' ', '\n', ','], "");
        assert_eq!(plain(&constant(&runs)), plain(&source));
        Ok(())
    }
}
