//! The snapshot in force, and a way to wait for the next one.

use std::{ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use weft_adapters::Chains;
use weft_policy::Snapshot;

/// What a request is taken under: one generation, policy and adapters together. Reads like its snapshot.
#[derive(Debug, Default)]
pub struct InForce {
    pub snapshot: Arc<Snapshot>,
    pub chains: Arc<Chains>,
}

/// Readers' side: cheap to clone, one for each worker and connection.
///
/// Two things under one name: what is in force sits in an [`ArcSwap`] (a read takes no lock), and a
/// [`watch`] channel tells those who wait for an endpoint that there is something newer.
#[derive(Clone)]
pub struct SnapshotWatch {
    in_force: Arc<ArcSwap<InForce>>,
    changed: watch::Receiver<()>,
}

/// Writer's side. Dropping it is harmless: waiters then wait for their deadline.
pub struct SnapshotPublisher {
    current: Arc<ArcSwap<Snapshot>>,
    in_force: Arc<ArcSwap<InForce>>,
    changed: watch::Sender<()>,
}

// === impl InForce ===

impl Deref for InForce {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

// === impl SnapshotPublisher ===

impl SnapshotPublisher {
    /// Also publishes through `current`, for those whom adapters do not concern. All later stores go through
    /// [`Self::publish`].
    pub fn new(current: Arc<ArcSwap<Snapshot>>, chains: Arc<Chains>) -> Self {
        let in_force = InForce {
            snapshot: current.load_full(),
            chains,
        };
        Self {
            current,
            in_force: Arc::new(ArcSwap::from_pointee(in_force)),
            changed: watch::Sender::new(()),
        }
    }

    /// Puts a snapshot and its adapters in force: the next request of every connection sees them, and all waiters wake.
    pub fn publish(&self, snapshot: Arc<Snapshot>, chains: Arc<Chains>) {
        self.current.store(Arc::clone(&snapshot));
        self.in_force.store(Arc::new(InForce { snapshot, chains }));
        self.changed.send_replace(());
    }

    /// What is in force is to be looked at again: adapters have changed in themselves.
    pub fn tell_again(&self) {
        self.changed.send_replace(());
    }

    /// A reader's side.
    pub fn watch(&self) -> SnapshotWatch {
        SnapshotWatch {
            in_force: Arc::clone(&self.in_force),
            changed: self.changed.subscribe(),
        }
    }
}

// === impl SnapshotWatch ===

impl SnapshotWatch {
    /// What is in force; no lock and no reference count. Not to be held across an `await`.
    pub fn load(&self) -> Guard<Arc<InForce>> {
        self.in_force.load()
    }

    /// What is in force, to be kept for the length of a decision.
    pub fn load_full(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Takes note of now: [`Self::changed`] then waits for a publication after this call. Call it *before* reading
    /// the snapshot that is to be improved on.
    pub fn mark(&mut self) {
        self.changed.borrow_and_update();
    }

    /// Whether there was a publication after the last [`Self::mark`]. No lock.
    pub fn has_changed(&self) -> bool {
        self.changed.has_changed().unwrap_or(false)
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
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let publisher = SnapshotPublisher::new(Arc::clone(&current), Arc::default());
        let mut watch = publisher.watch();
        watch.mark();
        assert_eq!(watch.load().generation, 0);
        let snapshot = Snapshot {
            generation: 7,
            ..Snapshot::default()
        };
        assert!(!watch.has_changed());
        publisher.publish(Arc::new(snapshot), Arc::default());
        assert!(watch.has_changed());
        watch.changed().await;
        assert_eq!((watch.load_full().generation, current.load().generation), (7, 7));
    }
}
