//! hyper's HTTP/2 starts tasks of its own; they belong to the worker that runs them and end with it.

use hyper::rt::Executor;

/// Runs tasks on the current worker's thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
