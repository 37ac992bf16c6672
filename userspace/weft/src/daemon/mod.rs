//! Puts the parts together: start, run, stop.
//!
//! ```text
//! resources, applied objects, workloads --> engine: compile, publish --> kernel tables, snapshot of the proxy and DNS
//! kernel ring, kernel edges, proxy workers --> reporter thread --> metrics, access log, flows
//! admin socket --> control
//! ```
//!
//! Order of the start: the kernel side is in place (adopted or new), everything that can be published is published, and
//! only then do listeners open: from the moment the kernel finds the proxy's port open it sends connections there.

mod allocated;
mod capabilities;
mod control;
mod cuts;
mod dns;
pub mod doctor;
mod edges;
mod engine;
mod foreign;
mod generations;
pub mod hand_over;
mod inbound;
mod keepers;
mod kernel;
mod larger;
mod last_good;
mod memory;
mod metrics;
mod names;
mod netns;
mod notify;
mod origin;
mod reporting;
mod start;
mod successor;
mod tables;
mod unrecorded;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    config::DaemonConfig,
    error::{Code as _, INVALID},
};

/// Runs until it is told to stop (SIGTERM, SIGINT, `POST /v1/shutdown`) or another daemon has taken over.
///
/// # Errors
///
/// What keeps it from starting, in one line; nothing is left behind that was not there before.
pub fn run(config: DaemonConfig) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).code(INVALID)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // A line that cannot be written (full disk, reader gone) would be told on stderr too, by a macro that panics.
        .log_internal_errors(false)
        .init();
    capabilities::check()?;
    if let Err(error) = memory::give_back_what_is_free() {
        tracing::warn!(%error, "memory that is free is not given back");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("weft-control")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(start::run(config));
    runtime.shutdown_timeout(LAST_WORK);
    ended
}

/// What is under way on threads of its own gets to end when the daemon has: a module may start for minutes, and then it would be
/// one that nobody waits for. Files are written so that nothing is lost by an end at any time.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Threads of everything that is not the data path. Two: one may be busy compiling while the other answers.
const CONTROL_THREADS: usize = 2;

/// Removes what is pinned below `bpffs`, and what is written down in `namespaces`; a line for each thing that was removed.
///
/// # Errors
///
/// A pin that could not be removed, a network namespace that could not be cleaned.
pub fn uninstall(bpffs: &Path, namespaces: PathBuf) -> anyhow::Result<Vec<String>> {
    let report = weft_dataplane::uninstall(bpffs)?;
    let mut lines: Vec<String> = report.pins.iter().map(|pin| pin.display().to_string()).collect();
    let cleaned = netns::Sources::new(namespaces).clean(|_| false)?;
    lines.extend(
        cleaned
            .iter()
            .map(|path| format!("the rule and route in network namespace {}", path.display())),
    );
    if report.unmounted {
        lines.push(format!("the bpffs mounted at {}", bpffs.display()));
    }
    Ok(lines)
}
