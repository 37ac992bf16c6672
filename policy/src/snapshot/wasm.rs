//! Adapters that are WebAssembly.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use serde::Serialize;

/// Name of the generation of `wasm: {module: PATH}`, and its weight.
pub const ONLY_GENERATION: (&str, u32) = ("v1", 100);

/// Of an adapter. More would hide which one a request met.
pub const MAX_GENERATIONS: usize = 8;

/// What an adapter as WebAssembly is made of, beside its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WasmBackend {
    /// At least one, and one of them with a weight.
    pub generations: Vec<WasmGeneration>,
    /// Which of the module's plugins, for modules that hold several; else empty.
    pub root: String,
    pub vm: WasmVm,
    pub protocols: WasmProtocols,
    pub instances: WasmInstances,
    pub limits: WasmLimits,
    /// Services that it may call, as it names them.
    pub upstreams: BTreeSet<String>,
    /// Host calls that it may make, by name; `None`: all.
    pub capabilities: Option<BTreeSet<String>>,
    /// When a generation is taken out; `None`: by hand only.
    pub rollback: Option<WasmRollback>,
}

/// One version of an adapter; newer ones come later in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WasmGeneration {
    pub name: String,
    pub module: WasmModule,
    /// Its share of the requests, relative to those of the others.
    pub weight: u32,
    /// It sees copies of requests and changes nothing; its weight is zero.
    pub shadow: bool,
}

/// Where a module is, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WasmModule {
    /// On this machine, absolute.
    pub path: PathBuf,
    /// SHA-256 of its bytes, if it was said.
    pub sha256: Option<[u8; 32]>,
}

/// What an instance is started with, as `vm_config` of Envoy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WasmVm {
    /// Adapters of a namespace with the same one share data and queues; empty: the adapter has its own.
    pub id: String,
    /// What `proxy_on_vm_start` finds.
    pub configuration: serde_json::Value,
    /// Of the module, beside none of the daemon's.
    pub environment: BTreeMap<String, String>,
}

/// What it looks at; at least one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WasmProtocols {
    /// Requests.
    pub http: bool,
    /// Connections whose bytes nobody reads as HTTP.
    pub tcp: bool,
}

/// Who shares an instance of the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WasmInstances {
    /// All requests on a worker of the proxy.
    #[default]
    Worker,
    /// Nobody: every request or connection starts its own, and nothing of it is left for the next one.
    Request,
}

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WasmLimits {
    pub memory_mib: u64,
    /// CPU time of a callback.
    pub deadline_ms: u64,
    /// CPU time of each callback of a start.
    pub start_ms: u64,
}

/// What a generation may do worse than those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WasmRollback {
    /// Requests that it fails on (traps, takes too long, does not start) within a second.
    pub failures: u64,
    /// Time a request (in callbacks, or held), in percent of theirs, above theirs.
    pub slower_percent: u64,
    /// Requests that it answers itself, in percent of its requests, above theirs.
    pub denies_percent: u64,
}

// === impl WasmBackend ===

impl fmt::Display for WasmBackend {
    /// `wasm auth.wasm`, `wasm v1 (90), v2 (10)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &*self.generations {
            let file = only.module.path.file_name().unwrap_or_default();
            return write!(f, "wasm {}", file.display());
        }
        for (index, generation) in self.generations.iter().enumerate() {
            let before = if index == 0 { "wasm " } else { ", " };
            write!(f, "{before}{generation}")?;
        }
        Ok(())
    }
}

impl fmt::Display for WasmGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shadow {
            true => write!(f, "{} (shadow)", self.name),
            false => write!(f, "{} ({})", self.name, self.weight),
        }
    }
}

// === impl WasmLimits ===

impl Default for WasmLimits {
    /// What filters built with the SDKs need, with room: those in Go take tens of milliseconds to start.
    fn default() -> Self {
        Self {
            memory_mib: 64,
            deadline_ms: 5,
            start_ms: 2000,
        }
    }
}

// === impl WasmRollback ===

impl Default for WasmRollback {
    /// Three requests that fail within a second are too many; three times the time, or one in five requests more refused, is another filter.
    fn default() -> Self {
        Self {
            failures: 3,
            slower_percent: 200,
            denies_percent: 20,
        }
    }
}
