//! The one thread on which adapters do what must not happen on the request path: fetch lists and keys, send reports.
//!
//! It is named `weft-adapters`, runs a single-threaded runtime, is started by the first adapter that needs it and lives
//! as long as the process. A task belongs to the adapter that spawned it and ends with it.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use tokio::{runtime, task::AbortHandle};

use crate::error::AdapterError;

static RUNTIME: Mutex<Option<runtime::Handle>> = Mutex::new(None);

/// Something that goes on in the background; dropping it ends it.
#[derive(Debug)]
#[must_use = "a task ends when it is dropped"]
pub struct Task(Option<AbortHandle>);

/// Runs `future` on the background thread.
///
/// # Errors
/// [`AdapterError::Background`]: the thread could not be started; the next call tries again.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Result<Task, AdapterError> {
    Ok(Task(Some(handle()?.spawn(future).abort_handle())))
}

fn handle() -> Result<runtime::Handle, AdapterError> {
    let mut started = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*started {
        return Ok(handle.clone());
    }
    let failed = |source| AdapterError::Background { source };
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("weft-adapters".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .map_err(failed)?;
    *started = Some(handle.clone());
    Ok(handle)
}

// === impl Task ===

impl Task {
    /// Lets it end by itself.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn tasks_share_one_named_thread_and_end_when_dropped() {
        let (sender, receiver) = mpsc::channel();
        let tasks: Vec<Task> = (0..3)
            .map(|_| {
                let sender = sender.clone();
                spawn(async move {
                    let thread = thread::current();
                    sender.send((thread.id(), thread.name().map(str::to_owned))).unwrap();
                    std::future::pending::<()>().await;
                    drop(sender);
                })
                .unwrap()
            })
            .collect();
        drop(sender);
        let first = receiver.recv().unwrap();
        assert_eq!(first.1.as_deref(), Some("weft-adapters"));
        assert_eq!(receiver.recv().unwrap(), first);
        assert_eq!(receiver.recv().unwrap(), first);
        drop(tasks);
        // Each task owned a sender: the channel closes when all are gone.
        assert_eq!(receiver.recv(), Err(mpsc::RecvError));
    }
}
