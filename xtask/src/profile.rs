//! `cargo xtask profile`: what the optimiser of `weft` is told of its work, learnt from the bench's traffic.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    build::{self, Compiler},
    paths, preflight,
    setup::{self, Scope},
    shell::{self, Steps},
};

/// Builds a weft that counts, puts the bench's traffic through it, and keeps what it counted for `build`. Needs root.
///
/// The file, userspace/weft/profile/rustc-VERSION-llvm-VERSION-HOST.profdata, is for the compiler it was made by: another builds
/// the same program without it. Functions that changed since it was made are built without, too: make it anew when the data path
/// changed, and with a new compiler. It takes a build of everything, longer than usual, and quick runs of the bench.
#[derive(clap::Args)]
pub struct Args {}

/// Scenarios of the bench that stand for what operators run: requests of each protocol, filters, many connections, a large
/// mesh.
const TRAFFIC: &[&str] = &["http", "http2", "adapters", "memory", "large-mesh"];

/// Functions that are left out, a regular expression: what compiles WebAssembly, and reads what people write. It is half of
/// the file, and no request waits for it.
const LEFT_OUT: &str = "cranelift|regalloc2|wasmparser|wasmtime_environ|wasmtime_internal|gimli|saphyr|clap_builder";

pub fn run(_: &Args) -> Result<()> {
    preflight::kernel("profile")?;
    let mut steps = Steps::default();
    let tools = steps.step("tools", || setup::ensure(Scope::Bench))?;
    let compiler = Compiler::ask()?;
    let profdata = profdata(&compiler)?;
    steps.step("kernel programs", || build::kernel_programs(&tools))?;
    let counts = paths::profile_build().join("counts");
    if counts.exists() {
        fs::remove_dir_all(&counts).with_context(|| format!("remove {}", counts.display()))?;
    }
    let weft = steps.step("weft that counts", || build::counting(&compiler, &counts))?;
    for scenario in TRAFFIC {
        steps.step(&format!("traffic: {scenario}"), || traffic(scenario, &weft, &counts))?;
    }
    let kept = compiler.profile();
    steps.step("profile", || merge(&profdata, &counts, &compiler))?;
    steps.summary("profile");
    println!("{}: `cargo xtask build` uses it", kept.display());
    Ok(())
}

/// One scenario of the bench, by this program.
fn traffic(scenario: &str, weft: &Path, counts: &Path) -> Result<()> {
    let this = env::current_exe().context("find this program")?;
    shell::run(
        Command::new(this)
            .args(["bench", scenario, "--quick"])
            .env("WEFT_BIN", weft)
            // Four files, which all processes share: one each would be 18 MB for every `weft run`.
            .env("LLVM_PROFILE_FILE", counts.join("%4m.profraw")),
    )
}

/// Puts what was counted into one file, and removes those of other compilers of the same machine.
fn merge(profdata: &Path, counts: &Path, compiler: &Compiler) -> Result<()> {
    let counted = files_in(counts)?;
    ensure!(
        !counted.is_empty(),
        "nothing was counted: {} is empty",
        counts.display()
    );
    let kept = compiler.profile();
    shell::run(
        Command::new(profdata)
            .args(["merge", "--sparse", "--no-function", LEFT_OUT, "--output"])
            .arg(&kept)
            .args(counted),
    )?;
    for other in files_in(&paths::profiles())? {
        if other != kept && compiler.is_for_this_machine(&other) {
            fs::remove_file(&other).with_context(|| format!("remove {}", other.display()))?;
        }
    }
    Ok(())
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = found.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.sort();
    Ok(files)
}

/// The program that reads the counts: of the compiler's own LLVM, whose format it is.
fn profdata(compiler: &Compiler) -> Result<PathBuf> {
    let file = setup::llvm_prefix(compiler.llvm).join("bin/llvm-profdata");
    ensure!(
        file.exists(),
        "{} is not there, and reads what the compiler's LLVM counts: install llvm-{}",
        file.display(),
        compiler.llvm
    );
    Ok(file)
}
