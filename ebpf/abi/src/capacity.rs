//! How many entries each map is made for where the operator says nothing else (`--map-size`), and why so many.
//!
//! A hash map takes 16 bytes an entry of its size, rounded up to a power of two, before anything is in it; the entries
//! themselves are allocated when they are made. So a size that nobody needs is paid by every machine. What a mesh of 10,000
//! services, 100,000 endpoints and 100,000 policy entries needs fits, also while it changes.

/// `weft_workloads`: cgroups of this machine's workloads. A Kubernetes node has some hundred pods.
pub const WORKLOADS: u32 = 8_192;

/// `weft_dests`: two virtual IPs a service, two entries a port of it, one an endpoint. 10,000 services of one port with 100,000
/// endpoints take 140,000, and while endpoints are replaced both the old and the new ones are there.
pub const DESTS: u32 = 262_144;

/// `weft_backends`: one an endpoint and service port that leads to it; a split has those of its leaves again.
pub const BACKENDS: u32 = 131_072;

/// `weft_externals`: service ports that a foreign proxy serves, and the ports of those proxies, of this machine.
pub const EXTERNALS: u32 = 4_096;

/// `weft_policy`: 100,000 entries, and those that a change adds before it removes others.
pub const POLICY: u32 = 131_072;

/// `weft_conns`: connections past the proxy that are open on this machine, and those that the proxy dialled.
pub const CONNS: u32 = 65_536;

/// `weft_listen`: listening and bound sockets of this machine.
pub const LISTEN: u32 = 16_384;

/// `weft_local`: twice the addresses of this machine, in all its network namespaces.
pub const LOCAL: u32 = 8_192;

/// `weft_netns`: network namespaces of this machine in which something of ours is.
pub const NETNS: u32 = 4_096;

/// `weft_addrs`: an LPM trie, which takes nothing for what is not in it; so this bounds its memory alone.
pub const ADDRS: u32 = 262_144;

/// `weft_flows`: flows of datagrams, and what devices see, of the last minutes (our own DNS makes none). The daemon removes idle
/// ones, sooner where half of it is in use: 1,300 new ones a second find room for good.
pub const FLOWS: u32 = 65_536;

/// `weft_rules`: rules that decided on this machine. Those whose object is gone are removed.
pub const RULES: u32 = 16_384;

/// `weft_inbound`: two a network namespace with an inbound listener of ours.
pub const INBOUND: u32 = 4_096;

/// `weft_edges`: who talks to whom on this machine, by port and verdict. A value a CPU, so the largest when full.
pub const EDGES: u32 = 16_384;

/// `weft_events`, in bytes: 10,082 events that the daemon has not read yet.
pub const EVENT_BYTES: u32 = 1 << 20;

/// `weft_tx` and `weft_rx`: ends of short-circuited connections; with `acceleration: full` a connection takes two of each, and one
/// through the proxy four. What finds no room stays on TCP.
pub const CIRCUITS: u32 = 16_384;

/// `weft_errs`: sites times errnos.
pub const ERRS: u32 = 256;
