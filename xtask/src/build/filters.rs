//! `cargo xtask build --filters`: what is in `userspace/adapters/filters`, as WebAssembly in `target/wasm`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::stamp::{hash, hash_of_sources};
use crate::{
    paths,
    setup::{
        self,
        filters::{FilterTools, TARGET, WasmToolchain},
    },
    shell,
};

/// The AssemblyScript filters, an npm package each.
const ASSEMBLYSCRIPT: &[&str] = &["deny-path"];

/// Filters made by others, as the package from PyPI has them: the name they get here, and their folder there.
const FOREIGN: &[(&str, &str)] = &[
    ("higress-transformer", "transformer/2.0.0"),
    ("higress-ip-acl", "gpustack-ip-acl/0.1.0"),
    ("higress-data-masking", "ai-data-masking/2.0.3"),
];

/// Builds or fetches every filter, unless nothing changed.
///
/// # Errors
/// A compiler's or npm's failure.
pub fn filters(tools: &FilterTools) -> Result<()> {
    own_filters(tools)?;
    unless_unchanged("filters made by others", &format!("{FOREIGN:?}\n"), foreign)
}

/// Builds those that are ours, unless nothing changed.
///
/// # Errors
/// As [`filters`].
pub fn own_filters(tools: &FilterTools) -> Result<()> {
    let out = paths::filters();
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    // One for all: a change of either is rare, and the other compiler is quick where nothing changed.
    let sources = hash_of_sources(&sources())?;
    unless_unchanged("Rust filters", &format!("{sources:016x} {}\n", tools.rust), || {
        rust(&tools.rust)
    })?;
    for name in ASSEMBLYSCRIPT {
        unless_unchanged(name, &format!("{sources:016x}\n"), || {
            Ok(vec![assemblyscript(name, &tools.npm)?])
        })?;
    }
    Ok(())
}

/// The Cargo workspace: libraries, and examples where a package has several modules.
fn rust(toolchain: &WasmToolchain) -> Result<Vec<PathBuf>> {
    println!("Rust filters: {toolchain}");
    let built = paths::filters_build();
    let mut build = toolchain.cargo_build();
    build
        .args(["--workspace", "--lib", "--examples"])
        .arg("--target-dir")
        .arg(&built)
        .current_dir(sources())
        .env_remove("CARGO_TARGET_DIR");
    shell::run(&mut build).context("build the Rust filters")?;
    let release = built.join(TARGET).join("release");
    let mut modules = modules_in(&release)?;
    modules.extend(modules_in(&release.join("examples"))?);
    modules
        .iter()
        .map(|module| publish(module, &name_of(module).replace('_', "-")))
        .collect()
}

/// One npm package, built in a copy, so that the checkout stays as it is.
fn assemblyscript(name: &str, npm: &Path) -> Result<PathBuf> {
    println!("{name}: AssemblyScript");
    let (folder, copy) = (sources().join(name), paths::filters_build().join(name));
    fs::create_dir_all(copy.join("assembly")).with_context(|| format!("make {}", copy.display()))?;
    for file in ["package.json", "package-lock.json", "assembly/index.ts"] {
        fs::copy(folder.join(file), copy.join(file)).with_context(|| format!("copy {file} of {name}"))?;
    }
    let npm = |words: &[&str]| {
        let mut command = Command::new(npm);
        shell::run(command.args(words).current_dir(&copy)).with_context(|| format!("build {name}"))
    };
    npm(&["ci", "--silent", "--no-audit", "--no-fund"])?;
    npm(&["run", "--silent", "build"])?;
    publish(&copy.join("build").join(format!("{name}.wasm")), name)
}

/// Those of others are there: `setup` has fetched the package.
fn foreign() -> Result<Vec<PathBuf>> {
    println!("filters made by others: from PyPI");
    let package = setup::foreign_filters()?;
    FOREIGN
        .iter()
        .map(|(name, folder)| publish(&package.join(folder).join("plugin.wasm"), name))
        .collect()
}

/// Does `work` if `from` (what it makes its modules of) or one of the modules it left last time is not as it was.
fn unless_unchanged(what: &str, from: &str, work: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<()> {
    let stamp = paths::filters_build().join(format!("{}.stamp", what.replace(' ', "-")));
    if is_unchanged(&stamp, from) {
        println!("{what}: unchanged");
        return Ok(());
    }
    let start = Instant::now();
    let modules = work()?;
    for module in &modules {
        let size = fs::metadata(module).map_or(0, |meta| meta.len());
        println!("  {:>6} KB  {}", size / 1024, module.display());
    }
    println!("  {what}: {}", shell::seconds(start.elapsed()));
    fs::create_dir_all(paths::filters_build()).context("make the filters' build folder")?;
    let text = from.to_owned() + &hashes(&modules)?;
    fs::write(&stamp, text).with_context(|| format!("write {}", stamp.display()))
}

fn is_unchanged(stamp: &Path, from: &str) -> bool {
    let old = fs::read_to_string(stamp).unwrap_or_default();
    let Some(old) = old.strip_prefix(from) else {
        return false;
    };
    let files = old.lines().filter_map(|line| line.split_once(' '));
    let modules: Vec<PathBuf> = files.map(|(_, file)| file.into()).collect();
    !modules.is_empty() && hashes(&modules).is_ok_and(|now| now == old)
}

/// `HASH FILE`, a line each.
fn hashes(modules: &[PathBuf]) -> Result<String> {
    let line = |module: &PathBuf| {
        let bytes = fs::read(module).with_context(|| format!("read {}", module.display()))?;
        Ok(format!("{:016x} {}\n", hash(&bytes), module.display()))
    };
    modules.iter().map(line).collect()
}

/// Puts a module where its users look for it.
fn publish(module: &Path, name: &str) -> Result<PathBuf> {
    let bytes = fs::read(module).with_context(|| format!("read {}", module.display()))?;
    ensure!(bytes.starts_with(b"\0asm"), "{} is no WebAssembly", module.display());
    let published = paths::filters().join(format!("{name}.wasm"));
    if fs::read(&published).ok().as_deref() != Some(&bytes) {
        // By rename: somebody may be reading the old one.
        let aside = published.with_extension("new");
        fs::write(&aside, &bytes).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, &published).with_context(|| format!("make {}", published.display()))?;
    }
    Ok(published)
}

/// What cargo linked into `dir`; one with a hash in its name is another's twin.
fn modules_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut modules: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm") && !name_of(path).contains('-'))
        .collect();
    modules.sort();
    Ok(modules)
}

fn name_of(module: &Path) -> String {
    module
        .file_stem()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn sources() -> PathBuf {
    paths::root().join("userspace/adapters/filters")
}
