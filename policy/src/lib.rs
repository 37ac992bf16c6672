#![forbid(unsafe_code)]
//! Resources in, one immutable [`Snapshot`] out.
//!
//! 1. **parse**: bytes of a file become objects, or diagnostics with file, line and column ([`resource`]);
//! 2. **validate**: the [`Store`] decides which version of which object is in force;
//! 3. **compile**: objects and running workloads become a [`Snapshot`] ([`compile()`]).
//!
//! Nothing here does I/O, reads a clock or takes a lock.

pub mod compile;
mod decode;
mod diagnostic;
mod explain;
mod labels;
mod names;
mod pool;
mod query;
pub mod resource;
mod snapshot;
mod store;
mod yaml;

pub use self::{
    compile::{
        Allocations, CompileInput, Compiled, RuntimePort, RuntimeWorkload, SERVICE_LABEL, adapter_configs, captures,
        compile, patch,
    },
    decode::Located,
    diagnostic::{Diagnostic, Severity},
    explain::{DataPath, ExplainInput, ExplainTarget, Explanation},
    labels::Labels,
    query::{DNS_SUFFIX, DnsAnswer},
    resource::{DEFAULT_NAMESPACE, Location, Object, Spec},
    snapshot::*,
    store::{Change, MAX_CHANGED_BYTES, MAX_CHANGES, Refusal, Store},
};
