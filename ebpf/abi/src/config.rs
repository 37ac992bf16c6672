//! What the daemon tells the programs, and who is captured.

/// Version of every type in this crate. Raised with any change of size or meaning; a daemon refuses to adopt pinned
/// maps of another layout and says so.
pub const LAYOUT: u32 = 8;

/// `weft_config`: ARRAY of one. Read once at the entry of every program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The generation in force; flipping it puts all changed table values in force at once.
    pub generation: u64,
    /// cgroup v2 id of the daemon's own cgroup: sockets made there belong to the proxy and are never captured.
    pub daemon_cgroup: u64,
    /// Cookie (`SO_NETNS_COOKIE`) of the home namespace, the daemon's: the loopback addresses in `weft_dests` are this one's.
    pub netns_cookie: u64,
    /// [`LAYOUT`].
    pub layout: u32,
    /// Bit `n` set: some policy entry has port prefix length `n` (0 to 16). Bits are set before a generation needs
    /// them and cleared after the last one that did, so one too many costs a look-up and decides nothing.
    pub port_prefixes: u32,
    /// Depth of the captured cgroup below the cgroup root (`bpf_get_current_ancestor_cgroup_id` level).
    pub level: u32,
    /// Outbound listener, wire order.
    pub proxy_port_be: u16,
    /// DNS listener, wire order.
    pub dns_port_be: u16,
    /// 1: sk_msg redirects at all (self-test passed and the operator did not switch it off).
    pub short_circuit: u8,
    /// 1: some network policy isolates somebody, so that dimension is looked at too. Set before the generation that needs
    /// it and cleared after the last one that did.
    pub network: u8,
    /// Inbound listener, wire order.
    pub inbound_port_be: u16,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// `weft_workloads`: cgroup v2 id -> who lives there. Written by the daemon only: this map is the enrolment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Number of its service account.
    pub identity: u32,
    /// Number of its namespace and labels.
    pub class: u32,
    /// Number of the workload's namespace, for DNS (see `weft_connect4`).
    pub namespace: u16,
    /// [`workload_flags`].
    pub flags: u16,
}

/// Flags of [`Workload`].
pub mod workload_flags {
    /// While there is no proxy, whoever a rule about requests lets in goes straight to it: its service declares so.
    pub const FAIL_OPEN: u16 = 1;
}

/// How deep below the captured cgroup a workload's own cgroup may be. What its processes make below that is found at any
/// depth. Kubernetes needs 4 (`kubepods.slice/kubepods-burstable.slice/kubepods-...-podUID.slice/CONTAINER`), `weft run` 3;
/// each level costs a task that lives deeper than its workload's cgroup a look-up a socket.
pub const MAX_DEPTH: u32 = 8;

/// Flags of `weft_netns`: network namespace cookie -> what of ours is in it, beside the home namespace.
pub mod netns_flags {
    /// Outbound and DNS listeners on its loopback, as long as the daemon lives (`weft_listen` tells whether it does).
    pub const LISTENERS: u32 = 1;
}

const _: () = assert!(size_of::<Config>() == 48);
const _: () = assert!(size_of::<Workload>() == 12);
