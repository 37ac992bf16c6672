//! One daemon a bpffs directory and a captured cgroup: a second one would publish over the first one's tables.

use std::{fs::File, path::Path};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::error::DataplaneError;

/// Released by the kernel when the process ends, however it ends.
pub type Lock = Flock<File>;

/// Locks a directory.
///
/// # Errors
///
/// [`DataplaneError::InUse`] if another process has it.
pub fn exclusive(path: &Path) -> Result<Lock, DataplaneError> {
    let fail = |source| DataplaneError::Lock {
        path: path.to_path_buf(),
        source,
    };
    let directory = File::open(path).map_err(fail)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => DataplaneError::InUse {
            path: path.to_path_buf(),
        },
        errno => fail(errno.into()),
    })
}
