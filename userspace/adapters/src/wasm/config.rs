//! What an operator says about a plugin beside its module.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;

/// CPU time that one callback after the start may take, unless said otherwise. A worker serves nobody else meanwhile.
pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(5);

/// CPU time that each step of an instance's start may take, unless said otherwise: the module's own start (`_initialize` and
/// `main`, or `_start`), `proxy_on_context_create`, `proxy_on_vm_start`, `proxy_on_configure`. Go modules take tens of
/// milliseconds.
pub const DEFAULT_START_DEADLINE: Duration = Duration::from_secs(2);

/// Memory of one instance in bytes, unless said otherwise.
pub const DEFAULT_MEMORY: usize = 64 << 20;

/// A plugin: what one module is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginConfig {
    /// Name of the adapter, as the operator wrote it; its metrics are kept under it, so that they outlive a generation.
    pub name: Arc<str>,
    /// Under which shared data and queues are kept; `None`: its name.
    pub shares: Option<Arc<str>>,
    /// Which of the module's plugins, for modules that hold several (`plugin_root_id`).
    pub root_id: String,
    /// Under which the plugin's queues are found (`plugin_vm_id`).
    pub vm_id: String,
    /// What `proxy_on_configure` finds.
    pub configuration: Bytes,
    /// What `proxy_on_vm_start` finds.
    pub vm_configuration: Bytes,
    /// Environment of the module, as `environ_get` tells it: name and value.
    pub environment: Vec<(String, String)>,
    pub instances: Instances,
    pub limits: Limits,
    pub capabilities: Capabilities,
    /// Whom the plugin may call.
    pub may_call: MayCall,
    pub failure: FailurePolicy,
}

/// Who shares an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Instances {
    /// All streams of a worker; as many more are in stock as workers were prepared for.
    #[default]
    Worker,
    /// Nobody: each stream waits for the start of its own, which ends with it, and with it the calls that it has under way.
    /// Neither ticks nor queues wake it.
    Stream,
}

/// What a plugin may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CPU time of one callback; at most 20 ms more pass until it is ended.
    pub deadline: Duration,
    /// CPU time of each callback of an instance's start.
    pub start_deadline: Duration,
    /// Linear memory of an instance, bytes.
    pub memory: usize,
}

/// Which host calls a module may make, by name: `proxy_http_call`, and WASI's, as `fd_write`. Others answer an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Capabilities {
    #[default]
    All,
    Only(BTreeSet<String>),
}

/// Which upstreams a plugin may call, as it names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MayCall {
    #[default]
    All,
    Only(BTreeSet<String>),
}

/// What becomes of a stream whose filter cannot run: it trapped, took too long, or does not start.
///
/// In any case the instance is replaced: by one in stock, else by one that is started at once, if a start takes a millisecond at
/// most, and as long as starts on the worker do not take more than a tenth of its time, after a reserve of a second. Where starts
/// take longer, the policy decides until a thread beside the workers has filled the stock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// It goes on without the filter, with what that has changed by then.
    Open,
    /// It is answered with 503, or reset where an answer is under way.
    #[default]
    Closed,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: DEFAULT_DEADLINE,
            start_deadline: DEFAULT_START_DEADLINE,
            memory: DEFAULT_MEMORY,
        }
    }
}

// === impl Capabilities ===

impl Capabilities {
    pub(super) fn allow(&self, call: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(call),
        }
    }
}

// === impl MayCall ===

impl MayCall {
    pub(super) fn allow(&self, upstream: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(upstream),
        }
    }
}
