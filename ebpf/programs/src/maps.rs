//! All maps. Sizes are upper bounds that user space may lower or raise at load (`map_max_entries`).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuHashMap, RingBuf, SkStorage, SockHash},
    macros::btf_map,
};
use weft_abi::{
    Addr, Backend, BackendKey, Config, ConnRecord, Dest, DestKey, EdgeCounters, EdgeKey, Event, ListenKey, ListenValue,
    PolicyKey, PolicyValue, SockRecord, Tuple, Versioned, Workload,
};

use crate::errs::ErrKey;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// What the daemon says; the generation is flipped here.
#[btf_map(name = "weft_config")]
pub static CONFIG: Array<Config, 1> = Array::new();

/// cgroup id -> who lives there. Written by the daemon only: enrolment is a write to this map and nothing else.
#[btf_map(name = "weft_workloads")]
pub static WORKLOADS: HashMap<u64, Workload, 65_536, NO_PREALLOC> = HashMap::new();

/// Virtual IPs and endpoint addresses that mean something. Full: the daemon refuses the publication and says so.
#[btf_map(name = "weft_dests")]
pub static DESTS: HashMap<DestKey, Versioned<Dest>, 524_288, NO_PREALLOC> = HashMap::new();

/// Alias tables of all backend sets.
#[btf_map(name = "weft_backends")]
pub static BACKENDS: HashMap<BackendKey, Versioned<Backend>, 1_048_576, NO_PREALLOC> = HashMap::new();

/// The L4 policy of every identity.
#[btf_map(name = "weft_policy")]
pub static POLICY: HashMap<PolicyKey, Versioned<PolicyValue>, 524_288, NO_PREALLOC> = HashMap::new();

/// Who made a socket, where it wanted to go, what was decided.
#[btf_map(name = "weft_socks")]
pub static SOCKS: SkStorage<SockRecord> = SkStorage::new();

/// The same in short by the dialling end's tuple, for the accepting end.
///
/// Written by `weft_sockops` at TCP_CONNECT_CB, before the SYN leaves; removed at close (a connection handed to the
/// proxy: when the accepting end has read it). Not an LRU: an evicted entry would be a misroute. When full, the
/// connection goes on without record, counted in `weft_errs`: the proxy then refuses it, a direct one loses its
/// source in telemetry.
#[btf_map(name = "weft_conns")]
pub static CONNS: HashMap<Tuple, ConnRecord, 262_144, NO_PREALLOC> = HashMap::new();

/// Who listens where. Tells an undeclared local port's owner, an endpoint's readiness and whether our proxy lives.
#[btf_map(name = "weft_listen")]
pub static LISTEN: HashMap<ListenKey, ListenValue, 65_536, NO_PREALLOC> = HashMap::new();

/// Addresses of this machine beyond loopback (in the daemon's network namespace): whoever listens on all addresses is
/// reached by these as well. Written by the daemon. Full: the rest counts as outside, and the daemon says so.
#[btf_map(name = "weft_local")]
pub static LOCAL: HashMap<Addr, u32, 4_096, NO_PREALLOC> = HashMap::new();

/// Aggregated telemetry; read and expired by the daemon. Full: counted in `weft_errs`.
#[btf_map(name = "weft_edges")]
pub static EDGES: PerCpuHashMap<EdgeKey, EdgeCounters, 16_384, NO_PREALLOC> = PerCpuHashMap::new();

/// Open, close, deny, listen. Full: dropped and counted in `weft_errs`.
#[btf_map(name = "weft_events")]
pub static EVENTS: RingBuf<Event, { 1 << 20 }> = RingBuf::new();

/// Sockets whose sends `weft_sk_msg` looks at: those of applications, towards our proxy.
#[btf_map(name = "weft_tx")]
pub static TX: SockHash<Tuple, 65_536> = SockHash::new();

/// Sockets that may be handed bytes past TCP: only ever those that our proxy reads. No program is attached here, so
/// their own sends take the plain TCP path. That an application's socket is never in this map is what keeps
/// `splice(2)` in applications safe (see `README.md`).
#[btf_map(name = "weft_rx")]
pub static RX: SockHash<Tuple, 65_536> = SockHash::new();

/// Failed kernel calls by site and errno.
#[btf_map(name = "weft_errs")]
pub static ERRS: PerCpuHashMap<ErrKey, u64, 256, NO_PREALLOC> = PerCpuHashMap::new();
