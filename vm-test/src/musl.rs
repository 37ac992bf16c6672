//! A static client without glibc: musl resolves names by unconnected UDP to several servers at once, which is another
//! path through the kernel than glibc's connected sockets.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{Lab, process};

const SOURCE: &str = include_str!("musl/resolve.c");

/// Compiles `resolve NAME [4|6]` with musl-gcc into the lab and returns its path.
///
/// # Errors
/// musl-gcc is not there (package musl-tools: `cargo xtask setup`).
pub fn resolver(lab: &Lab) -> Result<String> {
    let (source, program) = (lab.work().join("resolve.c"), lab.work().join("resolve"));
    fs::write(&source, SOURCE).context("write resolve.c")?;
    let mut compile = Command::new("musl-gcc");
    compile.args(["-static", "-O1", "-o"]).arg(&program).arg(&source);
    process::output(compile, process::BOUND)?
        .ok()
        .context("compile the static client (package musl-tools)")?;
    Ok(program.display().to_string())
}
