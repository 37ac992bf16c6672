//! Adapters as kind `Adapter` declares them, and what policy must be told to understand them.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use super::{ObjectRef, ServiceName, WasmBackend};

/// One Adapter and whom it looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// What it is made of. Equal ones make the same adapter, so that one that did not change goes on.
    pub config: Arc<AdapterConfig>,
    pub target: AdapterTarget,
}

/// Native adapters that ask a server: the protocols of `backend: remote`.
pub(crate) const REMOTE_PROTOCOLS: [&str; 1] = ["ext_authz"];

/// What an adapter is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterConfig {
    pub object: ObjectRef,
    pub role: AdapterRole,
    pub backend: AdapterBackend,
    /// As written; null: none.
    pub params: Value,
    pub failure_policy: AdapterFailure,
}

/// Who carries an adapter out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterBackend {
    /// Compiled in, under this name.
    Native { name: String },
    /// A server that is asked over a network.
    Remote(RemoteBackend),
    /// A module of the proxy-wasm ABI.
    Wasm(WasmBackend),
}

/// A policy server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemoteBackend {
    /// The native adapter that speaks its protocol.
    pub protocol: String,
    /// The parameters of that one: where the server is, what it is sent, how long to wait.
    pub settings: Value,
}

/// The services whose requests an adapter looks at; of a report adapter those it is told about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterTarget {
    /// Everything: also destinations that are no service, where an adapter is only told.
    pub all: bool,
    /// Those that there are, of `all` too.
    pub services: BTreeSet<ServiceName>,
}

/// Where an adapter takes part in a request's way, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterRole {
    /// Judges a request.
    Check,
    /// Sees, and may change, the whole stream.
    Filter,
    /// Judges a request by using something up: asked after all checks, and after filters have seen the head, so that a refused
    /// request costs nothing.
    Quota,
    /// Is told afterwards.
    Report,
}

/// What becomes of a request where an adapter fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterFailure {
    /// It goes on as if the adapter were not there.
    Open,
    /// It is refused. `reload` in an object is this, too.
    Closed,
}

/// Which adapters there are. Policy knows none itself: whoever runs them tells it.
pub trait AdapterCatalog: fmt::Debug + Sync {
    /// Those that are compiled in: name and role.
    fn natives(&self) -> Vec<(&'static str, AdapterRole)>;

    /// Whether the adapter of this name would take these parameters. No I/O.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn check(&self, native: &str, params: &Value) -> Result<(), ParamsRefusal>;
}

/// What is wrong with an adapter's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamsRefusal {
    /// Inside the parameters, as `quotas[0].max_amount`; empty: all of them.
    pub path: String,
    pub reason: String,
    /// What to write instead.
    pub instead: String,
}

// === impl AdapterBackend ===

impl AdapterBackend {
    /// Whether it looks at connections whose bytes nobody reads as HTTP.
    pub fn sees_bytes(&self) -> bool {
        match self {
            Self::Native { .. } | Self::Remote(_) => false,
            Self::Wasm(wasm) => wasm.protocols.tcp,
        }
    }

    /// Whether a server is asked about each request, which costs far more than to look at it here.
    pub fn asks_a_server(&self) -> bool {
        match self {
            Self::Native { name } => REMOTE_PROTOCOLS.contains(&name.as_str()),
            Self::Remote(_) => true,
            Self::Wasm(_) => false,
        }
    }

    /// Whether it looks at requests.
    pub fn sees_requests(&self) -> bool {
        match self {
            Self::Native { .. } | Self::Remote(_) => true,
            Self::Wasm(wasm) => wasm.protocols.http,
        }
    }
}

impl fmt::Display for AdapterBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native { name } => write!(f, "native {name}"),
            Self::Remote(remote) => {
                let address = remote.settings["address"].as_str().unwrap_or_default();
                write!(f, "remote {} at {address}", remote.protocol)
            }
            Self::Wasm(wasm) => wasm.fmt(f),
        }
    }
}

// === impl AdapterRole ===

impl AdapterRole {
    /// Whether it sits in the way of requests, so that they have to visit the proxy.
    pub fn sees_requests(self) -> bool {
        self != Self::Report
    }
}

impl fmt::Display for AdapterRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Quota => "quota",
            Self::Filter => "filter",
            Self::Report => "report",
        })
    }
}
