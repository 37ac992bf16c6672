//! The compilers of the filters in `userspace/adapters/filters`: Rust for WebAssembly, and npm for AssemblyScript.
//!
//! The toolchain in use is taken where it has the target's std (`rustup target add wasm32-unknown-unknown`); else std is
//! built from source by the compiler of the kernel programs, which has it, and linked by the first LLVM linker there is.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    KernelToolchain,
    packages::{self, Package},
};
use crate::{paths, shell};

/// What the Rust filters are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// What builds filters.
pub struct FilterTools {
    pub rust: WasmToolchain,
    pub npm: PathBuf,
}

/// A Rust compiler for [`TARGET`].
pub enum WasmToolchain {
    /// The one in use, which has the target's std.
    Own { version: String },
    /// One that has the sources of std, and a linker.
    FromSource { compiler: KernelToolchain, linker: PathBuf },
}

/// Finds them, and installs what is missing (Debian packages, root).
///
/// # Errors
/// As [`packages::install`].
pub fn ensure() -> Result<FilterTools> {
    let mut missing: Vec<&Package> = Vec::new();
    if WasmToolchain::find().is_none() {
        if KernelToolchain::find().is_none() {
            missing.extend(packages::KERNEL_TOOLCHAIN.iter());
        }
        if linker().is_none() {
            missing.extend(packages::WASM_LINKER.iter());
        }
    }
    if paths::which("npm").is_none() {
        missing.extend(packages::NPM.iter());
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    Ok(FilterTools {
        rust: WasmToolchain::find()
            .context("the packages are installed, yet no Rust compiler for WebAssembly was found")?,
        npm: paths::which("npm").context("the packages are installed, yet there is no npm")?,
    })
}

// === impl WasmToolchain ===

impl WasmToolchain {
    fn find() -> Option<Self> {
        Self::own().or_else(|| {
            Some(Self::FromSource {
                compiler: KernelToolchain::find()?,
                linker: linker()?,
            })
        })
    }

    fn own() -> Option<Self> {
        let libraries = shell::ask(rustc().args(["--print", "target-libdir", "--target", TARGET]))?;
        Path::new(&libraries).exists().then_some(())?;
        let version = shell::ask(rustc().arg("-V"))?;
        Some(Self::Own { version })
    }

    /// What a plain `cargo build --target` [`TARGET`] needs in its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let Self::FromSource { compiler, linker } = self else {
            return Vec::new();
        };
        let mut environment = compiler.environment();
        environment.extend([
            ("CARGO_UNSTABLE_BUILD_STD".to_owned(), STD.to_owned()),
            (FLAGS.to_owned(), linked_by(linker)),
        ]);
        environment
    }

    /// A `cargo build` for [`TARGET`], release profile.
    pub fn cargo_build(&self) -> Command {
        let mut command = match self {
            Self::Own { .. } => shell::cargo("build"),
            Self::FromSource { compiler, linker } => {
                let mut command = compiler.cargo_build();
                command.arg(format!("-Zbuild-std={STD}")).env(FLAGS, linked_by(linker));
                command
            }
        };
        command
            .args(["--release", "--locked", "--target", TARGET])
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        command
    }
}

impl fmt::Display for WasmToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { version } => write!(f, "{version}"),
            Self::FromSource { compiler, linker } => {
                write!(f, "{compiler}, std from source, linked by {}", linker.display())
            }
        }
    }
}

/// What is compiled of std's sources.
const STD: &str = "std,panic_abort";

/// Where cargo takes the compiler's flags from.
const FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";

fn linked_by(linker: &Path) -> String {
    format!("-Clinker={}", linker.display())
}

/// The `rustc` of the toolchain in use.
fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// LLVM's linker for WebAssembly: rustup's toolchains bring one, Debian has packages of it.
fn linker() -> Option<PathBuf> {
    let rustups = || {
        let sysroot = shell::ask(rustc().args(["--print", "sysroot"]))?;
        let hosts = fs::read_dir(Path::new(&sysroot).join("lib/rustlib")).ok()?;
        hosts
            .flatten()
            .map(|host| host.path().join("bin/rust-lld"))
            .find(|file| file.exists())
    };
    let debians = || Some(PathBuf::from(packages::WASM_LINKER_FILE)).filter(|file| file.exists());
    rustups().or_else(|| paths::which("wasm-ld")).or_else(debians)
}
