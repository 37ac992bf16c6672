//! Worker threads and their listening sockets: one current-thread runtime a worker, nothing shared but atomics.

mod accept;
mod handle;
mod netns;
pub(crate) mod stop;
mod workers;

pub use handle::WorkersHandle;
pub use netns::NetnsListeners;
pub use workers::{DrainReport, Workers};
