//! What the mesh decides beside its own policy (checks) and what it tells about itself (reports).
//!
//! A proxy worker builds a [`Bag`] of borrowed attributes for a request, asks the [`Pipeline`] of checks, and at the
//! end hands a [`Record`] to its [`Reporter`]. A thread of its own drains the reporters' rings and gives the records,
//! in batches, to every [`Report`] adapter: the metrics endpoint and the access log are such adapters, and the
//! kernel's edges go through the same ring. Nothing reports beside it.
//!
//! The README of this folder says in which order to read.

#![forbid(unsafe_code)]

pub mod attribute;
pub mod background;
pub mod builtin;
pub mod chain;
pub mod dial;
mod dimensions;
pub mod duration;
mod error;
pub mod export;
pub mod exposition;
mod framing;
pub mod grpc;
pub mod metrics;
pub mod native;
pub mod outage;
mod per_thread;
pub mod pipeline;
pub mod post;
pub mod provider;
pub mod record;
pub mod reporter;
pub mod runtime;
pub mod stream;
pub mod tls;
pub mod trace;
pub mod upstreams;
pub mod verdicts;
pub mod wasm;

pub use attribute::{Attribute, Bag, Headers, Principal, Value};
pub use chain::{Chain, Chains};
pub use error::AdapterError;
pub use export::Exporter;
pub use metrics::{AdapterMetrics, CheckMetrics, ReportMetrics};
pub use native::{Native, NativeEntry, Part, Role};
pub use pipeline::{Check, CheckResult, Checking, Denied, Deny, Directives, HeaderOperation, Pipeline};
pub use record::{
    Destination, EdgeDelta, Flow, FlowEvent, FlowProtocol, FlowVerdict, L7, MAX_TOLD, Peer, Record, Side, method_word,
    told,
};
pub use reporter::{Report, Reporter, ReporterControl, ReporterThread};
pub use runtime::{
    AdapterCounts, AdapterRuntime, AdapterState, Ahead, GenerationError, GenerationMetrics, GenerationState,
    GenerationWaits, Preparer, RuntimeMetrics, WasmHost,
};
pub use stream::{
    Direction, FilterFactory, FilterState, HeaderLines, HeaderSection, Lent, RequestHead, ResponseHead, Step,
    StreamEnd, StreamFailure, StreamFilter, StreamInfo, TcpFilter, TcpStep, TrafficDirection,
};
pub use upstreams::{CallBody, CallError, CallProtocol, Calling, NoUpstreams, Upstreams};
