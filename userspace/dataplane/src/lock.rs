//! One daemon a bpffs directory and a captured cgroup: a second one would publish over the first one's tables.
//!
//! A lock belongs to the open file description, not to a process or a descriptor: a daemon that hands over passes the
//! descriptor, and there is no moment at which nobody holds the lock.

use std::{
    fs::{File, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use crate::error::DataplaneError;

/// Released by the kernel when the last descriptor of it is closed, in whatever process and however that ends.
#[derive(Debug)]
pub struct Lock(File);

// === impl Lock ===

impl Lock {
    /// Locks a directory.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::InUse`] if another process has it.
    pub fn exclusive(path: &Path) -> Result<Self, DataplaneError> {
        let directory = File::open(path).map_err(fail(path))?;
        Self::hold(directory, path)
    }

    /// A lock of `path` that another daemon handed over.
    ///
    /// # Errors
    ///
    /// The descriptor is of something else, or that daemon did not hold the lock and another does.
    pub fn handed_over(path: &Path, lock: OwnedFd) -> Result<Self, DataplaneError> {
        let directory = File::from(lock);
        let (theirs, ours) = directory
            .metadata()
            .and_then(|theirs| Ok((theirs, path.metadata()?)))
            .map_err(fail(path))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(fail(path)(io::Error::other(
                "the lock that was handed over is of another directory",
            )));
        }
        Self::hold(directory, path)
    }

    fn hold(directory: File, path: &Path) -> Result<Self, DataplaneError> {
        match directory.try_lock() {
            Ok(()) => Ok(Self(directory)),
            Err(TryLockError::WouldBlock) => Err(DataplaneError::InUse {
                path: path.to_path_buf(),
            }),
            Err(TryLockError::Error(source)) => Err(fail(path)(source)),
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn fail(path: &Path) -> impl Fn(io::Error) -> DataplaneError {
    let path = path.to_path_buf();
    move |source| DataplaneError::Lock {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_lock_outlives_the_one_who_handed_it_over() {
        let (here, elsewhere) = (std::env::temp_dir(), Path::new("/proc/self"));
        let here = here.join(format!("weft-lock-{}", std::process::id()));
        std::fs::create_dir(&here).expect("made");
        let first = Lock::exclusive(&here).expect("free");
        let passed = |lock: &Lock| lock.as_fd().try_clone_to_owned().expect("a descriptor");
        let error = Lock::handed_over(elsewhere, passed(&first)).expect_err("another directory");
        assert!(matches!(error, DataplaneError::Lock { .. }), "{error}");
        let second = Lock::handed_over(&here, passed(&first)).expect("the same lock");
        drop(first);
        assert!(matches!(Lock::exclusive(&here), Err(DataplaneError::InUse { .. })));
        drop(second);
        // A child that another test forks has the descriptor too, until it executes.
        let began = Instant::now();
        while let Err(error) = Lock::exclusive(&here) {
            assert!(began.elapsed() < Duration::from_secs(10), "{error}");
            std::thread::yield_now();
        }
        std::fs::remove_dir(here).expect("removed");
    }
}
