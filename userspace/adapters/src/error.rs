//! What can go wrong when adapters are made.

use std::{io, path::PathBuf, sync::Arc};

use crate::wasm::{Digest, WasmError};

#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("start the reporter thread")]
    Thread {
        #[source]
        source: io::Error,
    },
    #[error("start the background thread of the adapters")]
    Background {
        #[source]
        source: io::Error,
    },
    #[error("the reporter did not finish within {deadline_ms} ms; records that were still queued are lost")]
    ShutdownDeadline { deadline_ms: u128 },
    #[error("open access log `{}` for appending", path.display())]
    OpenLog {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start the thread that writes an access log")]
    LogThread {
        #[source]
        source: io::Error,
    },
    #[error("read module `{}`", path.display())]
    ReadModule {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("module `{}` is {found}, and {expected} was asked for", path.display())]
    Digest {
        path: PathBuf,
        expected: Digest,
        found: Digest,
    },
    #[error("module `{}`", path.display())]
    Module {
        path: PathBuf,
        #[source]
        source: Arc<WasmError>,
    },
    /// Whoever changed it prepares it, and publishes then.
    #[error("its modules are being made ready; until they are, what is in force stays")]
    NotReady,
    #[error("generation `{generation}` is this module already, with the same configuration: give it a weight instead")]
    SameModule { generation: String },
    #[error("there is no native adapter `{name}`")]
    Unknown { name: String },
    #[error("adapter `{adapter}`, parameter `{path}`: {reason}")]
    Params {
        adapter: &'static str,
        /// As `quotas[0].max_amount`; `.`: of all of them together.
        path: String,
        reason: String,
    },
    #[error("adapter `{adapter}`, field `{field}`: found `{found}`, expected {expected}")]
    Config {
        adapter: &'static str,
        field: &'static str,
        found: String,
        expected: String,
    },
}
