//! Test binaries: compiled once by cargo, then run one after the other by us, for headings, durations and counts.

use std::{
    fmt,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    paths,
    shell::{self, cargo, seconds},
};

/// One executable that cargo built from a package's tests.
pub struct TestBinary {
    pub package: String,
    pub target: String,
    /// From `tests/`, rather than unit tests beside the code.
    pub integration: bool,
    pub executable: PathBuf,
    /// Folder of the package's manifest: where cargo runs its tests.
    pub folder: PathBuf,
}

/// What the tests of a run came to.
#[derive(Default)]
pub struct Totals {
    passed: u64,
    failed: u64,
    binaries: u64,
}

/// Compiles all tests of the workspace, or of one package alone.
///
/// # Errors
/// cargo's failure; its messages are on the terminal by then.
pub fn compile(package: Option<&str>) -> Result<Vec<TestBinary>> {
    let mut build = cargo("test");
    match package {
        Some(package) => build.args(["--package", package]),
        None => build.arg("--workspace"),
    };
    build.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let messages = shell::read(&mut build).context("compile the tests")?;
    let mut binaries: Vec<TestBinary> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| TestBinary::from_message(&message))
        .collect();
    binaries.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(binaries)
}

// === impl TestBinary ===

impl TestBinary {
    fn from_message(message: &Value) -> Option<Self> {
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let folder = PathBuf::from(message["manifest_path"].as_str()?)
            .parent()?
            .to_path_buf();
        Some(Self {
            // "path+file:///checkout/vm-test#0.1.0" and "path+file:///checkout/policy#weft-policy@0.1.0"
            package: {
                let (path, rest) = message["package_id"].as_str()?.rsplit_once('#')?;
                match rest.split_once('@') {
                    Some((name, _)) => name.to_owned(),
                    None => path.rsplit('/').next()?.to_owned(),
                }
            },
            target: message["target"]["name"].as_str()?.to_owned(),
            integration: message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test"),
            executable: PathBuf::from(message["executable"].as_str()?),
            folder,
        })
    }
}

// === impl Totals ===

impl Totals {
    /// Runs `binaries` in order, all of them even if one fails.
    ///
    /// # Errors
    /// Some test failed: their binaries are named; their output is on the terminal by then.
    pub fn run_all(&mut self, binaries: &[TestBinary], filter: Option<&str>) -> Result<()> {
        let mut failed = Vec::new();
        for binary in binaries {
            if !self.run(binary, filter)? {
                failed.push(format!("{} {}", binary.package, binary.target));
            }
        }
        if !failed.is_empty() {
            bail!("tests failed in: {}", failed.join(", "));
        }
        Ok(())
    }

    /// Runs one binary, passing its words on except libtest's line for every test that passed.
    fn run(&mut self, binary: &TestBinary, filter: Option<&str>) -> Result<bool> {
        let start = Instant::now();
        let mut command = Command::new(&binary.executable);
        // Not for `test unit`, which asks for no root: what needs it there says so.
        let no_skip = vm_test::need::kernel().is_ok().then_some((vm_test::need::NO_SKIP, "1"));
        let mut child = command
            .args(filter)
            .current_dir(&binary.folder)
            .env("CARGO_MANIFEST_DIR", &binary.folder)
            .env("WEFT_BIN", paths::weft())
            .envs(no_skip)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", binary.executable.display()))?;
        let (mut passed, mut failed) = (0, 0);
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.context("read a test's output")?;
                let line = String::from_utf8_lossy(&line);
                match Line::of(&line) {
                    Line::Passed => passed += 1,
                    Line::Failed => {
                        failed += 1;
                        println!("   {line}");
                    }
                    Line::Noise => {}
                    Line::Words => println!("   {line}"),
                }
            }
        }
        let status = child.wait().context("wait for a test binary")?;
        self.passed += passed;
        self.failed += failed;
        self.binaries += 1;
        if passed + failed > 0 || !status.success() {
            let mark = if status.success() { "ok" } else { "FAILED" };
            let took = seconds(start.elapsed());
            println!(
                "   {mark:<6} {:<18} {:<24} {passed:>4} passed {took:>9}",
                binary.package, binary.target
            );
        }
        std::io::stdout().flush().context("write progress")?;
        Ok(status.success())
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tests passed, {} failed, in {} binaries",
            self.passed, self.failed, self.binaries
        )
    }
}

/// What a line of libtest's output is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Passed,
    Failed,
    /// Headings and empty lines of a run that is fine.
    Noise,
    Words,
}

// === impl Line ===

impl Line {
    pub fn of(line: &str) -> Self {
        let line = line.trim_end();
        if line.starts_with("test ") && line.ends_with(" ... ok") {
            Self::Passed
        } else if line.starts_with("test ") && line.ends_with(" ... FAILED") {
            Self::Failed
        } else if line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok") {
            Self::Noise
        } else {
            Self::Words
        }
    }
}

/// The test that a line which [`Line::of`] calls passed or failed is about.
pub fn test_name(line: &str) -> &str {
    let name = line.trim_end().strip_prefix("test ").unwrap_or(line);
    name.rsplit_once(" ... ").map_or(name, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libtest_are_told_apart() {
        for (line, expect) in [
            ("test deny::beats_allow ... ok", Line::Passed),
            ("test deny::beats_allow ... FAILED", Line::Failed),
            ("running 3 tests", Line::Noise),
            ("test result: ok. 3 passed; 0 failed", Line::Noise),
            ("thread 'x' panicked at src/lib.rs:1:2", Line::Words),
        ] {
            assert_eq!(Line::of(line), expect, "{line}");
        }
        assert_eq!(test_name("test deny::beats_allow ... ok"), "deny::beats_allow");
    }
}
