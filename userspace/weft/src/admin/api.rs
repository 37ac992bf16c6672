//! What goes over the admin socket, as JSON. Commands print these types unchanged with `-o json`.
//!
//! Fields are only ever added; scripts read them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use weft_adapters::{
    AdapterState, Destination, FlowProtocol, FlowVerdict, GenerationState, GenerationWaits, Peer, Side,
};
use weft_policy::{Acceleration, DataPath, Diagnostic, FailureMode, ObjectRef, ObjectState, Protocol, RuntimePort};

use crate::edges::EdgeTotals;

/// `POST /v1/workloads`: a command is about to run as a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    pub namespace: String,
    /// Joined, and made if no resource defines it.
    pub service: String,
    pub account: String,
    #[serde(default)]
    pub ports: Vec<RuntimePort>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For people who look at `weft status`; weft runs nothing.
    #[serde(default)]
    pub command: Vec<String>,
}

/// Answer to [`RegisterRequest`]: the workload is known to the kernel when this is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterResponse {
    /// `NAMESPACE/SERVICE/INSTANCE`.
    pub name: String,
    /// Last part of the name.
    pub instance: String,
    /// To be entered before the command is executed.
    pub cgroup: PathBuf,
    /// Inode number of the daemon's network namespace (`/proc/self/ns/net`).
    pub netns: u64,
    /// A process of the daemon's network namespace, for `nsenter --net=/proc/PID/ns/net`.
    pub daemon_pid: u32,
}

/// Where a workload is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadState {
    /// Registered; no process has entered its cgroup yet.
    Starting,
    /// Its cgroup holds a process.
    Running,
    /// Described by a resource of kind Workload; nobody here watches its processes.
    Declared,
    /// The same, and its processes are captured.
    Captured,
    /// Its processes shall be captured, and something of that is not there.
    Pending,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadView {
    pub name: String,
    pub namespace: String,
    pub service: Option<String>,
    pub account: String,
    /// Number the kernel compares; `None` until it is compiled.
    pub identity: Option<u32>,
    pub state: WorkloadState,
    pub ports: Vec<RuntimePort>,
    /// Where its processes listen, as the kernel saw it.
    pub listening: Vec<(SocketAddr, Protocol)>,
    pub labels: BTreeMap<String, String>,
    pub cgroup: Option<PathBuf>,
    pub cgroup_id: Option<u64>,
    /// File of its network namespace, where that is not the daemon's own.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// RFC 3339.
    pub started: Option<String>,
    pub command: Vec<String>,
}

/// `GET /v1/objects`: what to list. Kinds are compared without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectQuery {
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
}

impl ObjectQuery {
    pub fn matches(&self, object: &ObjectRef) -> bool {
        self.kind.as_ref().is_none_or(|kind| kind_matches(kind, &object.kind))
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| object.namespace.as_deref() == Some(namespace))
            && self.name.as_ref().is_none_or(|name| *name == object.name)
    }
}

/// `trafficsplit`, `TrafficSplits` and `TrafficSplit` all mean the kind TrafficSplit.
pub fn kind_matches(asked: &str, kind: &str) -> bool {
    let plural_of = |singular: &str| asked.len() > singular.len() && asked.is_char_boundary(singular.len());
    asked.eq_ignore_ascii_case(kind)
        || (plural_of(kind)
            && asked[..kind.len()].eq_ignore_ascii_case(kind)
            && matches!(asked[kind.len()..].to_ascii_lowercase().as_str(), "s" | "es"))
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectView {
    #[serde(flatten)]
    pub key: ObjectRef,
    pub state: ObjectState,
    pub reason: String,
    /// `FILE:LINE` it was read from, or `applied`.
    pub source: String,
    /// The YAML document as its author wrote it.
    pub manifest: String,
}

/// `PUT /v1/objects?file=NAME`, body YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyRequest {
    /// Name that messages give the text.
    pub file: String,
    pub yaml: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyAction {
    Created,
    Configured,
    Unchanged,
    /// Refused; its last good version, if any, stays in force.
    Refused,
}

impl fmt::Display for ApplyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedObject {
    #[serde(flatten)]
    pub key: ObjectRef,
    pub action: ApplyAction,
    /// `None` for a refused object.
    pub state: Option<ObjectState>,
    pub reason: String,
}

/// Answer to [`ApplyRequest`]: every object by itself is stored whole or refused whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyOutcome {
    /// Generation in force when the answer was sent; everything accepted is part of it.
    pub generation: u64,
    pub objects: Vec<AppliedObject>,
    pub diagnostics: Vec<Diagnostic>,
}

impl ApplyOutcome {
    /// Some of it was not stored.
    pub fn has_refusals(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
            || self.objects.iter().any(|object| object.action == ApplyAction::Refused)
    }

    /// The same, or it is stored and the daemon does not have it in force.
    pub fn has_errors(&self) -> bool {
        let rejected = |object: &AppliedObject| object.state == Some(ObjectState::Rejected);
        self.has_refusals() || self.objects.iter().any(rejected)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteOutcome {
    pub generation: u64,
    pub object: ObjectRef,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// RFC 3339.
    pub started: String,
    pub uptime_seconds: u64,
    pub generation: u64,
    pub state_dir: PathBuf,
    pub cgroup: PathBuf,
    pub bpffs: PathBuf,
    pub netns: u64,
    pub resources: Vec<ResourceCount>,
    /// Errors and warnings in force.
    pub diagnostics: Vec<Diagnostic>,
    pub workloads: Vec<WorkloadView>,
    pub services: Vec<ServiceView>,
    /// What does not work as it should; empty on a healthy node.
    pub degraded: Vec<Degraded>,
    pub flows: FlowCounts,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceCount {
    pub kind: String,
    pub accepted: usize,
    pub pending: usize,
    pub not_enforced: usize,
    pub rejected: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    pub what: String,
    pub why: String,
    /// What works without it, or what to do.
    pub instead: String,
}

/// `GET /v1/adapters`: one of them, as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterView {
    pub namespace: String,
    pub name: String,
    /// `native NAME`, `wasm FILE`.
    pub backend: String,
    /// `check`, `quota`, `filter` or `report`.
    pub role: String,
    /// Services whose requests it looks at, or that it is told about.
    pub services: usize,
    /// Why the newest version is not in force (any more).
    pub problem: Option<String>,
    /// With a problem: whether an earlier version is in force instead.
    pub earlier: bool,
    /// Requests that it judged, since it came into force.
    pub allowed: u64,
    pub denied: u64,
    /// Requests to which it gave no verdict: the failure policy decided.
    pub failed: u64,
    /// All it took to judge, waiting for others included.
    pub took_us: u64,
    /// Records that it sent or wrote, and that it lost.
    pub sent: u64,
    pub dropped: u64,
    /// Of an adapter as WebAssembly, in the order of the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<GenerationView>,
}

/// `POST /v1/adapters`: a change of one that was stored with `weft apply`, `backend: wasm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterChange {
    pub namespace: String,
    pub name: String,
    pub verb: AdapterVerb,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterVerb {
    /// Adds a generation.
    Load {
        /// File on the daemon's machine; it keeps a copy.
        module: PathBuf,
        /// `None`: `vN`.
        generation: Option<String>,
        share: Share,
    },
    /// Sets weights, and gives requests again to those that were rolled back.
    Weigh { weights: Vec<GenerationWeight> },
    /// Takes one out; `None`: the newest that gets requests.
    RollBack { generation: Option<String> },
}

/// What a new generation gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Every request; the others stay for a rollback.
    All,
    /// So many percent, 0 to 100; the others share the rest as they did.
    Percent(u8),
    /// Copies of all.
    Shadow,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationWeight {
    pub generation: String,
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterChanged {
    /// Which generation it was about.
    pub generation: String,
    /// The adapter, as it is now.
    pub adapter: AdapterView,
}

/// One generation of an adapter as WebAssembly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    pub name: String,
    /// `sha256:HEX` of its module; `None`: there is none.
    pub module: Option<String>,
    /// Its share of the requests, relative to those of the others.
    pub weight: u32,
    /// It sees copies of requests and changes nothing.
    #[serde(default)]
    pub shadow: bool,
    /// Why it does not run.
    pub problem: Option<String>,
    /// Why it gets no requests any more, though it runs.
    #[serde(default)]
    pub rolled_back: Option<String>,
    /// Of a shadow: requests over which it was of another mind than the generation in force.
    #[serde(default)]
    pub disagreed: u64,
    /// Requests and connections that it saw.
    pub streams: u64,
    /// Answers that it gave in the service's place.
    pub answers: u64,
    /// Callbacks that trapped, those that took too long included.
    pub traps: u64,
    /// Of these, those that took too long.
    pub deadlines: u64,
    /// Requests and connections that it failed on, so that another generation or the failure policy decided.
    pub failed: u64,
    /// Calls to services.
    pub calls: u64,
    pub callbacks: u64,
    pub took_us: u64,
    /// How long requests wait for it; `None`: it is the only one, or a shadow.
    #[serde(default)]
    pub waiting: Option<WaitingView>,
    pub instances: usize,
    /// Of these instances.
    pub memory_bytes: usize,
}

/// How long requests and connections wait for a generation, as one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// Those that were measured.
    pub requests: u64,
    /// Of these, those that it holds now.
    pub held: u64,
    /// What all of them have waited by now.
    pub waited_us: u64,
}

impl From<GenerationWaits> for WaitingView {
    fn from(waiting: GenerationWaits) -> Self {
        Self {
            requests: waiting.requests,
            held: waiting.held,
            waited_us: u64::try_from(waiting.time.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl From<GenerationState> for GenerationView {
    fn from(state: GenerationState) -> Self {
        let stats = state.stats;
        Self {
            name: state.name,
            module: state.digest.map(|digest| digest.to_string()),
            weight: state.weight,
            shadow: state.shadow,
            problem: state.problem,
            rolled_back: state.rolled_back,
            disagreed: state.disagreed,
            streams: stats.streams,
            answers: stats.local_responses,
            traps: stats.traps,
            deadlines: stats.deadlines,
            failed: stats.failed_streams,
            calls: stats.call_outs,
            callbacks: stats.callbacks,
            took_us: u64::try_from(stats.callback_time.as_micros()).unwrap_or(u64::MAX),
            waiting: state.waiting.map(WaitingView::from),
            instances: stats.instances,
            memory_bytes: stats.memory,
        }
    }
}

impl From<AdapterState> for AdapterView {
    fn from(state: AdapterState) -> Self {
        let counts = state.counts;
        Self {
            namespace: state.object.namespace.as_deref().unwrap_or_default().to_owned(),
            name: state.object.name,
            backend: state.backend.to_string(),
            role: state.role.to_string(),
            services: state.services,
            problem: state.problem,
            earlier: state.earlier,
            allowed: counts.allowed,
            denied: counts.denied,
            failed: counts.failed,
            took_us: u64::try_from(counts.took.as_micros()).unwrap_or(u64::MAX),
            sent: counts.sent,
            dropped: counts.dropped,
            generations: state.generations.into_iter().map(GenerationView::from).collect(),
        }
    }
}

/// `GET /v1/edges`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgesView {
    /// When the kernel's counters were read, µs after the daemon's start. Two views of the same reading are the same.
    pub read_us: u64,
    pub edges: Vec<EdgeView>,
    /// As [`FlowCounts::dropped`].
    pub events_dropped: u64,
}

/// One edge as one of its ends tells it, or a device between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeView {
    pub reporter: Side,
    pub source: Peer,
    pub destination: Destination,
    pub protocol: FlowProtocol,
    pub verdict: FlowVerdict,
    /// Since the kernel's tables were made: they outlive daemons.
    pub totals: EdgeTotals,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// Flow records in memory.
    pub kept: u64,
    /// Seen since the start.
    pub seen: u64,
    /// Not delivered to a follower that read too slowly.
    pub lagged: u64,
    /// Lost before they reached the store (ring buffer or reporter full).
    pub dropped: u64,
    /// One of so many connections gets its open and close reported by the kernel; 1 = all, 0 = an older daemon.
    #[serde(default)]
    pub sample: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub namespace: String,
    pub name: String,
    pub vip4: Ipv4Addr,
    pub vip6: Ipv6Addr,
    /// `None`: nothing declares it.
    pub failure_mode: Option<FailureMode>,
    pub acceleration: Acceleration,
    pub ports: Vec<ServicePortView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortView {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    /// Works per request.
    pub http: bool,
    pub path: DataPath,
    /// Why connections go that way.
    pub why: String,
    pub endpoints: Vec<EndpointView>,
    /// A workload is starting and does not listen yet.
    pub pending: bool,
    pub split: Option<SplitView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub address: SocketAddr,
    pub workload: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitView {
    pub rule: ObjectRef,
    pub backends: Vec<BackendView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    pub namespace: String,
    pub service: String,
    /// Relative.
    pub weight: u32,
    /// The service or its port is missing: it gets no traffic.
    pub missing: bool,
}

/// `POST /v1/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of namespace `default`.
    pub from: String,
    /// `SERVICE`, `NAMESPACE/SERVICE`, `SERVICE.NAMESPACE[.mesh]` or an address; a bare name is looked for in the
    /// namespace of `from`.
    pub to: String,
    pub port: u16,
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    #[serde(default)]
    pub method: Option<String>,
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// `GET /v1/doctor`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DoctorReport {
    pub hooks: Vec<HookView>,
    #[serde(default)]
    pub verdicts: Vec<VerdictView>,
    pub features: Vec<FeatureView>,
    #[serde(default)]
    pub cuts: CutsView,
    pub problems: Vec<Degraded>,
}

/// Changes of policy that reset established connections, since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CutsView {
    pub last: Option<CutView>,
    pub slowest: Option<CutView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutView {
    /// The generation that denies what was cut.
    pub generation: u64,
    pub connections: usize,
    /// Milliseconds from the beginning of its compilation until the kernel drops packets of what it denies. What comes before is
    /// not in it: `weft apply` reads files, a module is compiled ahead, and another change may be under way.
    pub in_force_ms: f64,
    /// Milliseconds from there on until all these connections were reset.
    pub reset_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HookView {
    pub name: String,
    pub attached: bool,
    /// The canary made it run, and no verdict was wrong in which it has a part; `None`: the canary cannot provoke it.
    pub effective: Option<bool>,
    /// Mean cost; `None`: it did not run while statistics were on.
    pub ns_per_run: Option<f64>,
}

/// What became of something that the canary did, beside what the policy table says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictView {
    /// Protocol, family, and what is to happen.
    pub name: String,
    pub ok: bool,
    /// What happened instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureView {
    pub name: String,
    pub present: bool,
    pub used_for: String,
}

/// Body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    #[serde(default)]
    pub details: Vec<String>,
}
