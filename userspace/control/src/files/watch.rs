//! inotify on the folder, renewed when the path leads to another folder than before.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc::SyncSender},
    time::Duration,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher, recommended_watcher};
use tracing::warn;

use super::{heard::Heard, identity::Identity, lock};

pub(super) struct Watch {
    path: PathBuf,
    wake: SyncSender<()>,
    heard: Arc<Mutex<Heard>>,
    /// The watcher and the folder it was made for.
    watching: Option<(RecommendedWatcher, Identity)>,
    /// Said once, not at every rescan.
    failing: bool,
}

// === impl Watch ===

impl Watch {
    pub fn new(path: &Path, wake: SyncSender<()>) -> Self {
        Self {
            path: path.to_owned(),
            wake,
            heard: Arc::default(),
            watching: None,
            failing: false,
        }
    }

    /// Watches the folder that is there now. Without inotify (none left, no such folder) the rescan has to do.
    pub fn ensure(&mut self) {
        let Ok(identity) = fs::metadata(&self.path).map(|found| Identity::of(&found)) else {
            // The old watch would keep a deleted folder alive, and tell nothing of a new one.
            self.watching = None;
            return;
        };
        if self.watching.as_ref().is_some_and(|(_, watched)| *watched == identity) {
            return;
        }
        self.watching = None;
        match self.watcher() {
            Ok(watcher) => {
                self.watching = Some((watcher, identity));
                self.failing = false;
            }
            Err(error) => {
                if !self.failing {
                    warn!(path = %self.path.display(), %error, "no inotify watch; changes are found by rescans only");
                }
                self.failing = true;
            }
        }
    }

    /// How long the folder is to be quiet from now on before it is looked at.
    pub fn quiet(&self) -> Duration {
        lock(&self.heard).quiet()
    }

    /// What was heard so far is looked at now.
    pub fn forget(&self) {
        *lock(&self.heard) = Heard::default();
    }

    fn watcher(&self) -> notify::Result<RecommendedWatcher> {
        let (wake, heard) = (self.wake.clone(), Arc::clone(&self.heard));
        let mut watcher = recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, |event| lock(&heard).note(event)) {
                // Full: a look is due already.
                let _ = wake.try_send(());
            }
        })?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::sync_channel, time::Duration};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_folder_that_took_the_place_of_another_is_watched_after_ensure() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("r");
        let (wake, woken) = sync_channel(1);
        let mut watch = Watch::new(&folder, wake);
        for turn in 0..3 {
            watch.ensure();
            assert!(watch.watching.is_none());
            fs::create_dir(&folder).unwrap();
            watch.ensure();
            while woken.try_recv().is_ok() {}
            fs::write(folder.join("a.yaml"), "").unwrap();
            woken.recv_timeout(LONG).unwrap();
            fs::rename(&folder, root.path().join(turn.to_string())).unwrap();
        }
    }

    #[test]
    fn reading_the_folder_is_no_change() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), "1").unwrap();
        let (wake, woken) = sync_channel(1024);
        let mut watch = Watch::new(root.path(), wake);
        watch.ensure();
        fs::read_dir(root.path()).unwrap().for_each(drop);
        fs::read(root.path().join("a.yaml")).unwrap();
        // Events come in order: a deletion after them shows that they made none.
        fs::remove_file(root.path().join("a.yaml")).unwrap();
        woken.recv_timeout(LONG).unwrap();
        drop(watch);
        assert_eq!(woken.iter().count(), 0);
    }
}
