//! `cargo xtask test`: lints, unit and property tests, real traffic in this machine's kernel.

mod binaries;

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::binaries::Totals;
pub use self::binaries::{Line, TestBinary, compile, test_name};
use crate::{
    build, paths, preflight,
    setup::{self, Scope},
    shell::{self, Steps, cargo},
    tidy,
};

/// Checks style and lints, then runs unit, property and real-traffic tests. Needs root.
///
/// Real-traffic tests run the release binary in network namespaces and cgroups of their own and leave nothing behind.
/// Without root or a needed kernel feature it says so in one line and exits 3 before anything else.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Run only this part.
    #[arg(value_enum)]
    part: Option<Part>,
    /// Run only tests whose name contains this, and no lints.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Lints, unit and property tests: everything that needs no kernel.
    Unit,
    /// Real traffic through the release binary.
    Net,
}

/// The package of the real-traffic tests.
pub const NET_PACKAGE: &str = "vm-test";

pub fn run(args: &Args) -> Result<()> {
    let (unit, net) = (args.part != Some(Part::Net), args.part != Some(Part::Unit));
    if net {
        preflight::kernel("test")?;
    }
    let lint = unit && args.filter.is_none();
    let mut steps = Steps::default();

    let tools = steps.step("tools", || setup::ensure(Scope::Traffic))?;
    if lint {
        steps.step("format (rustfmt)", || {
            setup::ensure_lints()?;
            for workspace in ["Cargo.toml", "userspace/adapters/filters/Cargo.toml"] {
                let mut check = cargo("fmt");
                shell::run(check.args(["--all", "--check", "--manifest-path", workspace]))
                    .with_context(|| format!("`cargo fmt --all --manifest-path {workspace}` puts it right"))?;
            }
            Ok(())
        })?;
        steps.step("tidy", || tidy::check().map(|sizes| println!("{sizes}")))?;
    }
    // Before clippy and tests: weft-dataplane embeds the object.
    steps.step("kernel programs", || build::kernel_programs(&tools))?;
    // What tests run as WebAssembly.
    steps.step("filters", || build::filters(&setup::filters::ensure()?))?;
    if lint {
        steps.step("lint (clippy)", || {
            shell::run(cargo("clippy").args(["--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        })?;
    }
    // One compilation for both parts: cargo unifies features over the packages it is asked for.
    let binaries = steps.step("compile tests", || compile(None))?;
    let (real, plain): (Vec<TestBinary>, Vec<TestBinary>) = binaries
        .into_iter()
        .partition(|binary| binary.package == NET_PACKAGE && binary.integration);

    let mut totals = Totals::default();
    if unit {
        steps.step("unit and property tests", || {
            totals.run_all(&plain, args.filter.as_deref())
        })?;
        if args.filter.is_none() {
            steps.step("examples in documentation", || {
                shell::run(cargo("test").args(["--quiet", "--workspace", "--doc"]))
            })?;
        }
    }
    if net {
        steps.step("weft, release", || build::release(&tools))?;
        steps.step("real traffic", || totals.run_all(&real, args.filter.as_deref()))?;
    }
    steps.summary("test");
    println!("{totals}; binary {}", paths::weft().display());
    Ok(())
}
