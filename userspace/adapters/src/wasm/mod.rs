//! Adapters as WebAssembly: a host of the proxy-wasm ABI, versions 0.2.1, 0.2.0 and 0.1.0 (and Higress's 0.2.100).
//!
//! ```text
//!  bytes --> Module (compiled once) --> Plugin (a configuration; the FilterFactory)
//!                                          |  one a worker, made when it comes into force
//!                                          v
//!                                       instance: store, memory, the plugin's context
//!                                          |  one a request or connection
//!                                          v
//!                                       context: what the callbacks of a stream are about
//! ```
//! A callback that traps or takes too long ends its instance and with it the filters of the requests in there, as the
//! failure policy says; the next request gets a new instance, and other workers and plugins notice nothing. Nothing of
//! this is shared between workers but what filters share on purpose (`services.rs`), so that the request path has no lock.
//!
//! The README of this folder lists the host calls.

mod abi;
mod budget;
mod callout;
mod calls;
mod clock;
mod config;
mod counters;
mod engine;
mod error;
mod exports;
mod failed;
mod grpc;
mod headers;
mod host;
mod http_stream;
mod inbox;
mod kept;
mod known;
mod memory;
mod metric;
mod module;
mod pairs;
mod plugin;
mod property;
mod services;
mod signature;
mod tcp_stream;
#[cfg(test)]
mod tests;
mod vm;
mod worker;

pub use abi::AbiVersion;
pub use config::{
    Capabilities, DEFAULT_DEADLINE, DEFAULT_MEMORY, DEFAULT_START_DEADLINE, FailurePolicy, Instances, Limits, MayCall,
    PluginConfig,
};
pub use counters::Stats;
pub use error::WasmError;
pub use metric::{BOUNDS, MAX_METRIC_NAME, MAX_METRICS, Metric, MetricKind, Metrics};
pub use module::{Digest, MAX_MODULE, Module};
pub use plugin::Plugin;
pub use services::{MAX_QUEUE_BYTES, MAX_QUEUE_LENGTH, MAX_QUEUED_BYTES, MAX_QUEUES, MAX_SHARED_BYTES, Services};
