//! How often each function of `weft` runs, and which way its branches go: what the optimiser is told (`-C profile-use`).
//!
//! `cargo xtask profile` makes the file; it is of use to the compiler that made it alone, because names of functions have the
//! compiler's version in them. Any other builds the same program without it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::stamp::hash;
use crate::{paths, shell};

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
            llvm: word("LLVM version: ")?.split('.').next()?.parse().ok()?,
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
pub fn used(profile: &Path) -> Result<Vec<OsString>> {
    let bytes = fs::read(profile).with_context(|| format!("read {}", profile.display()))?;
    Ok(vec![
        with_path("-Cprofile-use=", profile),
        // A function that changed since is built without.
        "-Cllvm-args=-no-pgo-warn-mismatch".into(),
        // Cargo looks at its flags to see what to build anew, not at the file.
        format!("--cfg=weft_profile=\"{:016x}\"", hash(&bytes)).into(),
    ])
}

/// Flags that make a program count for a profile, into `folder` unless `LLVM_PROFILE_FILE` says another place.
pub fn counting(folder: &Path) -> Vec<OsString> {
    vec![with_path("-Cprofile-generate=", folder)]
}

fn with_path(flag: &str, path: &Path) -> OsString {
    let mut word = OsString::from(flag);
    word.push(path);
    word
}

/// `flags` after those that the caller's environment has for rustc, as `CARGO_ENCODED_RUSTFLAGS` has them.
pub fn encoded(flags: &[OsString]) -> OsString {
    let given = env::var_os("CARGO_ENCODED_RUSTFLAGS").or_else(|| {
        let words = env::var("RUSTFLAGS").ok()?;
        Some(words.split_whitespace().collect::<Vec<_>>().join("\u{1f}").into())
    });
    let given = given.filter(|words| !words.is_empty());
    let all: Vec<OsString> = given.into_iter().chain(flags.iter().cloned()).collect();
    all.join(OsString::from("\u{1f}").as_os_str())
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
