//! The immutable, compiled view of all resources and workloads under one generation.
//!
//! Kernel tables (`weft-dataplane`), routes and access checks of the proxy, DNS answers and `weft explain` are all
//! read from one [`Snapshot`]; none of them looks at resources again. It is plain data: no I/O, no clock, no locks.

mod adapter;
mod network;
mod path;
mod shared;
mod wasm;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::labels::Labels;

pub(crate) use self::adapter::REMOTE_PROTOCOLS;
pub use self::adapter::{
    Adapter, AdapterBackend, AdapterCatalog, AdapterConfig, AdapterFailure, AdapterRole, AdapterTarget, ParamsRefusal,
    RemoteBackend,
};
pub(crate) use self::network::range_key;
pub use self::network::{Class, ClassName, ClassPolicy, Isolation, Network, NetworkAllow};
pub use self::path::PathPattern;
pub use self::shared::{Items, Shared, SharedMap, SharedVec};
pub use self::wasm::{
    MAX_GENERATIONS, ONLY_GENERATION, WasmBackend, WasmGeneration, WasmInstances, WasmLimits, WasmModule,
    WasmProtocols, WasmRollback, WasmVm,
};

/// Number the kernel compares instead of names; one per (namespace, service account). See [`Identity::FIRST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity(pub u32);

impl Identity {
    /// A client that is not captured.
    pub const UNKNOWN: Self = Self(0);
    /// A local address that no record speaks for (all workloads of a host may share 127.0.0.1).
    pub const UNKNOWN_LOCAL: Self = Self(1);
    /// Our own proxy.
    pub const PROXY: Self = Self(2);
    /// A destination outside the mesh.
    pub const OUTSIDE: Self = Self(3);
    /// First number given to a workload class.
    pub const FIRST: Self = Self(256);
    /// From here on no account has a number: those of weft's own workloads, and the kernel's marks.
    pub const OWN: Self = Self(0xffff_ff00);
}

/// Kind, namespace and name of a resource, as flow events and messages name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub kind: Cow<'static, str>,
    /// `None` for cluster-scoped objects (a mesh-wide MeshConfig).
    pub namespace: Option<Arc<str>>,
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Namespace and name of a service. Clones share them, for many tables have them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Namespace and name of a service account: what an [`Identity`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Number of a rule, kept in kernel tables and events; [`Snapshot::rule`] gives the object back.
/// Stable for the life of the object: a rule that did not change keeps its number across generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessDefault {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureMode {
    /// Without a daemon, new connections go straight to an endpoint; L4 policy still holds.
    Open,
    /// Without a daemon, new connections that would need the proxy are refused.
    Closed,
}

/// Sockmap short-circuit: which sockets may be handed bytes past TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    Off,
    /// Those that our proxy reads.
    Proxy,
    /// Also clients' and servers', of connections within a network namespace: these programs must not splice, nor ask FIONREAD.
    Full,
}

/// Who works per request for a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum L7 {
    /// Our proxy, where some rule or route needs it.
    #[default]
    Auto,
    /// Nobody: connections never visit a proxy, and what speaks of requests cannot be carried out.
    None,
    /// A proxy of the operator's, which learns by SO_ORIGINAL_DST where a connection wants to go.
    External {
        /// Where it listens, on this machine; a loopback address stands for those of both families.
        address: SocketAddr,
        /// Its cgroup: below the captured one, or absolute (below the cgroup2 mount).
        cgroup: PathBuf,
    },
}

/// What the bytes on a service port are declared to be (`appProtocol`, else the prefix of the port's name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// Not declared: detected if the connection visits the proxy.
    Unknown,
    Http,
    Http2,
    Grpc,
    /// Declared to be opaque (`tcp`, `tls`, `redis`, ...): never parsed.
    Opaque,
}

impl AppProtocol {
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

/// A clone shares memory with what it is cloned from: that of 100,000 workloads counts about a thousand references
/// ([`SharedMap`]).
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub generation: u64,
    pub services: SharedMap<ServiceName, Arc<Service>>,
    pub workloads: SharedVec<Arc<Workload>>,
    /// Both directions of the identity numbering.
    pub accounts: Shared<BTreeMap<Identity, Account>>,
    pub identities: Shared<HashMap<Account, Identity>>,
    /// Access policy of every identity that some workload or service account has.
    pub access: Shared<HashMap<Identity, Arc<AccessPolicy>>>,
    /// What captured workloads may reach outside the mesh, and the object that says so.
    pub outbound_default: Option<(AccessDefault, RuleId)>,
    /// What `outbound_default` denies is let through and reported.
    pub outbound_audit: bool,
    /// NetworkPolicies: a dimension of its own beside `access`; both must allow.
    pub network: Shared<Network>,
    /// What the classes stand for, also those that are gone.
    pub classes: Shared<BTreeMap<Class, ClassName>>,
    /// Shared with each event that tells of them.
    pub rules: Shared<HashMap<RuleId, Arc<ObjectRef>>>,
    /// In the order in which they look at a request.
    pub adapters: Vec<Arc<Adapter>>,
    /// By object: [`Snapshot::status_index`].
    pub statuses: Shared<Vec<ObjectStatus>>,
    /// Indexes, filled by the compiler: virtual IP -> service; endpoint address -> where it belongs; cgroup -> workload.
    pub by_vip: Shared<HashMap<IpAddr, ServiceName>>,
    pub by_endpoint: SharedMap<(SocketAddr, Protocol), EndpointOwner>,
    pub by_cgroup: Shared<HashMap<u64, Arc<Workload>>>,
    /// Addresses by which workloads on other machines are known, and those of this machine that a workload bound itself to
    /// ([`Class::UNKNOWN_LOCAL`]: others here have them too). [`Class::UNKNOWN`]: of workloads of several classes.
    pub by_address: SharedMap<IpAddr, Class>,
    /// Identities and target ports behind service ports that adapters guard -> the first such port of a service. What is
    /// connected to there, at whatever address, is to be looked at.
    pub guards: Shared<BTreeMap<(Identity, u16), (ServiceName, usize)>>,
    /// Every address a captured workload listens on as it bound it (so 0.0.0.0 and :: occur), whether or not a service
    /// port leads there: dialling it is dialling that workload, and meets its access policy.
    pub listeners: Shared<BTreeMap<(SocketAddr, Protocol), Listener>>,
}

/// Who listens on an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub identity: Identity,
    pub class: Class,
}

/// Whose an endpoint address is.
#[derive(Debug, Clone)]
pub struct EndpointOwner {
    pub service: Arc<ServiceName>,
    /// Index into [`Service::ports`].
    pub port: usize,
    pub endpoint: Arc<Endpoint>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Service {
    pub name: ServiceName,
    pub vip4: Ipv4Addr,
    pub vip6: Ipv6Addr,
    pub ports: Vec<ServicePort>,
    /// `None`: nothing declares it. Then closed where access rules need the proxy, open where only routing does.
    pub failure_mode: Option<FailureMode>,
    pub acceleration: Acceleration,
    pub l7: L7,
}

#[derive(Debug, Clone, Serialize)]
pub struct ServicePort {
    /// Number of this service port in kernel tables and edges, stable as long as the port exists.
    pub id: u32,
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    pub app: AppProtocol,
    /// Works per request (declared HTTP, or an HTTP rule or route speaks about it).
    pub http: bool,
    /// Why connections to this port visit the proxy whatever the access policy says; `None`: they do not.
    pub proxied: Option<String>,
    /// An adapter judges its requests, and refuses what it cannot look at: so does the kernel where nobody declared otherwise
    /// and no proxy is there, and the proxy what is no HTTP.
    pub guarded: bool,
    /// Ready endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Identities and target ports behind it, of ready and of starting workloads: whom callers will reach.
    pub targets: BTreeSet<(Identity, u16)>,
    /// A workload that belongs here is starting and does not listen yet: callers wait instead of failing.
    pub pending: bool,
    pub split: Option<Arc<Split>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where to connect; a workload that listens on both families has two endpoints.
    pub address: SocketAddr,
    pub identity: Identity,
    pub class: Class,
    /// Name of the workload ([`Workload::name`]).
    pub workload: Arc<str>,
}

/// SMI TrafficSplit of a root service, compiled for one of its ports.
#[derive(Debug, Clone, Serialize)]
pub struct Split {
    pub rule: RuleId,
    pub object: Arc<ObjectRef>,
    /// Requests must match one of these to be split; empty: all are. Others go to the root's own endpoints.
    #[serde(skip)]
    pub matches: Vec<HttpMatch>,
    /// Raw weights; all zero means: no backend.
    pub backends: Vec<SplitBackend>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SplitBackend {
    pub service: ServiceName,
    pub weight: u32,
    /// Index of the called port in that service; `None`: the service or the port is missing (Pending).
    pub port: Option<usize>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Workload {
    /// Unique: `NAMESPACE/SERVICE/INSTANCE` for `weft run`, `NAMESPACE/NAME` for kind Workload.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// First service it belongs to, for flow events.
    pub service: Option<Arc<str>>,
    pub account: Arc<str>,
    pub identity: Identity,
    pub class: Class,
    pub labels: Labels,
    /// cgroup v2 id of the workload's cgroup, where it is captured on this node.
    pub cgroup: Option<u64>,
    /// Addresses of its own, by which it is known where no connection's record says more; empty for one that shares the
    /// node's.
    pub addresses: Arc<[IpAddr]>,
    /// What a Workload's `capture` says, and what became of it. Few have one.
    pub capture: Option<Box<Capture>>,
}

/// Processes of this node that belong to a workload which nobody started by `weft run`: a pod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capture {
    /// Directory of the cgroup, as written.
    pub cgroup: String,
    /// File of the network namespace, as written; `None`: the daemon's own.
    pub netns: Option<String>,
    /// `None`: nobody has looked (`weft check`).
    pub found: Option<Captured>,
}

/// What a [`Capture`]'s paths lead to on this node. Policy does no I/O: whoever may look says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Captured {
    /// cgroup v2 id; `None`: nothing is captured.
    pub cgroup: Option<u64>,
    /// Cookie of the network namespace; `None`: it is the daemon's own, or not there.
    pub netns: Option<u64>,
    /// What keeps it from being as written, for people.
    pub problem: Option<CaptureProblem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureProblem {
    pub field: CaptureField,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureField {
    Cgroup,
    Netns,
}

/// What may reach the workloads of one identity.
#[derive(Debug, Clone)]
pub struct AccessPolicy {
    pub default: AccessDefault,
    /// The MeshConfig that says so.
    pub default_rule: RuleId,
    /// What the default denies is let through and reported.
    pub audit: bool,
    /// Additive; empty under `AccessDefault::Allow` (the rules are NotEnforced then).
    pub allow: Vec<AccessRule>,
}

#[derive(Debug, Clone)]
pub struct AccessRule {
    pub rule: RuleId,
    pub object: ObjectRef,
    /// Requests of these sources on these ports that match none of `http` are let through and reported.
    pub audit: bool,
    pub sources: BTreeSet<Identity>,
    pub protocol: Protocol,
    /// Target ports (those of endpoints); `None`: every port.
    pub ports: Option<BTreeSet<u16>>,
    /// Target ports at which the rule allows nothing, for it speaks of requests and nobody asks it there
    /// ([`L7::None`]). Without those of `ports`.
    pub except: BTreeSet<u16>,
    /// HTTP matches, any of which allows; `None`: the rule speaks of connections, not of requests.
    pub http: Option<Vec<HttpMatch>>,
}

/// One match of an HTTPRouteGroup. All that is set must hold.
#[derive(Debug, Clone)]
pub struct HttpMatch {
    pub name: String,
    /// Empty: every method.
    pub methods: Vec<String>,
    /// Anchored at the start (SMI).
    pub path: Option<PathPattern>,
    /// Lower-case header names. Of one that comes more than once all values must match: nobody knows which one a server takes.
    pub headers: Vec<(String, Regex)>,
}

/// What an HTTP access check looks at.
pub trait HttpRequestView {
    fn method(&self) -> &str;
    /// Path without query.
    fn path(&self) -> &str;
    /// Shows every value of a header, by lower-case name, in order; `None`: one that is no UTF-8.
    fn each_value(&self, name: &str, visit: &mut dyn FnMut(Option<&str>));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    Deny,
    /// L4 cannot tell: the request decides.
    NeedsHttp,
    /// Would be denied; is let through and reported.
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub verdict: Verdict,
    /// The rule that decided; a default deny names the MeshConfig's.
    pub rule: Option<RuleId>,
}

// === impl Verdict ===

impl Verdict {
    /// Whether it may go on now: allowed, or only reported.
    pub fn passes(self) -> bool {
        matches!(self, Self::Allow | Self::Audit)
    }

    pub(crate) fn strictness(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Audit => 1,
            Self::NeedsHttp => 2,
            Self::Deny => 3,
        }
    }
}

// === impl Decision ===

impl Decision {
    /// `rule: None`: nothing has a say.
    pub const UNRESTRICTED: Self = Self {
        verdict: Verdict::Allow,
        rule: None,
    };

    pub(crate) fn new(verdict: Verdict, rule: RuleId) -> Self {
        Self {
            verdict,
            rule: Some(rule),
        }
    }

    /// The network's decision together with that on access: the stricter one. Of two alike that on access, unless it names
    /// no rule. The kernel programs choose the same (`verdict::judge`).
    pub fn and(self, access: Self) -> Self {
        let (network, other) = (self.verdict.strictness(), access.verdict.strictness());
        if network > other || network == other && access.rule.is_none() {
            self
        } else {
            access
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectState {
    Accepted,
    Pending,
    NotEnforced,
    Rejected,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ObjectStatus {
    pub object: Arc<ObjectRef>,
    pub state: ObjectState,
    pub reason: Cow<'static, str>,
}
