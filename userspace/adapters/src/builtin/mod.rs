//! Adapters that are compiled in: a folder each, with the same files inside (code, config, tests, one page).

pub mod denier;
pub mod prometheus;
pub mod stdio;

pub use denier::Denier;
pub use prometheus::Prometheus;
pub use stdio::Stdio;
