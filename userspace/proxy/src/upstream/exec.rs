//! hyper's HTTP/2 starts tasks of its own; they belong to the worker that runs them and end with it.

use hyper::rt::Executor;
use tokio::io::AsyncWrite;

use crate::io::Outlet;

/// Runs tasks on the current worker's thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

/// The same for a connection whose writes are gathered, and which is one of these tasks.
#[derive(Debug)]
pub(super) struct GatheringExec<S>(pub(super) Outlet<S>);

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl<S> Clone for GatheringExec<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F, S> Executor<F> for GatheringExec<S>
where
    F: Future + 'static,
    F::Output: 'static,
    S: AsyncWrite + Unpin + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(self.0.clone().drive(future));
    }
}
