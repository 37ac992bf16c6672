//! The flows that `weft flows` prints: the last few thousand, in memory, and a broadcast to those who follow.

pub(crate) mod query;
mod store;
pub(crate) mod text;

pub use query::{FlowQuery, QueryError};
pub use store::{FLOWS_KEPT, FlowReport, FlowStore, Followed, Follower};
pub use text::FlowPrinter;
