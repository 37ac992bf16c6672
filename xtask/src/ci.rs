//! `cargo xtask ci`: what continuous integration runs.

use anyhow::Result;

use crate::{demo, guide, shell::Steps, test, vm_test};

/// Runs everything CI runs, in order: the whole `test`, the `demo`, the `guide`, then `vm-test --quick` with the binaries they
/// made.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("cargo xtask test", || test::run(&test::Args::default()))?;
    steps.step("cargo xtask demo", || demo::run(&demo::Args::default()))?;
    steps.step("cargo xtask guide", || guide::run(&guide::Args::default()))?;
    steps.step("cargo xtask vm-test --quick", || vm_test::run(&vm_test::Args::quick()))?;
    steps.summary("ci");
    Ok(())
}
