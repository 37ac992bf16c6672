//! `cargo xtask bench`: figures, taken side by side.

mod adapters;
mod against;
mod arm;
mod bulk;
mod cpu;
mod flame;
mod found;
mod http;
mod http2;
mod large_mesh;
mod memory;
mod not_built;
mod peers;
mod plot;
mod policy_scale;
mod programs;
mod record;
mod report;
mod rounds;

use std::{
    env,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::{found::Found, rounds::Verdict};
use crate::{
    build, paths, preflight,
    setup::{self, Scope},
};

/// Measures and prints tables. Needs root.
///
/// Only ratios of arms that took turns in one run count: medians over rounds, with the least and the greatest. PASS: the
/// median reaches the goal; UNDECIDED: it does not, but the 95 % interval spans the goal (rounds are added up to a cap); else
/// FALLS SHORT; NOT BUILT: a goal that is not measured yet, which counts neither way. Exit 0 when every response was right and
/// every row was measured (a scenario that fails is told of again at the end, and the others go on); with --gate also 1 where a
/// row falls short of its goal. WEFT_BIN=FILE measures that binary instead of building this checkout's.
#[derive(clap::Args)]
pub struct Args {
    /// Default: all of them.
    #[arg(value_enum)]
    scenario: Option<Scenario>,
    /// Compares with another build of weft instead: above 1, this one is the better. For a change to the data path, before it
    /// is kept.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenario", "gate", "flamegraph", "write"])]
    against: Option<PathBuf>,
    /// Fewer and shorter rounds: to see that it works, not for the record.
    #[arg(long)]
    quick: bool,
    /// Fail where a row falls short of its goal.
    #[arg(long)]
    gate: bool,
    /// Also write all rows, versions and commit to this file; those that were measured, if a scenario failed.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw where the proxy's time goes under load (scenario http): into bench/results/ with --write, else target/bench/.
    /// Needs perf.
    #[arg(long)]
    flamegraph: bool,
    /// Keep the results: JSON and plots in bench/results/, tables in bench/README.md and README.md. Of all scenarios at once.
    #[arg(long, conflicts_with = "scenario")]
    write: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// HTTP/1.1 and connections on one node: no mesh, weft, Envoy, haproxy, Envoy twice behind iptables.
    Http,
    /// HTTP/2 and gRPC on one node: no mesh, weft, Envoy.
    Http2,
    /// As many bytes over a connection as go, on one node: no mesh, weft.
    Bulk,
    /// Memory of an idle proxy, and with 10,000 connections, beside Envoy.
    Memory,
    /// What a check of a request costs, by where it runs: compiled in, as WebAssembly, in a policy server; beside Envoy's.
    Adapters,
    /// What a connect costs with 10 policy entries and with 100,000 and 10,000 services.
    PolicyScale,
    /// 10,000 services with 100,000 endpoints: memory beside Envoy, and one endpoint's change.
    LargeMesh,
    /// What a run of a kernel program costs.
    Programs,
}

/// Those that need the helper program of the real-traffic tests.
const WITH_TRAFFIC: [Scenario; 3] = [Scenario::PolicyScale, Scenario::LargeMesh, Scenario::Programs];

/// What a comparison of two builds is called among the scenarios.
const AGAINST: &str = "against";

pub fn run(args: &Args) -> Result<()> {
    let given = env::var_os("WEFT_BIN").is_some();
    anyhow::ensure!(
        !(args.write && given),
        "--write keeps figures under this checkout's commit, which those of WEFT_BIN are not: unset it, or use --json FILE"
    );
    if let Some(file) = &args.json {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        anyhow::ensure!(
            folder.is_none_or(Path::is_dir) && !file.is_dir(),
            "--json {}: give a file in a folder that is there",
            file.display()
        );
    }
    let other = args.against.as_ref().map(|file| {
        let found = file.canonicalize().ok().filter(|file| file.is_file());
        found.with_context(|| format!("--against {}: give another build of weft", file.display()))
    });
    let other = other.transpose()?;
    anyhow::ensure!(
        !args.flamegraph || args.scenario.is_none_or(|scenario| scenario == Scenario::Http),
        "--flamegraph is of scenario http"
    );
    preflight::kernel("bench")?;
    if args.flamegraph {
        flame::ensure_perf()?;
    }
    let scenarios = match &args.scenario {
        Some(one) => std::slice::from_ref(one),
        None if other.is_some() => &[],
        None => Scenario::value_variants(),
    };
    let tools = setup::ensure(Scope::Bench)?;
    if !given {
        build::release(&tools)?;
    }
    if scenarios.iter().any(|scenario| WITH_TRAFFIC.contains(scenario)) {
        build::traffic()?;
    }
    build::load()?;
    if scenarios.contains(&Scenario::Adapters) {
        build::filters(&setup::filters::ensure()?)?;
    }
    let commit = report::commit();
    let mut all = Vec::new();
    if let Some(other) = &other {
        all.push(tell(AGAINST, || against::run(other, args.quick))?);
    }
    let mut failed = Vec::new();
    for scenario in scenarios {
        // An hour of the others is not lost for it.
        match tell(scenario.name(), || scenario.run(args)) {
            Ok(found) => all.push(found),
            Err(error) => {
                println!("{} failed: {error:#}", scenario.name());
                failed.push(format!("{}: {error:#}", scenario.name()));
            }
        }
    }
    println!(
        "\nall took {}",
        report::minutes(all.iter().map(|(_, found)| found.took).sum())
    );
    let results = report::value(&all, args.quick, commit.as_deref(), other.as_deref());
    if let Some(file) = &args.json {
        report::json(file, &results)?;
    }
    anyhow::ensure!(
        failed.is_empty(),
        "not measured, so that --write keeps nothing (--json FILE does): {}",
        failed.join("; ")
    );
    if args.write {
        record::write(&all, &results)?;
    }
    let short: Vec<&str> = all
        .iter()
        .flat_map(|(_, found)| &found.rows)
        .filter(|row| row.verdict() == Verdict::FallsShort)
        .map(|row| row.what.as_str())
        .collect();
    anyhow::ensure!(
        !args.gate || short.is_empty(),
        "rows fall short of their goals: {}",
        short.join("; ")
    );
    Ok(())
}

/// Runs a scenario and prints what it found.
fn tell(name: &'static str, run: impl FnOnce() -> Result<Found>) -> Result<(&'static str, Found)> {
    println!("\n== {name}");
    let began = Instant::now();
    let mut found = run()?;
    found.took = began.elapsed();
    found.rows.extend(not_built::rows(name));
    report::table(name, &found.rows);
    report::programs(&found);
    println!("{name} took {}", report::minutes(found.took));
    Ok((name, found))
}

// === impl Scenario ===

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Memory => "memory",
            Self::Adapters => "adapters",
            Self::PolicyScale => "policy-scale",
            Self::Http2 => "http2",
            Self::Bulk => "bulk",
            Self::LargeMesh => "large-mesh",
            Self::Programs => "programs",
        }
    }

    fn run(self, args: &Args) -> Result<Found> {
        match self {
            Self::Http => {
                let folder = || {
                    if args.write {
                        record::folder()
                    } else {
                        paths::target().join("bench")
                    }
                };
                http::run(args.quick, args.flamegraph.then(folder).as_deref())
            }
            Self::Http2 => http2::run(args.quick),
            Self::Bulk => bulk::run(args.quick).map(Found::of),
            Self::Memory => memory::run(args.quick).map(Found::of),
            Self::Adapters => adapters::run(args.quick).map(Found::of),
            Self::PolicyScale => policy_scale::run(args.quick).map(Found::of),
            Self::LargeMesh => large_mesh::run(args.quick).map(Found::of),
            Self::Programs => programs::run(args.quick).map(Found::of),
        }
    }
}
