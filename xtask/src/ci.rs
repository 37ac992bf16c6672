//! `cargo xtask ci`: what continuous integration runs.

use anyhow::Result;

use crate::{demo, shell::Steps, test};

/// Runs everything CI runs, in order: the whole `test`, then the `demo`.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("cargo xtask test", || test::run(&test::Args::default()))?;
    steps.step("cargo xtask demo", || demo::run(&demo::Args::default()))?;
    steps.summary("ci");
    Ok(())
}
