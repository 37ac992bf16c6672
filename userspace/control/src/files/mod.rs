//! A folder of YAML files, watched.
//!
//! `*.yaml` and `*.yml` directly in the folder; sub-folders and dot files are left alone (so Kubernetes' `..data` swaps
//! and editors' temporary files make no objects). inotify says *that* something happened and whether a writer is still
//! at it, never *what*: after a short quiet moment the folder is listed and compared with what was applied, so a lost or
//! merged event, an atomic rename, a swapped symlink and a slow writer all end in the same place. A rescan now and then
//! does the same without any event, for file systems that have none and for targets of symlinks elsewhere.
//!
//! What must never happen is that a mistake of the file system looks like a deletion. Objects go only if the folder was
//! listed without error and the file was not in it; and another folder than before, the first one of a daemon included,
//! must have some resource file: an empty one looks like a mount point without its mount.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use weft_policy::Diagnostic;

use crate::{
    error::SourceError,
    source::{Change, Sink, Source, SourceStatus},
};

mod heard;
mod identity;
mod scan;
mod watch;

use scan::Folder;
pub use scan::MAX_FILES;
use watch::Watch;

/// The folder is read after this long even if events never stop.
pub const DEBOUNCE_MAX: Duration = Duration::from_millis(500);

/// Backstop for changes that no event tells. Costs a listing and a `stat` a file.
pub const RESCAN: Duration = Duration::from_secs(5);

/// How soon a folder that vanished, or a file caught in the middle of a write, is looked at again.
pub const RETRY: Duration = Duration::from_millis(250);

/// A watched folder. Dropping it ends the watch.
#[derive(Debug)]
pub struct FilesSource {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// One waiting wake-up says as much as many: the folder is compared as a whole.
    wake: SyncSender<()>,
    /// Also try again what was refused.
    nudged: AtomicBool,
    stop: AtomicBool,
    status: Mutex<SourceStatus>,
}

/// State of the watching thread.
struct Worker<S> {
    folder: Folder,
    watch: Watch,
    store: Arc<Mutex<S>>,
    notify: tokio::sync::mpsc::Sender<Change>,
    shared: Arc<Shared>,
}

// === impl FilesSource ===

impl FilesSource {
    /// Applies the folder to `store` before it returns, and watches it from then on. What `store` has already of files
    /// of the folder that are not there is removed, as later on. Each batch that changed something (the first one in
    /// any case) is told to `notify`, after the store's lock was given back; while `notify` is full the watch waits,
    /// and it ends when `notify` is closed.
    ///
    /// # Errors
    /// [`SourceError::Folder`]: the folder cannot be read now; the store is as before. [`SourceError::Thread`]: the
    /// system gave no thread; the folder is applied but not watched.
    pub fn spawn<S: Sink + Send + 'static>(
        path: impl Into<PathBuf>,
        store: Arc<Mutex<S>>,
        notify: tokio::sync::mpsc::Sender<Change>,
    ) -> Result<Self, SourceError> {
        let path = path.into();
        let (wake, woken) = sync_channel(1);
        // Watched first, then read: what changes in between is seen by its event at the latest.
        let mut watch = Watch::new(&path, wake.clone());
        watch.ensure();
        let (folder, first) = {
            let mut store = lock(&store);
            let mut folder = Folder::new(&path, store.files());
            let first = folder.scan(&mut *store, false).map_err(|source| SourceError::Folder {
                path: path.clone(),
                source,
            })?;
            (folder, first)
        };
        let shared = Arc::new(Shared {
            wake,
            nudged: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            status: Mutex::new(folder.status()),
        });
        let mut worker = Worker {
            folder,
            watch,
            store,
            notify,
            shared: shared.clone(),
        };
        thread::Builder::new()
            .name("weft-files".to_owned())
            .spawn(move || {
                if worker.tell(first) {
                    worker.run(&woken);
                }
            })
            .map_err(|source| SourceError::Thread {
                path: path.clone(),
                source,
            })?;
        Ok(Self { path, shared })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Source for FilesSource {
    fn name(&self) -> String {
        format!("files in {}", self.path.display())
    }

    fn status(&self) -> SourceStatus {
        lock(&self.shared.status).clone()
    }

    fn nudge(&self) {
        self.shared.nudged.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for FilesSource {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

// === impl Shared ===

impl Shared {
    fn wake(&self) {
        // Full: the thread is about to look anyway. Closed: it has ended.
        let _ = self.wake.try_send(());
    }
}

// === impl Worker ===

impl<S: Sink> Worker<S> {
    fn run(&mut self, woken: &Receiver<()>) {
        loop {
            let wait = if self.folder.unsettled() { RETRY } else { RESCAN };
            if woken.recv_timeout(wait).is_ok() {
                self.debounce(woken);
            }
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if !self.look() {
                return;
            }
        }
    }

    /// Waits until events pause. Asked for by somebody: does not wait.
    fn debounce(&self, woken: &Receiver<()>) {
        let began = Instant::now();
        while !self.shared.nudged.load(Ordering::SeqCst) && !self.shared.stop.load(Ordering::SeqCst) {
            let left = DEBOUNCE_MAX.saturating_sub(began.elapsed());
            if left.is_zero() || woken.recv_timeout(self.watch.quiet().min(left)).is_err() {
                return;
            }
        }
    }

    /// Compares the folder with what was applied. `false`: nobody listens any more.
    fn look(&mut self) -> bool {
        let nudged = self.shared.nudged.swap(false, Ordering::SeqCst);
        self.watch.ensure();
        self.watch.forget();
        let mut batch = Batch::of(&self.store);
        let change = self.folder.scan_or_keep(&mut batch, nudged);
        drop(batch);
        *lock(&self.shared.status) = self.folder.status();
        change.is_empty() || self.tell(change)
    }

    fn tell(&self, change: Change) -> bool {
        for diagnostic in &change.diagnostics {
            warn!("{diagnostic}");
        }
        info!(
            applied = change.applied.len(),
            removed = change.removed.len(),
            "resources changed"
        );
        self.notify.blocking_send(change).is_ok()
    }
}

/// The store's lock, taken with the first thing that changed and held until all of it is there: nobody sees half of a batch, and a
/// look at a folder in which nothing changed, which may take long, holds up nobody.
struct Batch<'a, S> {
    store: &'a Mutex<S>,
    held: Option<MutexGuard<'a, S>>,
}

// === impl Batch ===

impl<'a, S> Batch<'a, S> {
    fn of(store: &'a Mutex<S>) -> Self {
        Self { store, held: None }
    }

    fn store(&mut self) -> &mut S {
        let store = self.store;
        self.held.get_or_insert_with(|| lock(store))
    }
}

impl<S: Sink> Sink for Batch<'_, S> {
    fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic> {
        self.store().apply_file(path, bytes)
    }

    fn remove_file(&mut self, path: &str) {
        self.store().remove_file(path);
    }

    fn files(&self) -> Vec<String> {
        match &self.held {
            Some(store) => store.files(),
            None => lock(self.store).files(),
        }
    }
}

/// A panic elsewhere under the lock must not end the source: the next batch is applied to what is there.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
