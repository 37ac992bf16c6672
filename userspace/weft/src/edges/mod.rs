//! What `weft top` shows: totals of every edge since the kernel's tables were made, and the rates between two looks at them.
//!
//! [`EdgeReport`] is a report adapter like the metrics endpoint: both add up the same deltas, so they agree.

pub(crate) mod sample;
mod store;
mod totals;

pub use sample::{Row, Sample};
pub use store::{EdgeReport, EdgeStore};
pub use totals::{EdgeTotals, LatencyTotals};
