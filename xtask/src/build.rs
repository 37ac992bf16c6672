//! `cargo xtask build`: kernel programs first, then the binary that carries them; filters on their own.

mod filters;
mod profile;
mod stamp;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

pub use self::filters::{filters, own_filters};
pub use self::profile::Compiler;
use self::profile::SEPARATOR;
use self::stamp::{hash, hash_of_sources};
use crate::{
    paths,
    setup::{self, Scope, Tools},
    shell::{self, cargo},
};

/// Builds `target/release/weft` with the kernel programs inside.
///
/// The kernel programs are a workspace of their own (another target, another compiler); they are built only if one of
/// their sources, the compiler or the linker changed since the last time.
#[derive(clap::Args)]
pub struct Args {
    /// Build the binary without optimisation into `target/debug/weft` (the kernel programs are always optimised: the
    /// verifier would refuse them otherwise).
    #[arg(long)]
    pub debug: bool,
    /// Build the filters in `userspace/adapters/filters` into `target/wasm/NAME.wasm` instead, and put the ones made by
    /// others (PyPI) beside them.
    #[arg(long, conflicts_with = "debug")]
    pub filters: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.filters {
        setup::ensure_python_tools()?;
        return filters(&setup::filters::ensure()?);
    }
    let tools = setup::ensure(Scope::Build)?;
    kernel_programs(&tools)?;
    binary(args.debug)?;
    let profile = if args.debug { "debug" } else { "release" };
    println!("built {}", paths::target().join(profile).join("weft").display());
    Ok(())
}

/// Everything `weft` needs, release profile.
///
/// # Errors
/// A compiler's failure, or what [`setup::ensure`] says.
pub fn release(tools: &Tools) -> Result<()> {
    kernel_programs(tools)?;
    binary(false)
}

/// The same without optimisation.
///
/// # Errors
/// As [`release`].
pub fn debug(tools: &Tools) -> Result<()> {
    kernel_programs(tools)?;
    binary(true)
}

/// The helper program of the real-traffic tests, for labs that no test makes.
///
/// # Errors
/// A compiler's failure.
pub fn traffic() -> Result<()> {
    shell::run(cargo("build").args(["--package", "vm-test", "--bin", "traffic"])).context("build traffic")
}

/// Load generators, servers and the relay of the bench, optimised: their own price is in every figure of the machine.
///
/// # Errors
/// A compiler's failure.
pub fn load() -> Result<()> {
    shell::run(cargo("build").args(["--package", "weft-bench", "--release"])).context("build what puts load on")
}

/// Compiles `ebpf/programs` into [`paths::bpf_object`], unless nothing changed.
///
/// The object is replaced only when its bytes differ, so that cargo does not rebuild the crate that embeds it.
///
/// # Errors
/// The compiler's or the linker's failure, or an unreadable source.
pub fn kernel_programs(tools: &Tools) -> Result<()> {
    let object = paths::bpf_object();
    let stamp_file = object.with_extension("stamp");
    let sources = stamp(tools)?;
    // The object's own bytes belong to the stamp: one that somebody put there by hand is not ours.
    let with_object = |bytes: &[u8]| format!("{sources}object {:016x}\n", hash(bytes));
    if let Ok(bytes) = fs::read(&object)
        && fs::read_to_string(&stamp_file).is_ok_and(|old| old == with_object(&bytes))
    {
        println!("kernel programs: unchanged");
        return Ok(());
    }

    println!(
        "kernel programs: {}, linked by {}",
        tools.toolchain,
        tools.linker.display()
    );
    let programs = paths::root().join("ebpf/programs");
    let out = paths::root().join("target/bpf-build");
    let mut build = tools.toolchain.cargo_build();
    build
        .args([
            "--release",
            "-Zbuild-std=core",
            "--target=bpfel-unknown-none",
            "--ignore-rust-version",
        ])
        .arg("--target-dir")
        .arg(&out)
        .current_dir(&programs)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(tools))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    shell::run(&mut build).context("build the kernel programs")?;

    let built = object_in(&out.join("bpfel-unknown-none/release"))?;
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::create_dir_all(object.parent().unwrap_or(Path::new("."))).context("make target/bpf")?;
        fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    }
    fs::write(&stamp_file, with_object(&bytes)).with_context(|| format!("write {}", stamp_file.display()))?;
    println!("kernel programs: {} KB in {}", bytes.len() / 1024, object.display());
    Ok(())
}

/// `weft` itself, with the kernel programs as they are.
///
/// # Errors
/// The compiler's failure.
pub fn binary(debug: bool) -> Result<()> {
    if debug {
        return shell::run(cargo("build").args(["--package", "weft"])).context("build weft");
    }
    let compiler = Compiler::ask()?;
    let profile = compiler.profile();
    let flags = if profile.exists() {
        profile::used(&profile)?
    } else {
        println!(
            "weft: built without a profile, which makes it slower: {} is not there",
            profile.display()
        );
        Vec::new()
    };
    let built = optimised(&compiler, &flags, &paths::target())?;
    place(&built, &paths::weft())
}

/// `weft` as a program that counts its work for a profile, below [`paths::profile_build`]; the counts come into `counts`.
///
/// # Errors
/// The compiler's failure.
pub fn counting(compiler: &Compiler, counts: &Path) -> Result<PathBuf> {
    optimised(compiler, &profile::counting(counts), &paths::profile_build())
}

/// Builds `weft` with optimisation for `compiler`'s own machine, and says where it is.
///
/// The target is named so that `flags` are not for what runs while building, and so that names of functions, of which the
/// target is a part, are those of the profile.
fn optimised(compiler: &Compiler, flags: &[String], target: &Path) -> Result<PathBuf> {
    let mut build = cargo("build");
    build
        .args(["--package", "weft", "--release", "--target", &compiler.host])
        .arg("--target-dir")
        .arg(target);
    profile::add(&mut build, &compiler.host, flags);
    shell::run(&mut build).context("build weft")?;
    Ok(target.join(&compiler.host).join("release/weft"))
}

/// Makes `place` another name of the file at `built`.
fn place(built: &Path, place: &Path) -> Result<()> {
    let inode = |file: &Path| fs::metadata(file).map(|meta| (meta.dev(), meta.ino()));
    let new = inode(built).with_context(|| format!("look at {}", built.display()))?;
    match inode(place) {
        Ok(old) if old == new => return Ok(()),
        Ok(_) => fs::remove_file(place).with_context(|| format!("remove {}", place.display()))?,
        Err(_) => fs::create_dir_all(place.parent().unwrap_or(Path::new("."))).context("make its folder")?,
    }
    fs::hard_link(built, place).with_context(|| format!("link {} to {}", place.display(), built.display()))
}

/// The one linked file cargo left in `dir`: a binary has neither extension nor `.d` beside it as its own name.
fn object_in(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_file() && path.extension().is_none() && !hidden(path))
        .collect();
    files.sort();
    ensure!(
        files.len() == 1,
        "{} should hold exactly one linked object, found {files:?}: remove target/bpf-build and build again",
        dir.display()
    );
    Ok(files.remove(0))
}

/// What the compiler is told, as `CARGO_ENCODED_RUSTFLAGS` has it.
fn flags(tools: &Tools) -> String {
    [
        &format!("-Clinker={}", tools.linker.display()),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // Without, each zeroing and copy, be it of three bytes, calls a function that goes byte by byte.
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Cpanic=abort",
    ]
    .join(SEPARATOR)
}

/// Names everything the object depends on: sources of `ebpf/`, compiler, linker, what both are told.
fn stamp(tools: &Tools) -> Result<String> {
    let sources = hash_of_sources(&paths::root().join("ebpf"))?;
    Ok(format!("{sources:016x} {} {}\n", tools.toolchain, flags(tools)))
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
