//! What must hold before a verb that needs the kernel starts: root, cgroup v2, network namespaces, kernel programs.
//!
//! Asked first, so that nobody waits for a build to be told so; answered with one line and exit code 3.

use anyhow::Result;

use crate::exit::Needs;

/// Refuses with [`Needs`] unless this process may do what `verb` is about to do.
///
/// # Errors
/// [`Needs`] with one line: what is missing, what it is for, what to do.
pub fn kernel(verb: &str) -> Result<()> {
    if let Err(missing) = vm_test::need::kernel() {
        return Err(Needs(format!("`cargo xtask {verb}` needs {missing}")).into());
    }
    Ok(())
}

/// Refuses with [`Needs`] unless root: for installing packages.
///
/// # Errors
/// [`Needs`], naming `what` is to be installed.
pub fn root_to_install(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Needs(format!(
            "root is needed to install {what}: run it with sudo, or install that by hand"
        ))
        .into());
    }
    Ok(())
}
