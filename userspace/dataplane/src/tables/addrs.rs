//! Whose addresses are, as entries of `weft_addrs`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use weft_abi::{Addr, AddrOwner, class, identity};
use weft_policy::{Class, Identity, Snapshot, Workload};

use super::{Delta, services::addr};

/// Key of the trie: an address and how many bits of it count, of 128 (IPv4 is v4-mapped: 96 and its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub bits: u32,
    pub addr: Addr,
}

const ALL_V4: IpNet = IpNet::V4(match Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0) {
    Ok(net) => net,
    Err(_) => panic!("0 is a prefix length"),
});

// === impl Prefix ===

impl Prefix {
    /// One address.
    pub fn host(ip: IpAddr) -> Self {
        Self {
            bits: 128,
            addr: addr(ip),
        }
    }

    /// All addresses of a range.
    pub fn of(net: &IpNet) -> Self {
        let before = if net.addr().is_ipv4() { 96 } else { 0 };
        Self {
            bits: before + u32::from(net.prefix_len()),
            addr: addr(net.network()),
        }
    }
}

/// Workloads with addresses of their own, and the ranges that network policies tell apart. Loopback is nobody's: every
/// machine has it.
pub fn owners(snapshot: &Snapshot) -> HashMap<Prefix, AddrOwner> {
    let mut owners = HashMap::new();
    for workload in &snapshot.workloads {
        for address in own(workload) {
            // Two with one address: the first, as for endpoints; their class is nobody's if they have two.
            let owner = known(snapshot, workload.identity, address);
            owners.entry(Prefix::host(address)).or_insert(owner);
        }
    }
    for (net, class) in &snapshot.network.ranges {
        owners.entry(Prefix::of(net)).or_insert(outside(*class));
    }
    if snapshot
        .network
        .ranges
        .iter()
        .any(|(net, _)| matches!(net, IpNet::V6(_)))
    {
        // A range of IPv6 that has the v4-mapped addresses in it does not mean IPv4.
        let owner = outside(Class(class::OUTSIDE));
        owners.entry(Prefix::of(&ALL_V4)).or_insert(owner);
    }
    owners
}

/// What of [`owners`] differs where the ranges are the same, and who listens; `None`: not only addresses of workloads differ,
/// or several have one that moved, and whose it is now tell only all of them.
pub fn changes(old: &Snapshot, new: &Snapshot) -> Option<Delta<Prefix, AddrOwner>> {
    if old.workloads.len() != new.workloads.len() {
        return None;
    }
    let mut left = BTreeSet::new();
    let mut taken = BTreeMap::new();
    let pairs = old.workloads.iter().zip(new.workloads.iter());
    for (before, now) in pairs.filter(|(before, now)| !Arc::ptr_eq(before, now)) {
        if !is_same_but_for_addresses(before, now) {
            return None;
        }
        let (had, has): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = (own(before).collect(), own(now).collect());
        left.extend(had.difference(&has).copied());
        for address in has.difference(&had) {
            taken.entry(*address).or_insert(now.identity);
        }
    }
    let somebodys = |snapshot: &Snapshot, address: &IpAddr| snapshot.by_address.contains_key(&address.to_canonical());
    let shared =
        left.iter().any(|address| somebodys(new, address)) || taken.keys().any(|address| somebodys(old, address));
    if shared {
        return None;
    }
    let left = left.into_iter().map(|address| {
        let key = Prefix::host(address);
        (key, range_of_one(new, key))
    });
    let taken = taken
        .into_iter()
        .map(|(address, identity)| (Prefix::host(address), Some(known(new, identity, address))));
    Some(left.chain(taken).collect())
}

/// Whether all is the same that tables, or indexes that tables are made of, have of a workload.
fn is_same_but_for_addresses(before: &Workload, now: &Workload) -> bool {
    (&before.name, &before.namespace, &before.service) == (&now.name, &now.namespace, &now.service)
        && (before.identity, before.class) == (now.identity, now.class)
}

/// The addresses that tell whose a connection is.
fn own(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    workload
        .addresses
        .iter()
        .copied()
        .filter(|address| !address.is_loopback())
}

/// A workload at an address of its own.
fn known(snapshot: &Snapshot, identity: Identity, address: IpAddr) -> AddrOwner {
    AddrOwner {
        identity: identity.0,
        class: snapshot.class_of_address(address).0,
    }
}

fn outside(class: Class) -> AddrOwner {
    AddrOwner {
        identity: identity::OUTSIDE,
        class: class.0,
    }
}

/// A range that is this one address.
fn range_of_one(snapshot: &Snapshot, key: Prefix) -> Option<AddrOwner> {
    let mut ranges = snapshot.network.ranges.iter();
    let (_, class) = ranges.find(|(net, _)| Prefix::of(net) == key)?;
    Some(outside(*class))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest prefix that has an address, as the kernel's trie finds it.
    fn find(owners: &HashMap<Prefix, AddrOwner>, address: &str) -> (u32, u32) {
        let wanted = u128::from_be_bytes(addr(address.parse().unwrap()).octets());
        let has = |prefix: &&Prefix| {
            let shift = 128 - prefix.bits;
            let own = u128::from_be_bytes(prefix.addr.octets());
            own.checked_shr(shift) == wanted.checked_shr(shift)
        };
        let longest = owners.keys().filter(has).max_by_key(|prefix| prefix.bits);
        longest.map_or((0, 0), |prefix| (owners[prefix].identity, owners[prefix].class))
    }

    #[test]
    fn workloads_go_before_ranges_and_no_range_has_addresses_of_the_other_family() {
        let mut snapshot = Snapshot::default();
        let workload = Workload {
            name: "shop/far".into(),
            namespace: "shop".into(),
            service: None,
            account: "far".into(),
            identity: Identity(256),
            class: Class(257),
            labels: Default::default(),
            cgroup: None,
            addresses: ["10.0.0.7".parse().unwrap()].into(),
            capture: None,
        };
        snapshot.by_address.insert(workload.addresses[0], workload.class);
        snapshot.workloads.push(Arc::new(workload));
        let check = |snapshot: &Snapshot, address: &str, identity, class| {
            assert_eq!(find(&owners(snapshot), address), (identity, class), "{address}");
            assert_eq!(
                snapshot.class_of_address(address.parse().unwrap()).0,
                class,
                "{address}"
            );
        };
        snapshot.network.ranges = vec![("::/0".parse().unwrap(), Class(300))];
        check(&snapshot, "2001:db8::1", identity::OUTSIDE, 300);
        check(&snapshot, "10.0.0.1", identity::OUTSIDE, class::OUTSIDE);
        check(&snapshot, "10.0.0.7", 256, 257);
        snapshot.network.ranges = [
            ("10.0.0.7/32", 301),
            ("10.0.0.0/8", 302),
            ("0.0.0.0/0", 303),
            ("::/0", 300),
        ]
        .map(|(net, class)| (net.parse().unwrap(), Class(class)))
        .into();
        check(&snapshot, "10.0.0.7", 256, 257);
        check(&snapshot, "10.0.0.8", identity::OUTSIDE, 302);
        check(&snapshot, "192.0.2.1", identity::OUTSIDE, 303);
        check(&snapshot, "2001:db8::1", identity::OUTSIDE, 300);
    }
}
