//! How often each function of `weft` runs, and which way its branches go: what the optimiser is told (`-C profile-use`).
//!
//! `cargo xtask profile` makes the file; it is of use to the compiler that made it alone, because names of functions have the
//! compiler's version in them. Any other builds the same program without it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::stamp::hash;
use crate::{paths, setup, shell};

/// Between the words of `CARGO_ENCODED_RUSTFLAGS`.
pub const SEPARATOR: &str = "\u{1f}";

/// The compiler that cargo uses here.
pub struct Compiler {
    /// `1.95.0`
    release: String,
    /// `x86_64-unknown-linux-gnu`
    pub host: String,
    /// Major version of its LLVM, which reads and writes profiles.
    pub llvm: u32,
}

// === impl Compiler ===

impl Compiler {
    /// # Errors
    /// It cannot be run, or does not say what it is.
    pub fn ask() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let words = shell::read(Command::new(rustc).arg("-vV"))?;
        Self::of(&words).with_context(|| format!("`rustc -vV` does not say its release, host and LLVM:\n{words}"))
    }

    fn of(verbose_version: &str) -> Option<Self> {
        let word = |key| verbose_version.lines().find_map(|line| line.strip_prefix(key));
        Some(Self {
            release: word("release: ")?.to_owned(),
            host: word("host: ")?.to_owned(),
            llvm: setup::llvm_of(verbose_version)?,
        })
    }

    /// Where a profile of this compiler is kept. The same release may have been built with another LLVM, which may be unable to
    /// read the file.
    pub fn profile(&self) -> PathBuf {
        let name = format!("rustc-{}-llvm-{}-{}.profdata", self.release, self.llvm, self.host);
        paths::profiles().join(name)
    }

    /// Whether `file` is a profile of any compiler of this architecture.
    pub fn is_for_this_machine(&self, file: &Path) -> bool {
        file.to_string_lossy().ends_with(&format!("-{}.profdata", self.host))
    }
}

/// Flags that make the optimiser use `profile`.
///
/// # Errors
/// It cannot be read.
pub fn used(profile: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(profile).with_context(|| format!("read {}", profile.display()))?;
    Ok(vec![
        format!("-Cprofile-use={}", profile.display()),
        // A function that changed since is built without.
        "-Cllvm-args=-no-pgo-warn-mismatch".to_owned(),
        // Cargo looks at its flags to see what to build anew, not at the file.
        format!("--cfg=weft_profile=\"{:016x}\"", hash(&bytes)),
    ])
}

/// Flags that make a program count for a profile, into `folder` unless `LLVM_PROFILE_FILE` says another place.
pub fn counting(folder: &Path) -> Vec<String> {
    vec![format!("-Cprofile-generate={}", folder.display())]
}

/// Gives `build` flags beside those of its caller: of `RUSTFLAGS`, or else of cargo's configuration for the target `host`. (Those
/// for any target, `build.rustflags`, are not taken beside others: so says cargo.)
pub fn add(build: &mut Command, host: &str, flags: &[String]) {
    if flags.is_empty() {
        return;
    }
    let given = env::var("CARGO_ENCODED_RUSTFLAGS").or_else(|_| {
        let words = env::var("RUSTFLAGS")?;
        Ok::<_, env::VarError>(words.split_whitespace().collect::<Vec<_>>().join(SEPARATOR))
    });
    match given.ok().filter(|words| !words.is_empty()) {
        Some(words) => build.env("CARGO_ENCODED_RUSTFLAGS", [&[words], flags].concat().join(SEPARATOR)),
        // JSON's strings are TOML's.
        None => build
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS")
            .arg("--config")
            .arg(format!("target.{host}.rustflags={}", serde_json::json!(flags))),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_of_one_compiler_on_one_architecture() {
        let compiler = Compiler::of(
            "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n\
             LLVM version: 22.1.2\n",
        );
        let compiler = compiler.expect("as rustc says it");
        assert_eq!(compiler.llvm, 22);
        assert!(
            compiler
                .profile()
                .ends_with("userspace/weft/profile/rustc-1.95.0-llvm-22-x86_64-unknown-linux-gnu.profdata")
        );
        assert!(Compiler::of("rustc 1.95.0\n").is_none());
    }
}
