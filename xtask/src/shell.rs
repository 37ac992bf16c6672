//! Running other programs with progress: numbered step headings, durations, a summary at the end.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use vm_test::poll;

/// Runs `command` with its output on our terminal and nothing on its standard input.
///
/// # Errors
/// The program cannot be started or does not exit with 0; the text has its command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs `command` and returns what it printed on standard output, trimmed. Standard error goes to our terminal.
///
/// # Errors
/// As [`run`].
pub fn read(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&bytes(command)?).trim().to_owned())
}

/// The same as [`read`], every byte as it is.
///
/// # Errors
/// As [`run`].
pub fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let line = line_of(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` ended with {}", output.status);
    }
    Ok(output.stdout)
}

/// The same as [`read`], for questions whose answer may be "no": `None` if it cannot be run or fails.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A `cargo` command in the checkout, without the variables that `cargo run` set for xtask itself: they would make
/// cargo rebuild what a cargo started by hand has built.
pub fn cargo(verb: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (key, _) in std::env::vars_os() {
        let key = key.to_string_lossy();
        if key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_") || key == "CARGO_BIN_NAME" {
            command.env_remove(key.as_ref());
        }
    }
    command.arg(verb).current_dir(crate::paths::root());
    command
}

/// A `git` command in the checkout.
pub fn git() -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(crate::paths::root());
    command
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsString::from)
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The steps of one verb: a heading and a duration each.
#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration)>,
}

// === impl Steps ===

impl Steps {
    /// Runs `work` under a heading and notes how long it took.
    ///
    /// # Errors
    /// What `work` returns, with the heading as context; a lab of an earlier step was interrupted.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        poll::check_interrupt()?;
        println!("\n== {}. {title}", self.done.len() + 1);
        let start = Instant::now();
        let value = work().with_context(|| format!("step `{title}`"))?;
        let took = start.elapsed();
        println!("   {title}: {}", seconds(took));
        self.done.push((title.to_owned(), took));
        Ok(value)
    }

    /// Prints every step with its duration, and the total.
    pub fn summary(&self, verb: &str) {
        println!("\n== {verb}: all {} steps held", self.done.len());
        for (title, took) in &self.done {
            println!("{:>9}  {title}", seconds(*took));
        }
        println!("{:>9}  in all", seconds(self.done.iter().map(|(_, took)| *took).sum()));
    }
}

/// A duration for people.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
