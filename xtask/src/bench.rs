//! `cargo xtask bench`: figures, taken side by side.

mod policy_scale;
mod rounds;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    build, preflight,
    setup::{self, Scope},
};

/// Measures a scenario and prints its table. Needs root.
///
/// Only ratios of arms that took turns in one run count: medians over rounds, with the least and the greatest. Exit 0 when every
/// response was right and every row was measured; with --gate also 1 where a row falls short of its goal.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    scenario: Scenario,
    /// Fewer and shorter rounds: to see that it works, not for the record.
    #[arg(long)]
    quick: bool,
    /// Fail where a row falls short of its goal.
    #[arg(long)]
    gate: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// What a connect costs with 10 policy entries and with 100,000 and 10,000 services.
    PolicyScale,
}

pub fn run(args: &Args) -> Result<()> {
    preflight::kernel("bench")?;
    let tools = setup::ensure(Scope::Traffic)?;
    build::release(&tools)?;
    build::traffic()?;
    let judged = match args.scenario {
        Scenario::PolicyScale => policy_scale::run(args.quick)?,
    };
    anyhow::ensure!(
        !args.gate || judged.iter().all(rounds::Row::reaches),
        "a row falls short of its goal"
    );
    Ok(())
}
