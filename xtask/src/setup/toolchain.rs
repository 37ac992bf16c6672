//! The compiler and the linker of the kernel programs.
//!
//! The kernel's target (`bpfel-unknown-none`) has no core that could be downloaded: cargo builds it from source, which
//! needs a compiler with its sources and the unstable `-Z build-std`. A nightly toolchain of rustup with `rust-src` is
//! taken where there is one, else Debian's `rustc-web` with `rust-web-src`, told to accept unstable options.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{paths, shell};

/// Major LLVM version of Debian's `rustc-web`, and so of the bpf-linker that reads its bitcode.
pub const DEBIAN_LLVM: u32 = 22;

/// LLVM versions bpf-linker 0.13 can be built against.
const LINKER_LLVM: &[u32] = &[21, 22, 23];

/// Version requirement on bpf-linker: 0.13 emits the BTF that the pinned aya reads.
const LINKER_VERSION: &str = "^0.13";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that has the sources of core beside it.
pub enum KernelToolchain {
    /// rustup's `nightly` with `rust-src`.
    Nightly { llvm: u32 },
    /// Debian's `rustc-web` with `rust-web-src`.
    Debian { version: String, llvm: u32 },
}

pub enum LinkerState {
    At(PathBuf),
    Missing,
}

// === impl KernelToolchain ===

impl KernelToolchain {
    /// The toolchain to use, if there is one.
    pub fn find() -> Option<Self> {
        Self::nightly().or_else(Self::debian)
    }

    fn nightly() -> Option<Self> {
        // `rustc +nightly` would make rustup install one; the list does not.
        let list = shell::ask(Command::new("rustup").args(["toolchain", "list"]))?;
        list.lines().find(|line| line.starts_with("nightly"))?;
        let rustc = |args: &[&str]| shell::ask(Command::new("rustup").args(["run", "nightly", "rustc"]).args(args));
        let llvm = llvm_of(&rustc(&["-vV"])?)?;
        (has_core_source(&rustc(&["--print", "sysroot"])?) && LINKER_LLVM.contains(&llvm))
            .then_some(Self::Nightly { llvm })
    }

    fn debian() -> Option<Self> {
        let words = shell::ask(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
        let sysroot = shell::ask(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
        let version = words.lines().next()?.to_owned();
        has_core_source(&sysroot).then_some(Self::Debian {
            version,
            llvm: llvm_of(&words)?,
        })
    }

    /// Major version of its LLVM.
    pub fn llvm(&self) -> u32 {
        match self {
            Self::Nightly { llvm } | Self::Debian { llvm, .. } => *llvm,
        }
    }

    /// What makes a plain `cargo` use this compiler, with unstable options.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs: &[(&str, &str)] = match self {
            Self::Nightly { .. } => &[("RUSTUP_TOOLCHAIN", "nightly")],
            Self::Debian { .. } => &[("RUSTC", DEBIAN_RUSTC), ("RUSTC_BOOTSTRAP", "1")],
        };
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// A `cargo build` that uses this compiler and may use unstable options.
    pub fn cargo_build(&self) -> Command {
        match self {
            Self::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo", "build"])
                    .env_remove("RUSTC")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Self::Debian { .. } => {
                let mut command = shell::cargo("build");
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

impl fmt::Display for KernelToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly { llvm } => write!(f, "rustup nightly (LLVM {llvm})"),
            Self::Debian { version, llvm } => write!(f, "Debian's {version} (LLVM {llvm})"),
        }
    }
}

// === impl LinkerState ===

impl LinkerState {
    pub fn find() -> Self {
        paths::which("bpf-linker").map_or(Self::Missing, Self::At)
    }
}

/// Whether `/usr/lib/llvm-N` holds what bpf-linker is built against.
pub fn llvm_is_there(major: u32) -> bool {
    let prefix = llvm_prefix(major);
    prefix.join("bin/llvm-config").exists() && prefix.join("include/llvm-c/Core.h").exists()
}

/// Builds bpf-linker from the cargo registry into [`paths::tools`] (about a minute).
///
/// # Errors
/// LLVM of the toolchain's version is not there, or the build fails.
pub fn install_linker(toolchain: &KernelToolchain) -> Result<()> {
    let llvm = toolchain.llvm();
    let prefix = llvm_prefix(llvm);
    if !llvm_is_there(llvm) {
        bail!(
            "bpf-linker must be built against LLVM {llvm}, that of {toolchain}, and {} has no llvm-config or headers: \
             install llvm-{llvm} and llvm-{llvm}-dev, or a bpf-linker of your own on PATH",
            prefix.display()
        );
    }
    println!(
        "installing bpf-linker {LINKER_VERSION} for LLVM {llvm} into {}: links the kernel programs",
        paths::tools().display()
    );
    let mut install = shell::cargo("install");
    install
        .args([
            "bpf-linker",
            "--locked",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(paths::tools())
        .env("LLVM_PREFIX", prefix)
        // Its own release profile is made for speed of the linker; ours links one small object.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    shell::run(&mut install).context("build bpf-linker")
}

/// Where Debian puts LLVM of that major version.
pub fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// `LLVM version: 22.1.8` -> 22, out of what `rustc -vV` says.
pub fn llvm_of(verbose_version: &str) -> Option<u32> {
    let line = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version:"))?;
    line.trim().split('.').next()?.parse().ok()
}

fn has_core_source(sysroot: &str) -> bool {
    Path::new(sysroot)
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_the_verbose_version() {
        assert_eq!(
            llvm_of("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n"),
            Some(22)
        );
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
    }
}
