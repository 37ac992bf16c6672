//! Programs as a machine has them that read them from its disk.

use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use vm_test::{Lab, envoy};

/// Has the kernel forget what it keeps of both programs, weft's and Envoy's, before they are started. What a linker or a package
/// manager has just written lies there in larger pieces than what is read, and a process has more of each in memory: 3.6 MiB of an
/// idle weft (ext4, Linux 6.18). What somebody runs stays.
///
/// # Errors
/// A program cannot be read, or is not there.
pub fn forget_programs(lab: &Lab) -> Result<()> {
    for program in [lab.weft_binary(), &envoy::binary()?] {
        forget(program).with_context(|| format!("have the kernel forget {}", program.display()))?;
    }
    Ok(())
}

fn forget(file: &Path) -> Result<()> {
    let file = File::open(file)?;
    // What is not written yet stays, too.
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}
