//! Why a module is refused, or does not start.

/// Why there is no plugin to run.
#[derive(Debug, thiserror::Error)]
pub enum WasmError {
    #[error("start the WebAssembly engine: {reason}")]
    Engine { reason: String },
    #[error("module of {bytes} bytes: larger than the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("not a WebAssembly module: {reason}")]
    Garbage { reason: String },
    #[error(
        "exports no `proxy_abi_version_0_2_1`, `_0_2_0`, `_0_1_0` or `_0_2_100`: not a proxy-wasm module, or one of another version; build it with a proxy-wasm SDK"
    )]
    Abi,
    #[error(
        "imports `{module}.{name}`, which proxy-wasm hosts do not have: build it for proxy-wasm, not for another host"
    )]
    Import { module: String, name: String },
    #[error("export `{name}`: {reason}")]
    Export { name: &'static str, reason: String },
    #[error("link the module: {reason}")]
    Link { reason: String },
    #[error("{stage}: {reason}{}", told(.said))]
    Start {
        stage: &'static str,
        reason: String,
        /// The module's last warning or error.
        said: Option<String>,
    },
    #[error("{stage} said no{}", told(.said))]
    Refused {
        stage: &'static str,
        /// The module's last warning or error.
        said: Option<String>,
    },
}

fn told(words: &Option<String>) -> String {
    words
        .as_ref()
        .map_or_else(String::new, |words| format!("; the module says: {words}"))
}

/// Why the host ends a callback.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("used more than {limit_ms} ms of CPU time")]
    Deadline { limit_ms: u128 },
    #[error("called proc_exit({code})")]
    Exit { code: i32 },
    #[error("aborted at line {line}, column {column}")]
    Abort { line: u32, column: u32 },
    #[error("exports neither `proxy_on_memory_allocate` nor `malloc`")]
    NoAllocator,
    #[error("was asked for {bytes} bytes of its memory and gave none")]
    NoMemory { bytes: usize },
}
