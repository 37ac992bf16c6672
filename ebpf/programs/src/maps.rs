//! All maps. Sizes are those of [`weft_abi::capacity`], which also says why, unless user space has others at load
//! (`map_max_entries`); a map that is pinned keeps the one that it was made with.

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuHashMap, RingBuf, SkStorage, SockHash},
    macros::btf_map,
};
use weft_abi::{
    Addr, AddrOwner, Asked, Backend, BackendKey, Config, ConnRecord, Dest, DestKey, EdgeCounters, EdgeKey, Event,
    External, FlowKey, FlowRecord, ListenKey, ListenValue, LocalKey, PolicyKey, PolicyValue, RuleCounters, SockRecord,
    Tuple, Versioned, Workload, capacity,
};

use crate::errs::ErrKey;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// What the daemon says; the generation is flipped here.
#[btf_map(name = "weft_config")]
pub static CONFIG: Array<Config, 1> = Array::new();

/// cgroup id -> who lives there. Written by the daemon only: enrolment is a write to this map and nothing else.
#[btf_map(name = "weft_workloads")]
pub static WORKLOADS: HashMap<u64, Workload, { capacity::WORKLOADS as usize }, NO_PREALLOC> = HashMap::new();

/// Virtual IPs and endpoint addresses that mean something. Full: the daemon refuses the publication and says so.
#[btf_map(name = "weft_dests")]
pub static DESTS: HashMap<DestKey, Versioned<Dest>, { capacity::DESTS as usize }, NO_PREALLOC> = HashMap::new();

/// Alias tables of all backend sets.
#[btf_map(name = "weft_backends")]
pub static BACKENDS: HashMap<BackendKey, Versioned<Backend>, { capacity::BACKENDS as usize }, NO_PREALLOC> =
    HashMap::new();

/// Foreign proxies by service port number, and their ports. Full: the daemon refuses the publication and says so.
#[btf_map(name = "weft_externals")]
pub static EXTERNALS: HashMap<u32, Versioned<External>, { capacity::EXTERNALS as usize }, NO_PREALLOC> = HashMap::new();

/// The L4 policy of every identity.
#[btf_map(name = "weft_policy")]
pub static POLICY: HashMap<PolicyKey, Versioned<PolicyValue>, { capacity::POLICY as usize }, NO_PREALLOC> =
    HashMap::new();

/// Socket storage that an accepted socket gets a copy of from its listener; aya's `SkStorage` has no flags.
#[repr(C)]
pub struct ClonedStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are places for types in BTF; nobody reads them.
unsafe impl<T> Sync for ClonedStorage<T> {}

impl<T> ClonedStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }
}

/// Who made a socket, where it wanted to go, what was decided. An accepted socket has its listener's record until
/// PASSIVE_ESTABLISHED: whose it is, is then told by the socket itself, also where it was assigned by another hook.
#[btf_map(name = "weft_socks")]
pub static SOCKS: ClonedStorage<SockRecord> = ClonedStorage::new();

/// Whom a datagram socket asked before: gone with the socket, so nothing to clean.
#[btf_map(name = "weft_asked")]
pub static ASKED: SkStorage<Asked> = SkStorage::new();

/// A connection's record in short, by the dialling end's tuple ([`Tuple::conn_key`]), for the accepting end.
///
/// Written by `weft_sockops` at TCP_CONNECT_CB, before the SYN leaves; removed at close (a connection handed to the
/// proxy: when the accepting end has read it). Not an LRU: an evicted entry would be a misroute. When full, the
/// connection goes on without record, counted in `weft_errs`: the proxy then refuses it; a direct one is an unknown
/// client's to the accepting side, in telemetry, and where such are denied also in its verdict.
/// Proved by: `vm-test/tests/telemetry/full.rs`.
#[btf_map(name = "weft_conns")]
pub static CONNS: HashMap<Tuple, ConnRecord, { capacity::CONNS as usize }, NO_PREALLOC> = HashMap::new();

/// Who listens where. Tells an undeclared local port's owner, an endpoint's readiness and whether our proxy lives.
#[btf_map(name = "weft_listen")]
pub static LISTEN: HashMap<ListenKey, ListenValue, { capacity::LISTEN as usize }, NO_PREALLOC> = HashMap::new();

/// Addresses of this machine beyond loopback, by namespace: whoever listens on all addresses of a namespace is reached by
/// these as well. Written by the daemon. Full: the rest counts as outside, and the daemon says so.
#[btf_map(name = "weft_local")]
pub static LOCAL: HashMap<LocalKey, u32, { capacity::LOCAL as usize }, NO_PREALLOC> = HashMap::new();

/// Network namespace cookie -> [`weft_abi::netns_flags`], of all namespaces beside the home one in which something of ours
/// is. Written by the daemon.
#[btf_map(name = "weft_netns")]
pub static NETNS: HashMap<u64, u32, { capacity::NETNS as usize }, NO_PREALLOC> = HashMap::new();

/// Whose an address is, where no record of a connection says more: workloads of other machines, ranges of network
/// policies. An LPM trie, for few are expected and every prefix length may occur; read once a connection.
#[btf_map(name = "weft_addrs")]
pub static ADDRS: LpmTrie<Addr, Versioned<AddrOwner>, { capacity::ADDRS as usize }> = LpmTrie::new();

/// Flows of datagrams, and of packets that no socket of ours speaks for. See [`FlowRecord`] for when it is full.
/// Proved by: `vm-test/tests/telemetry/full.rs`.
#[btf_map(name = "weft_flows")]
pub static FLOWS: HashMap<FlowKey, FlowRecord, { capacity::FLOWS as usize }, NO_PREALLOC> = HashMap::new();

/// How often each rule decided. Full: counted in `weft_errs`.
#[btf_map(name = "weft_rules")]
pub static RULES: PerCpuHashMap<u32, RuleCounters, { capacity::RULES as usize }, NO_PREALLOC> = PerCpuHashMap::new();

/// Our inbound listeners by network namespace (low half of the cookie) and family (4, 6). Written by the daemon; a closed
/// listener leaves by itself, so one that is found lives.
#[btf_map(name = "weft_inbound")]
pub static INBOUND: SockHash<[u32; 2], { capacity::INBOUND as usize }> = SockHash::new();

/// Aggregated telemetry; read and expired by the daemon.
///
/// An entry takes 280 bytes a CPU, and memory only when it is made: 4.6 MB a CPU with all 16,384 in use, 9 MB on 2 CPUs,
/// 290 MB on 64. Full: counts go to an overflow edge (`EdgeKey::overflow`), made by the daemon beforehand, and the miss
/// is counted in `weft_errs`. Not an LRU, which would lose counts.
/// Proved by: `vm-test/tests/telemetry/limits.rs`.
#[btf_map(name = "weft_edges")]
pub static EDGES: PerCpuHashMap<EdgeKey, EdgeCounters, { capacity::EDGES as usize }, NO_PREALLOC> =
    PerCpuHashMap::new();

/// Open, close, deny, listen. Full: dropped and counted in `weft_errs`.
#[btf_map(name = "weft_events")]
pub static EVENTS: RingBuf<Event, { capacity::EVENT_BYTES as usize }> = RingBuf::new();

/// Sockets whose sends `weft_sk_msg` looks at: those of applications, towards our proxy or one another; with `acceleration: full` our
/// proxy's as well.
#[btf_map(name = "weft_tx")]
pub static TX: SockHash<Tuple, { capacity::CIRCUITS as usize }> = SockHash::new();

/// Sockets that may be handed bytes past TCP: those that our proxy reads, and those of a service whose operator declared
/// `acceleration: full`. No program is attached here, so the proxy's own sends take the plain TCP path elsewhere. That no other
/// application's socket is in this map is what keeps `splice(2)` in applications safe (see `README.md`).
#[btf_map(name = "weft_rx")]
pub static RX: SockHash<Tuple, { capacity::CIRCUITS as usize }> = SockHash::new();

/// Failed kernel calls by site and errno.
#[btf_map(name = "weft_errs")]
pub static ERRS: PerCpuHashMap<ErrKey, u64, { capacity::ERRS as usize }, NO_PREALLOC> = PerCpuHashMap::new();
