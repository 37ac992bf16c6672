//! Results of record: all of them as JSON, a plot for each scenario with arms, tables in bench/README.md and in the main README.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    found::Found,
    plot,
    report::{self, words},
    rounds::{Goal, Row, Verdict, spread},
};
use crate::{
    paths,
    tidy::{BENCH_BEGIN, BENCH_END},
};

/// Where they are kept.
pub fn folder() -> PathBuf {
    paths::root().join("bench/results")
}

/// Writes all of it; `results`: as [`report::value`] makes them of it.
///
/// # Errors
/// A file cannot be written, or a README lacks the markers.
pub fn write(all: &[(&str, Found)], results: &Value) -> Result<()> {
    let told = |key: &str| results[key].as_str().unwrap_or("unknown").to_owned();
    let day = told("date").chars().take(10).collect::<String>();
    let name = format!("{day}-{}.json", told("commit"));
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    report::json(&folder.join(&name), results)?;

    let machine = line(results, &day);
    let mut plots = String::new();
    for (scenario, found) in all.iter().filter(|(_, found)| !found.arms.is_empty()) {
        let file = folder.join(format!("{scenario}.svg"));
        let drawn = plot::svg(&format!("{scenario}: {machine}"), &found.arms);
        fs::write(&file, drawn).with_context(|| format!("write {}", file.display()))?;
        plots.push_str(&format!("\n![{scenario}, a bar an arm](results/{scenario}.svg)\n"));
    }
    let rows = |only_goals: bool| {
        let rows = all.iter().flat_map(|(_, found)| &found.rows);
        table(rows.filter(|row| !only_goals || row.goal != Goal::Told))
    };
    let programs = all.iter().flat_map(|(_, found)| &found.programs);
    let programs: String = programs
        .map(|program| format!("| `{}` | {:.0} |\n", program.name, program.ns))
        .collect();
    let programs = match programs.is_empty() {
        true => String::new(),
        false => format!("\n| kernel program under the load of http | ns a run |\n|---|---|\n{programs}"),
    };
    let detail = format!(
        "{machine}. All of it: [{name}](results/{name}).\n\n{}{programs}{plots}",
        rows(false)
    );
    put("bench/README.md", &detail)?;
    let head = format!(
        "{machine}. All rows, and how they were taken: [bench](bench/README.md).\n\n{}",
        rows(true)
    );
    put("README.md", &head)
}

/// What it was measured on, and how.
fn line(results: &Value, day: &str) -> String {
    let machine = &results["machine"];
    let told = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let version = |text: String| {
        let found = text
            .split([' ', '/'])
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        found.map_or("of unknown version".to_owned(), str::to_owned)
    };
    let quick = if results["quick"] == true {
        ", `--quick`: not for the record"
    } else {
        ""
    };
    format!(
        "{day}, commit {}, Linux {}, {} processors ({}), Envoy {}, haproxy {}{quick}",
        results["commit"].as_str().unwrap_or("unknown"),
        told("kernel"),
        told("processors"),
        told("processor"),
        envoy_version(&told("envoy")),
        version(told("haproxy")),
    )
}

/// Of `HASH/1.40.0/Clean/RELEASE/BoringSSL`.
fn envoy_version(text: &str) -> String {
    let is_version =
        |part: &&str| part.split('.').count() == 3 && part.starts_with(|first: char| first.is_ascii_digit());
    text.split('/')
        .find(is_version)
        .unwrap_or("of unknown version")
        .to_owned()
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let mut table = "| weft : peer | weft | peer | compared | goal | verdict |\n|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        if row.verdict() == Verdict::NotBuilt {
            let (goal, verdict) = (words(row.goal), Verdict::NotBuilt.text());
            table.push_str(&format!("| {} |  |  |  | {goal} | {verdict} |\n", row.what));
            continue;
        }
        let figure = |values: &[f64]| match values.is_empty() {
            true => String::new(),
            false => format!("{} {}", report::median(values), row.unit),
        };
        let compared = spread(&row.compared);
        table.push_str(&format!(
            "| {} | {} | {} | {:.3} [{:.3}, {:.3}] | {} | {} |\n",
            row.what,
            figure(&row.arm),
            figure(&row.peer),
            compared.median,
            compared.least,
            compared.greatest,
            words(row.goal),
            row.verdict().text(),
        ));
    }
    table
}

/// Puts `text` between the markers of a file of the checkout.
fn put(file: &str, text: &str) -> Result<()> {
    let path = paths::root().join(file);
    let old = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let new = between(&old, text).with_context(|| format!("{file} lacks `{BENCH_BEGIN}` and `{BENCH_END}`"))?;
    fs::write(&path, new).with_context(|| format!("write {}", path.display()))?;
    println!("wrote the table in {file}");
    Ok(())
}

fn between(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BENCH_BEGIN)?;
    let (_, after) = rest.split_once(BENCH_END)?;
    Some(format!("{before}{BENCH_BEGIN}\n{text}{BENCH_END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let old = format!("a\n{BENCH_BEGIN}\nold\n{BENCH_END}\nb\n");
        let new = between(&old, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BENCH_BEGIN}\nnew\n{BENCH_END}\nb\n"));
        assert_eq!(between("a\n", "new\n"), None);
    }

    #[test]
    fn a_row_is_a_line_with_its_verdict() {
        let row = Row::ratio("x vs. y", "µs", vec![2.0], vec![8.0], Goal::AtMost(0.5));
        let expect = "| x vs. y | 2.0 µs | 8.0 µs | 0.250 [0.250, 0.250] | <= 0.5 | PASS |\n";
        assert!(
            table([&row].into_iter()).ends_with(expect),
            "{}",
            table([&row].into_iter())
        );
    }

    #[test]
    fn a_row_without_a_peer_has_an_empty_cell() {
        let row = Row::alone("x, a run", "ns", vec![150.0], Goal::AtMost(200.0));
        let table = table([&row].into_iter());
        let expect = "| x, a run | 150.0 ns |  | 150.000 [150.000, 150.000] | <= 200 | PASS |\n";
        assert!(table.ends_with(expect), "{table}");
    }

    #[test]
    fn a_row_that_is_not_built_has_a_goal_and_no_figures() {
        let row = Row::ratio("x vs. y", "µs", Vec::new(), Vec::new(), Goal::AtMost(0.5));
        let table = table([&row].into_iter());
        assert!(
            table.ends_with("| x vs. y |  |  |  | <= 0.5 | NOT BUILT |\n"),
            "{table}"
        );
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let envoy = "abc123/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(envoy_version(envoy), "1.40.0");
        let results = serde_json::json!({
            "commit": "abc", "quick": true,
            "machine": {"kernel": "6.18", "processors": "2", "processor": "EPYC", "envoy": envoy,
                        "haproxy": "HAProxy version 2.6.12-1 2024/01/01"},
        });
        let expect = "2026-01-02, commit abc, Linux 6.18, 2 processors (EPYC), Envoy 1.40.0, haproxy 2.6.12-1, `--quick`: not for the record";
        assert_eq!(line(&results, "2026-01-02"), expect);
    }
}
