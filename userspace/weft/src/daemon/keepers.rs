//! The tasks that read and write what a successor would take over: kernel events and edges, workloads, publications.
//! They rest while a hand-over is under way; proxy, DNS and metrics do not.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{sync::mpsc, task::JoinSet};
use weft_adapters::Reporter;
use weft_control::Change;
use weft_dataplane::Events;

use super::{
    edges,
    engine::Engine,
    foreign,
    hand_over::Gate,
    kernel, netns,
    start::{republish, watch_workloads},
};

/// What they need, kept while they rest.
pub struct Keepers {
    pub engine: Arc<Engine>,
    pub gate: Arc<Gate>,
    pub events: Arc<tokio::sync::Mutex<Events>>,
    pub event_reporter: Reporter,
    pub edges: Arc<Mutex<edges::Reader>>,
    pub changes: Arc<tokio::sync::Mutex<mpsc::Receiver<Change>>>,
}

// === impl Keepers ===

impl Keepers {
    /// Sets them to work.
    pub fn start(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let engine = || Arc::clone(&self.engine);
        tasks.spawn(kernel::read(
            engine(),
            Arc::clone(&self.events),
            self.event_reporter.clone(),
        ));
        tasks.spawn(edges::read(Arc::clone(&self.edges)));
        tasks.spawn(republish(engine(), Arc::clone(&self.gate), Arc::clone(&self.changes)));
        tasks.spawn(foreign::follow(engine(), Arc::clone(&self.gate)));
        tasks.spawn(netns::follow(engine(), Arc::clone(&self.gate)));
        tasks.spawn(watch_workloads(Arc::clone(&self.engine.registry)));
        tasks
    }

    /// Ends the tasks; returns when none of them writes any more. The gate must be closed: publications pass it.
    pub async fn rest(&self, mut tasks: JoinSet<()>) {
        tasks.shutdown().await;
        // What runs on a blocking thread is not ended with its task; it holds this lock.
        let edges = Arc::clone(&self.edges);
        let quiet = tokio::task::spawn_blocking(move || drop(edges.lock().unwrap_or_else(PoisonError::into_inner)));
        if let Err(error) = quiet.await {
            tracing::error!(%error, "waiting for the reader of edges");
        }
    }
}
