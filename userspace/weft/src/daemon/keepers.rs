//! The tasks that read and write what a successor would take over: kernel events and edges, workloads, publications.
//! They rest while a hand-over is under way; proxy, DNS and metrics do not. What they do on blocking threads, which is not ended
//! with them, passes the gate.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::sleep,
};
use weft_adapters::Reporter;
use weft_control::Change;
use weft_dataplane::Events;

use super::{
    edges,
    engine::Engine,
    foreign,
    hand_over::Gate,
    inbound, kernel, netns,
    start::{republish, watch_workloads},
};

/// Between a panic of a task and its next start: a mistake that repeats itself does not fill the log.
const AGAIN: Duration = Duration::from_secs(1);

/// What they need, kept while they rest.
#[derive(Clone)]
pub struct Keepers {
    pub engine: Arc<Engine>,
    pub gate: Arc<Gate>,
    pub events: Arc<tokio::sync::Mutex<Events>>,
    pub event_reporter: Reporter,
    pub edges: Arc<Mutex<edges::Reader>>,
    pub changes: Arc<tokio::sync::Mutex<mpsc::Receiver<Change>>>,
    /// Captured devices.
    pub devices: Vec<String>,
}

// === impl Keepers ===

impl Keepers {
    /// Sets them to work.
    pub fn start(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let of = self.clone();
        tasks.spawn(kept("events of the kernel", move || {
            let engine = Arc::clone(&of.engine);
            kernel::read(
                engine,
                Arc::clone(&of.gate),
                Arc::clone(&of.events),
                of.event_reporter.clone(),
            )
        }));
        let of = self.clone();
        tasks.spawn(kept("counters of the kernel", move || {
            edges::read(Arc::clone(&of.edges), Arc::clone(&of.gate))
        }));
        let of = self.clone();
        tasks.spawn(kept("publications", move || {
            republish(Arc::clone(&of.engine), Arc::clone(&of.gate), Arc::clone(&of.changes))
        }));
        let of = self.clone();
        tasks.spawn(kept("foreign proxies", move || {
            foreign::follow(Arc::clone(&of.engine), Arc::clone(&of.gate))
        }));
        let of = self.clone();
        tasks.spawn(kept("pods", move || {
            netns::follow(Arc::clone(&of.engine), Arc::clone(&of.gate))
        }));
        let of = self.clone();
        tasks.spawn(kept("devices", move || {
            inbound::follow(of.devices.clone(), Arc::clone(&of.engine), Arc::clone(&of.gate))
        }));
        let of = self.clone();
        tasks.spawn(kept("workloads", move || {
            watch_workloads(Arc::clone(&of.engine.registry))
        }));
        tasks
    }
}

/// Whether a task goes on after what it did on a blocking thread: not where that says so, nor when the runtime ends. A panic
/// there is one here.
pub fn goes_on<E>(done: Result<Result<(), E>, JoinError>) -> bool {
    match done.map_err(JoinError::try_into_panic) {
        Ok(told) => told.is_ok(),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_cancelled)) => false,
    }
}

/// Runs a task to its end, and again after a panic: without it the daemon would go on with what it knew then.
async fn kept<F: Future<Output = ()>>(what: &'static str, mut make: impl FnMut() -> F) {
    while AssertUnwindSafe(make()).catch_unwind().await.is_err() {
        // Whatever made it panic may make the log panic: that must not end it either.
        let _ = catch_unwind(|| tracing::error!(what, "the task that looks after this panicked, and starts again"));
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::task::spawn_blocking;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_runs_again_until_it_ends() {
        let mut runs = 0;
        kept("a test", || {
            runs += 1;
            let run = runs;
            async move {
                assert!(run > 1, "run {run}");
                let told = spawn_blocking(move || {
                    assert!(run > 2, "run {run}, elsewhere");
                    Err(())
                });
                assert!(!goes_on(told.await), "it ends");
            }
        })
        .await;
        assert_eq!(runs, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_panics_ends_no_task() {
        let log = tracing_subscriber::fmt().with_writer(|| -> io::Sink { panic!("no room for the log") });
        let _log = tracing::subscriber::set_default(log.finish());
        let mut runs = 0;
        kept("a test", || {
            runs += 1;
            let run = runs;
            async move { assert!(run > 1, "run {run}") }
        })
        .await;
        assert_eq!(runs, 2);
    }
}
