//! The network dimension: who may connect to whom by labels and addresses (NetworkPolicy), beside access by account.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Protocol, RuleId};
use crate::labels::Labels;

/// Number the kernel compares instead of labels and addresses: one per (namespace, full set of labels) of workloads, one
/// per address range that some policy tells apart. What it stands for is its [`ClassName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Class(pub u32);

impl Class {
    /// Nobody knows; matches rules about everybody only.
    pub const UNKNOWN: Self = Self(0);
    /// A local address that no record speaks for (all workloads of a host may share 127.0.0.1).
    pub const UNKNOWN_LOCAL: Self = Self(1);
    /// Our own proxy.
    pub const PROXY: Self = Self(2);
    /// An address of no workload and in no range.
    pub const OUTSIDE: Self = Self(3);
    /// First number given to workloads and ranges.
    pub const FIRST: Self = Self(256);
}

/// What a [`Class`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassName {
    Workloads {
        namespace: Arc<str>,
        labels: Labels,
    },
    /// Addresses in this prefix and in no longer one that has a class.
    Range(IpNet),
}

/// What all NetworkPolicies say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Classes that some policy isolates; all others may connect and be connected to.
    pub isolation: HashMap<Class, ClassPolicy>,
    /// Every prefix that some policy names, longest first (see [`range_key`]). The longest that has an address gives its
    /// class: a policy that names a prefix lists the classes of all longer ones inside it, and leaves out its `except`s.
    pub ranges: Vec<(IpNet, Class)>,
}

/// Of one class. `None`: that direction is not isolated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassPolicy {
    pub ingress: Option<Isolation>,
    pub egress: Option<Isolation>,
}

/// One direction of a class that at least one policy isolates: what none of `allow` matches is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The policy that a denial names: of those that isolate, the first by name that is not audited, else the first.
    pub default_rule: RuleId,
    /// Report instead of denying: every policy that isolates here is audited.
    pub audit: bool,
    /// Additive.
    pub allow: Vec<NetworkAllow>,
}

/// One rule of one policy. All that is set must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAllow {
    pub rule: RuleId,
    /// The other side; `None`: anybody, of whatever class.
    pub peers: Option<Arc<BTreeSet<Class>>>,
    pub protocol: Option<Protocol>,
    /// Target ports (those of endpoints), apart and in order; `None`: every port.
    pub ports: Option<Vec<RangeInclusive<u16>>>,
}

// === impl NetworkAllow ===

impl NetworkAllow {
    pub fn matches(&self, peer: Class, protocol: Protocol, target_port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
            && self.peers.as_ref().is_none_or(|peers| peers.contains(&peer))
            && self
                .ports
                .as_ref()
                .is_none_or(|ports| ports.iter().any(|range| range.contains(&target_port)))
    }
}

// === impl ClassName ===

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workloads { namespace, labels } => {
                write!(f, "{namespace}/{{")?;
                for (index, (label, value)) in labels.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{label}={value}")?;
                }
                f.write_str("}")
            }
            Self::Range(net) => write!(f, "{net}"),
        }
    }
}

/// Sorts ranges as [`Network::ranges`] are.
pub(crate) fn range_key(net: &IpNet) -> impl Ord + use<> {
    (std::cmp::Reverse(net.prefix_len()), *net)
}
