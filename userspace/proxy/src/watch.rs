//! The snapshot in force, and a way to wait for the next one.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use weft_policy::Snapshot;

/// Readers' side: cheap to clone, one for each worker and connection.
///
/// Two things under one name: the snapshot itself sits in an [`ArcSwap`] (a read takes no lock), and a
/// [`watch`] channel tells those who wait for an endpoint that there is a newer one.
#[derive(Clone)]
pub struct SnapshotWatch {
    current: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<()>,
}

/// Writer's side. Dropping it is harmless: waiters then wait for their deadline.
pub struct SnapshotPublisher {
    current: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<()>,
}

// === impl SnapshotPublisher ===

impl SnapshotPublisher {
    /// Publishes through `current`, which others may read directly. All later stores go through [`Self::publish`].
    pub fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        Self {
            current,
            changed: watch::Sender::new(()),
        }
    }

    /// Puts `snapshot` in force: the next request of every connection sees it, and all waiters wake.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.current.store(snapshot);
        self.changed.send_replace(());
    }

    /// A reader's side.
    pub fn watch(&self) -> SnapshotWatch {
        SnapshotWatch {
            current: Arc::clone(&self.current),
            changed: self.changed.subscribe(),
        }
    }
}

// === impl SnapshotWatch ===

impl SnapshotWatch {
    /// The snapshot in force; no lock and no reference count. Not to be held across an `await`.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The snapshot in force, to be kept for the length of a decision.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Takes note of now: [`Self::changed`] then waits for a publication after this call. Call it *before* reading
    /// the snapshot that is to be improved on.
    pub fn mark(&mut self) {
        self.changed.borrow_and_update();
    }

    /// Waits for a publication later than the last [`Self::mark`] or return. Never returns once the publisher is gone.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_sees_what_was_published_after_its_mark() {
        let publisher = SnapshotPublisher::new(Arc::new(ArcSwap::from_pointee(Snapshot::default())));
        let mut watch = publisher.watch();
        watch.mark();
        assert_eq!(watch.load().generation, 0);
        publisher.publish(Arc::new(Snapshot {
            generation: 7,
            ..Snapshot::default()
        }));
        watch.changed().await;
        assert_eq!(watch.load_full().generation, 7);
    }
}
