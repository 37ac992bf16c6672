//! One daemon a bpffs directory and a captured cgroup: a second one would publish over the first one's tables.
//!
//! A lock belongs to the open file description, not to a process or a descriptor: a daemon that hands over passes the
//! descriptor, and there is no moment at which nobody holds the lock.
//!
//! Whoever can open a directory can lock it, and need not be able to write: what is locked is made private ([`make_private`]).
//! The captured cgroup itself must stay open to all, so `.daemon` in it is locked in its place.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::error::DataplaneError;

/// Between two attempts of [`Lock::within`].
const RETRY: Duration = Duration::from_millis(10);

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

    /// Locks a directory that is open, if need be after others have had it.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Held`] if another process has it for longer than `patience`.
    pub fn within(directory: File, path: &Path, patience: Duration) -> Result<Self, DataplaneError> {
        let deadline = Instant::now() + patience;
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self(directory)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    return Err(DataplaneError::Held {
                        path: path.to_path_buf(),
                        patience,
                    });
                }
                Err(TryLockError::Error(source)) => return Err(fail(path)(source)),
            }
        }
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

/// Makes a directory, with those above it, that its owner alone can open. One that is there becomes so.
///
/// # Errors
///
/// Not permitted.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if path.metadata()?.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
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
    use super::*;

    #[test]
    fn what_is_private_is_so_from_its_first_moment_or_becomes_so() {
        let place = std::env::temp_dir().join(format!("weft-private-{}", std::process::id()));
        let (new, old) = (place.join("new"), place.join("old"));
        fs::create_dir_all(&old).expect("made");
        fs::set_permissions(&old, Permissions::from_mode(0o755)).expect("set");
        for path in [&new, &old, &old] {
            make_private(path).expect("made");
            let mode = path.metadata().expect("there").mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
        fs::remove_dir_all(place).expect("removed");
    }

    #[test]
    fn who_waits_for_a_lock_gives_up_and_is_told() {
        let place = std::env::temp_dir().join(format!("weft-held-{}", std::process::id()));
        fs::create_dir(&place).expect("made");
        let wait = |patience| Lock::within(File::open(&place).expect("opened"), &place, patience);
        let held = wait(Duration::ZERO).expect("free");
        let error = wait(Duration::from_millis(30)).expect_err("held").to_string();
        assert!(error.contains(&place.display().to_string()), "{error}");
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(Duration::from_secs(10)).is_ok());
            drop(held);
            waiting.join().expect("no panic")
        });
        assert!(waiting, "it was free again");
        fs::remove_dir(place).expect("removed");
    }

    #[test]
    fn a_lock_outlives_the_one_who_handed_it_over() {
        let (here, elsewhere) = (std::env::temp_dir(), Path::new("/proc/self"));
        let here = here.join(format!("weft-lock-{}", std::process::id()));
        fs::create_dir(&here).expect("made");
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
            thread::yield_now();
        }
        fs::remove_dir(here).expect("removed");
    }
}
