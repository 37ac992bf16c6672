//! Whose addresses are, as entries of `weft_addrs`.

use std::{collections::HashMap, net::IpAddr};

use weft_abi::{Addr, AddrOwner, class};
use weft_policy::Snapshot;

use super::services::addr;

/// Key of the trie: an address and how many bits of it count, of 128 (IPv4 is v4-mapped: 96 and its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub bits: u32,
    pub addr: Addr,
}

// === impl Prefix ===

impl Prefix {
    /// One address.
    pub fn host(ip: IpAddr) -> Self {
        Self {
            bits: 128,
            addr: addr(ip),
        }
    }
}

/// Workloads with addresses of their own. Loopback is nobody's: every machine has it.
pub fn owners(snapshot: &Snapshot) -> HashMap<Prefix, AddrOwner> {
    let mut owners = HashMap::new();
    for workload in &snapshot.workloads {
        for address in workload.addresses.iter().filter(|address| !address.is_loopback()) {
            let owner = AddrOwner {
                identity: workload.identity.0,
                class: class::NONE,
            };
            // Two with one address: the first, as for endpoints.
            owners.entry(Prefix::host(*address)).or_insert(owner);
        }
    }
    owners
}
