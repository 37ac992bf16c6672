//! Flows that only packet hooks see, whose an address is, and what rules decided.

use crate::Tuple;

/// `weft_flows` key: a flow as its initiator sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Local is the initiator. Its namespace counts as in [`Tuple::conn_key`].
    pub tuple: Tuple,
    /// [`crate::protocol`].
    pub protocol: u32,
}

impl FlowKey {
    /// The flow of a packet whose sender began it; both ends have the same.
    #[inline(always)]
    pub const fn of(tuple: &Tuple, protocol: u8) -> Self {
        Self {
            tuple: tuple.conn_key(),
            protocol: protocol as u32,
        }
    }

    /// The flow whose initiator is the other end.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            tuple: self.tuple.reversed(),
            protocol: self.protocol,
        }
    }
}

/// `weft_flows` value: who began it and what was decided. Verdicts belong to the initiator's direction; answers follow.
///
/// Written by the packet hooks at a flow's first packet; swept by the daemon when idle. Full: the flow is judged at every
/// packet, answers as if they began it, counted in `weft_errs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRecord {
    /// cgroup id of the workload that began it, 0 = none of this node.
    pub owner: u64,
    /// Generation the verdict was taken under.
    pub generation: u64,
    /// `bpf_ktime_get_ns` of the last packet.
    pub seen_ns: u64,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Source class.
    pub source_class: u32,
    /// Destination class.
    pub destination_class: u32,
    /// Service port number, 0 = none.
    pub service: u32,
    /// Rule that decided, 0 = none.
    pub rule: u32,
    /// [`crate::action`].
    pub verdict: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// The port that was asked for (a service's, where it was one), wire order.
    pub port_be: u16,
    /// Low half of the cgroup id of the workload that it has arrived at, which alone may answer; 0 = none of this machine, or
    /// not yet. (Low halves repeat after 2^31 cgroups: `kernfs_new_node` counts them up.)
    pub peer: u32,
}

/// Flags of [`FlowRecord`].
pub mod flow_flags {
    /// Never judged: a workload talking to itself.
    pub const EXEMPT: u8 = 1;
    /// The other end has seen it: opened was counted there.
    pub const ARRIVED: u8 = 2;
    /// TCP: a FIN was seen; it is forgotten soon.
    pub const ENDING: u8 = 4;
    /// Denied when it began, and never let through since. Of datagrams: it speaks for its own direction alone.
    pub const REFUSED: u8 = 8;
    /// TCP: its initiator has answered the other end, so it is more than a SYN.
    pub const ANSWERED: u8 = 16;
}

/// `weft_addrs` value (under [`crate::Versioned`]), found by longest prefix: whose an address is where no record says more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddrOwner {
    /// Identity of the workload there; [`crate::identity::OUTSIDE`] for a range that only network policies speak of.
    /// 0 = no entry under this generation.
    pub identity: u32,
    /// Class of the workload, or of the range.
    pub class: u32,
}

/// `weft_rules` value, per CPU: how often a rule decided, in connections and datagram flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// Let through, directly or to the proxy.
    pub allowed: u64,
    /// Refused or cut.
    pub denied: u64,
    /// Let through and reported.
    pub audited: u64,
}

const _: () = assert!(size_of::<FlowKey>() == 44);
const _: () = assert!(size_of::<FlowRecord>() == 56);
const _: () = assert!(size_of::<AddrOwner>() == 8);
const _: () = assert!(size_of::<RuleCounters>() == 24);
