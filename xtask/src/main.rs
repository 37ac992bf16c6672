//! `cargo xtask VERB`: everything that is done with this repository, one file a verb.
//!
//! Each verb says what it needs, installs it where it can (Debian, root) and is quick the second time. A verb fails
//! with one clear line; exit codes are those of `weft` itself: 0 done, 1 failed, 2 usage, 3 needs privileges or kernel
//! features.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod ci;
mod demo;
mod exit;
mod guide;
mod paths;
mod preflight;
mod profile;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;
mod vm_test;
mod wrk;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and shows weft.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Bench(bench::Args),
    Build(build::Args),
    Ci(ci::Args),
    Demo(demo::Args),
    Guide(guide::Args),
    Profile(profile::Args),
    Setup(setup::Args),
    Soak(soak::Args),
    Test(test::Args),
    Tidy(tidy::Args),
    VmTest(vm_test::Args),
    #[command(name = "__vm-guest", hide = true)]
    VmGuest(vm_test::GuestArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Ci(args) => ci::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Guide(args) => guide::run(&args),
        Verb::Profile(args) => profile::run(&args),
        Verb::Setup(args) => setup::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Tidy(args) => tidy::run(&args),
        Verb::VmTest(args) => vm_test::run(&args),
        Verb::VmGuest(args) => vm_test::run_guest(&args),
    };
    exit::report(result)
}
