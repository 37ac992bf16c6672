//! What a guest found, told while it comes in, and judged when it is all there.

use std::fmt::Display;

use vm_test::torture::{self, Cell};

use super::{
    event::{Event, Outcome, Report},
    limits::BUDGETS,
};

/// Everything one kernel answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// [`super::kernel::Kernel::name`]
    pub kernel: String,
    /// The distribution's version where `uname -v` has one, else `uname -r`.
    pub version: String,
    pub report: Report,
    /// Test binaries there are, and how many of them were begun.
    pub binaries: usize,
    pub begun: usize,
    /// Binary, test, outcome.
    pub tests: Vec<(String, String, Outcome)>,
    /// What the torture suite told.
    pub cells: Vec<Cell>,
    /// Binaries that ended with something else than 0, with their code.
    broken: Vec<(String, i32)>,
    /// Words of the binary that runs, kept until it is known whether it fails.
    words: Vec<String>,
}

/// Lines of a failing binary that are shown.
const WORDS: usize = 200;

// === impl Found ===

impl Found {
    pub fn new(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            ..Self::default()
        }
    }

    /// Takes an event in and shows it.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Booted {
                release,
                version,
                uptime,
            } => {
                self.version = debian_version(&version).unwrap_or(&release).to_owned();
                self.say(format_args!("booted {release} ({}) in {uptime:.1} s", self.version));
            }
            Event::Verified { report } => {
                self.say(summary_of(&report));
                self.report = report;
            }
            Event::Binary { target } => {
                self.words.clear();
                self.begun += 1;
                self.broken.push((target, 0));
            }
            Event::Test { name, outcome } => {
                match &outcome {
                    Outcome::Passed => {}
                    Outcome::Failed => self.say(format_args!("FAILED {name}")),
                    Outcome::Absent(why) => self.say(format_args!("absent {name}: {why}")),
                }
                self.tests.push((self.running().to_owned(), name, outcome));
            }
            Event::Tortured { cell } => {
                if let torture::Outcome::Wrong(why) = &cell.outcome {
                    self.say(format_args!("mode {}, {}: {why}", cell.mode, cell.case));
                }
                self.cells.push(cell);
            }
            Event::Words { line } => self.words.push(line),
            Event::BinaryEnded { code, seconds } => {
                let target = self.running().to_owned();
                if code != 0 {
                    for line in &self.words[self.words.len().saturating_sub(WORDS)..] {
                        self.say(format_args!("| {line}"));
                    }
                }
                let of = |outcome: fn(&Outcome) -> bool| {
                    let tests = self.tests.iter().filter(|test| test.0 == target && outcome(&test.2));
                    tests.count()
                };
                let (passed, absent) = (of(|o| *o == Outcome::Passed), of(|o| matches!(o, Outcome::Absent(_))));
                let mark = if code == 0 { "ok" } else { "FAILED" };
                self.say(format_args!(
                    "{mark:<6} {target:<24} {passed:>4} passed {absent:>3} absent {seconds:>7.1} s"
                ));
                if code == 0 {
                    self.broken.pop();
                } else if let Some(last) = self.broken.last_mut() {
                    last.1 = code;
                }
            }
            Event::Broken { .. } | Event::Done => {}
        }
    }

    /// One of several kernels that are heard at once.
    fn say(&self, what: impl Display) {
        for line in what.to_string().lines() {
            println!("   {:<5} {}", self.kernel, line.trim_start());
        }
    }

    fn running(&self) -> &str {
        self.broken.last().map_or("", |(target, _)| target.as_str())
    }

    /// How many tests ended so.
    pub fn count(&self, outcome: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|test| outcome(&test.2)).count()
    }

    /// All that is wrong, a line each.
    pub fn problems(&self, budgets: &[(&str, u32)]) -> Vec<String> {
        let mut wrong = Vec::new();
        for program in &self.report.programs {
            let name = &program.name;
            if let Some(why) = &program.refused {
                wrong.push(format!("{name}: {why}"));
            }
            match (budget_of(budgets, name), program.instructions) {
                (Some(budget), Some(found)) if found > budget => wrong.push(format!(
                    "{name}: the verifier walked through {found} instructions, the budget is {budget} (vm_test/limits.rs)"
                )),
                (None, Some(found)) => wrong.push(format!(
                    "{name} has no budget: add (\"{name}\", {}) to vm_test/limits.rs",
                    generous(found)
                )),
                _ => {}
            }
        }
        let loaded = |name: &str| self.report.programs.iter().any(|program| program.name == name);
        wrong.extend(
            budgets
                .iter()
                .filter(|(name, _)| !loaded(name))
                .map(|(name, _)| format!("{name} has a budget in vm_test/limits.rs, and is no program of the object")),
        );
        wrong.extend(
            self.tests
                .iter()
                .filter(|(_, _, outcome)| *outcome == Outcome::Failed)
                .map(|(target, name, _)| format!("test {target}: {name} failed")),
        );
        wrong.extend(
            self.broken
                .iter()
                .map(|(target, code)| format!("test binary {target} ended with {code}")),
        );
        wrong
    }
}

/// Most instructions of a program.
pub fn budget_of(budgets: &[(&str, u32)], program: &str) -> Option<u32> {
    budgets
        .iter()
        .find(|(name, _)| *name == program)
        .map(|(_, budget)| *budget)
}

/// 1.5 times, rounded up to two digits.
fn generous(instructions: u32) -> u32 {
    let wanted = instructions.saturating_mul(3) / 2;
    let step = 10u32.pow(wanted.checked_ilog10().unwrap_or(0).saturating_sub(1));
    wanted.div_ceil(step) * step
}

fn summary_of(report: &Report) -> String {
    let loaded = report.programs.iter().filter(|program| program.refused.is_none());
    let most = loaded.clone().max_by_key(|program| program.instructions);
    let most = most.map_or_else(String::new, |program| {
        let (count, budget) = (
            program.instructions.unwrap_or(0),
            budget_of(BUDGETS, &program.name).unwrap_or(0),
        );
        format!(", most instructions {}: {count} of {budget}", program.name)
    });
    let lacks: Vec<&str> = report
        .features
        .iter()
        .filter(|feature| !feature.present)
        .map(|feature| feature.name.as_str())
        .collect();
    let lacks = if lacks.is_empty() {
        String::new()
    } else {
        format!(", lacks {}", lacks.join(", "))
    };
    let fit = report.unfit_for_short_circuit.as_deref();
    format!(
        "{} of {} programs loaded{most}{lacks}\nshort-circuit self-test: {}",
        loaded.count(),
        report.programs.len(),
        fit.unwrap_or("passes")
    )
}

/// `#1 SMP PREEMPT_DYNAMIC Debian 6.1.190-1 (2026-10-16)` -> `6.1.190-1`
fn debian_version(version: &str) -> Option<&str> {
    version.split_once("Debian ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_test::event::Program;

    fn program(name: &str, instructions: u32) -> Program {
        Program {
            name: name.to_owned(),
            instructions: Some(instructions),
            refused: None,
        }
    }

    #[test]
    fn budgets_catch_the_expensive_the_new_and_the_gone() {
        let mut found = Found::new("6.1");
        found.report.programs = vec![program("fine", 10), program("dear", 21), program("new", 1000)];
        let wrong = found.problems(&[("fine", 10), ("dear", 20), ("gone", 1)]);
        let [dear, new, gone] = wrong.as_slice() else {
            panic!("{wrong:?}")
        };
        assert!(dear.contains("dear") && dear.contains("21"), "{dear}");
        assert!(new.contains("(\"new\", 1500)"), "{new}");
        assert!(gone.contains("gone"), "{gone}");
    }

    #[test]
    fn a_binary_that_does_not_end_well_is_a_problem_with_and_without_a_failed_test() {
        let mut found = Found::new("6.1");
        for (target, code) in [("good", 0), ("killed", -1)] {
            found.take(Event::Binary {
                target: target.to_owned(),
            });
            found.take(Event::BinaryEnded { code, seconds: 0.1 });
        }
        found.take(Event::Binary {
            target: "cut".to_owned(),
        });
        assert_eq!(found.begun, 3);
        assert_eq!(
            found.problems(&[]),
            ["test binary killed ended with -1", "test binary cut ended with 0"]
        );
    }

    #[test]
    fn budgets_are_generous_and_round() {
        for (found, expect) in [(2, 3), (66, 99), (89_016, 140_000), (1000, 1500)] {
            assert_eq!(generous(found), expect, "{found}");
        }
    }

    #[test]
    fn debians_version_is_taken_from_the_kernels_own() {
        let version = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.190-1 (2026-10-16)";
        assert_eq!(debian_version(version), Some("6.1.190-1"));
        assert_eq!(debian_version("#1 SMP"), None);
    }
}
