//! Listeners of further network namespaces, added to and removed from running workers.

use std::{net::TcpListener, sync::Arc};

use tokio::sync::mpsc::UnboundedSender;

use super::NetnsListeners;
use crate::netns::Netns;

/// Enters and leaves namespaces for all workers. Cheap to clone; does nothing once the workers have ended.
#[derive(Debug, Clone)]
pub struct WorkersHandle {
    workers: Arc<[UnboundedSender<Change>]>,
}

/// What a worker is told. Unbounded: as many as a person writes Workloads.
#[derive(Debug)]
pub(super) enum Change {
    Enter(Arc<Netns>, Vec<TcpListener>),
    Leave(Arc<Netns>),
}

// === impl WorkersHandle ===

impl WorkersHandle {
    pub(super) fn new(workers: Vec<UnboundedSender<Change>>) -> Self {
        Self {
            workers: workers.into(),
        }
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Accepts at listeners that were opened inside for as many workers. Connections that come there go on from there.
    pub fn enter(&self, netns: &Arc<Netns>, listeners: Vec<NetnsListeners>) {
        for listeners in listeners {
            for (worker, sockets) in self.workers.iter().zip(listeners.into_workers()) {
                // One that has ended accepts nothing anywhere.
                let _ended = worker.send(Change::Enter(Arc::clone(netns), sockets));
            }
        }
    }

    /// Closes the listeners inside. Connections that are open go on, and keep the namespace alive until they end.
    pub fn leave(&self, netns: &Arc<Netns>) {
        for worker in self.workers.iter() {
            let _ended = worker.send(Change::Leave(Arc::clone(netns)));
        }
    }
}
