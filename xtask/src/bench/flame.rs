//! Flame graphs of a process under load: where its processor time goes.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use inferno::{
    collapse::{Collapse, perf::Folder},
    flamegraph::{self, Options},
};

use crate::{paths, shell};

/// Samples a second: enough for a percent in some seconds, and out of step with timers.
const RATE: &str = "997";

/// # Errors
/// There is no perf.
pub fn ensure_perf() -> Result<()> {
    ensure!(
        paths::which("perf").is_some(),
        "flame graphs need perf: `apt-get install linux-perf`"
    );
    Ok(())
}

/// Samples process `pid` for `seconds` and draws what it did into `file`. Stacks end where frame pointers do.
///
/// # Errors
/// perf fails, or saw nothing.
pub fn draw(title: &str, pid: i32, seconds: f64, scratch: &Path, file: &Path) -> Result<()> {
    let data = scratch.join("perf.data").display().to_string();
    let (pid, seconds) = (pid.to_string(), seconds.to_string());
    // A virtual machine has no counters of its own as a rule: the clock does.
    let words = [
        "record",
        "--quiet",
        "-e",
        "cpu-clock",
        "-F",
        RATE,
        "-g",
        "-p",
        &pid,
        "-o",
        &data,
        "--",
        "sleep",
        &seconds,
    ];
    shell::run(Command::new("perf").args(words)).context("sample the proxy")?;
    let samples = shell::bytes(Command::new("perf").args(["script", "-i", &data])).context("read the samples")?;
    let mut stacks = Vec::new();
    Folder::default()
        .collapse(&samples[..], &mut stacks)
        .context("fold the stacks")?;
    ensure!(!stacks.is_empty(), "perf saw nothing of process {pid}");
    let mut options = Options::default();
    options.title = title.to_owned();
    let mut svg = Vec::new();
    let lines = std::str::from_utf8(&stacks).context("folded stacks are text")?.lines();
    flamegraph::from_lines(&mut options, lines, &mut svg).context("draw the flame graph")?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(file, svg).with_context(|| format!("write {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}
