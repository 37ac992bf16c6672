//! `weft_local` and `weft_netns`: which addresses are this machine's, and in which namespaces something of ours is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use nix::ifaddrs::getifaddrs;
use weft_abi::{LocalKey, netns_flags};

use super::{services::addr, telemetry::ip_addr};
use crate::{
    error::DataplaneError,
    publish::{room, take},
};

/// Both tables, and what is known to be in them.
pub struct Netns {
    /// Cookie of the home namespace.
    home: u64,
    /// By cookie.
    addresses: BTreeMap<u64, BTreeSet<IpAddr>>,
    local_map: HashMap<MapData, LocalKey, u32>,
    local_room: usize,
    local: BTreeMap<LocalKey, u32>,
    netns_map: HashMap<MapData, u64, u32>,
    netns: BTreeSet<u64>,
}

/// Addresses beyond loopback in the calling thread's network namespace.
///
/// # Errors
///
/// Interfaces cannot be read.
pub fn local_addresses() -> Result<BTreeSet<IpAddr>, DataplaneError> {
    let interfaces = getifaddrs().map_err(|errno| DataplaneError::Os {
        what: "read this machine's addresses",
        source: errno.into(),
    })?;
    Ok(interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| !ip.is_loopback())
        .collect())
}

// === impl Netns ===

impl Netns {
    /// Takes over the (possibly pinned) maps with what is in them.
    pub fn adopt(ebpf: &mut Ebpf, home: u64) -> Result<Self, DataplaneError> {
        let local_room = room(ebpf, "weft_local")?;
        let local_map: HashMap<MapData, LocalKey, u32> = take(ebpf, "weft_local")?;
        let netns_map: HashMap<MapData, u64, u32> = take(ebpf, "weft_netns")?;
        let local = local_map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("weft_local"))?;
        let netns = netns_map
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed("weft_netns"))?;
        Ok(Self {
            home,
            addresses: addresses_of(&local, &netns, home),
            local,
            local_map,
            local_room,
            netns,
            netns_map,
        })
    }

    /// Looks again at what is in the maps, which somebody else wrote to.
    pub fn adopt_again(&mut self) -> Result<(), DataplaneError> {
        self.local = self
            .local_map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("weft_local"))?;
        self.netns = self
            .netns_map
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed("weft_netns"))?;
        self.write_addresses()
    }

    pub fn home(&self) -> u64 {
        self.home
    }

    /// Namespaces that are said to have listeners of ours.
    pub fn listening(&self) -> Vec<u64> {
        self.netns.iter().copied().collect()
    }

    pub fn set_addresses(&mut self, cookie: u64, addresses: BTreeSet<IpAddr>) -> Result<(), DataplaneError> {
        self.addresses.insert(cookie, addresses);
        self.write_addresses()
    }

    pub fn set_listening(&mut self, cookie: u64) -> Result<(), DataplaneError> {
        if !self.netns.contains(&cookie) {
            self.netns_map
                .insert(cookie, netns_flags::LISTENERS, 0)
                .map_err(failed("weft_netns"))?;
            self.netns.insert(cookie);
        }
        Ok(())
    }

    pub fn forget(&mut self, cookie: u64) {
        // Gone already is as good.
        let _ = self.netns_map.remove(&cookie);
        self.netns.remove(&cookie);
        self.addresses.remove(&cookie);
        if let Err(error) = self.write_addresses() {
            tracing::warn!(%error, "addresses of a namespace that is gone stay in the kernel's table");
        }
    }

    /// Brings the table in step: only differences are written.
    fn write_addresses(&mut self) -> Result<(), DataplaneError> {
        let desired = entries(self.home, &self.addresses);
        let gone: Vec<LocalKey> = self
            .local
            .keys()
            .filter(|key| !desired.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            // Gone already is as good.
            let _ = self.local_map.remove(&key);
            self.local.remove(&key);
        }
        let (needed, room) = (desired.len(), self.local_room);
        let no_room = |source| match needed > room {
            true => DataplaneError::Full {
                map: "local",
                room,
                needed,
                leaving: 0,
            },
            false => failed("weft_local")(source),
        };
        for (key, netns) in desired {
            if self.local.get(&key) != Some(&netns) {
                self.local_map.insert(key, netns, 0).map_err(no_room)?;
                self.local.insert(key, netns);
            }
        }
        Ok(())
    }
}

/// Addresses of the namespaces that an earlier daemon was in: they are there until each is entered again, or left.
fn addresses_of(local: &BTreeMap<LocalKey, u32>, netns: &BTreeSet<u64>, home: u64) -> BTreeMap<u64, BTreeSet<IpAddr>> {
    let mut addresses = BTreeMap::<u64, BTreeSet<IpAddr>>::new();
    for key in local.keys() {
        let mut others = netns.iter().filter(|cookie| **cookie != home);
        if let Some(cookie) = others.find(|cookie| **cookie as u32 == key.netns) {
            addresses.entry(*cookie).or_default().insert(ip_addr(&key.addr));
        }
    }
    addresses
}

/// The table's contents. Of several namespaces that have an address (a bridge's on every host, say) the home one answers for
/// third ones, else the oldest; link-local addresses mean nothing outside their own.
fn entries(home: u64, addresses: &BTreeMap<u64, BTreeSet<IpAddr>>) -> BTreeMap<LocalKey, u32> {
    let mut entries = BTreeMap::new();
    let first = addresses.get_key_value(&home);
    let others = addresses.iter().filter(|(cookie, _)| **cookie != home);
    for (cookie, ips) in first.into_iter().chain(others) {
        let netns = *cookie as u32;
        for ip in ips {
            let addr = addr(*ip);
            entries.insert(LocalKey { addr, netns }, netns);
            if !is_link_local(*ip) {
                entries.entry(LocalKey { addr, netns: 0 }).or_insert(netns);
            }
        }
    }
    entries
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn failed(map: &'static str) -> impl FnOnce(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        map,
        what: "read or write",
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_answers_for_its_own_sockets_and_the_home_one_for_third_ones() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = BTreeMap::from([
            (3, ips(&["10.77.0.5", "fe80::3", "10.0.0.3"])),
            (7, ips(&["10.77.0.5", "fe80::7"])),
            (9, ips(&["10.77.0.5", "10.0.0.9"])),
        ]);
        let entries = entries(7, &addresses);
        let mut others = addresses.clone();
        others.remove(&7);
        assert_eq!(addresses_of(&entries, &BTreeSet::from([3, 7, 9]), 7), others);
        others.remove(&9);
        assert_eq!(addresses_of(&entries, &BTreeSet::from([3, 7]), 7), others);
        let at = |ip: &str, netns| {
            let addr = addr(ip.parse().unwrap());
            entries.get(&LocalKey { addr, netns }).copied()
        };
        for (ip, netns, expect) in [
            ("10.77.0.5", 3, Some(3)),
            ("10.77.0.5", 9, Some(9)),
            ("10.77.0.5", 0, Some(7)),
            ("10.0.0.9", 0, Some(9)),
            ("10.0.0.9", 3, None),
            ("fe80::3", 3, Some(3)),
            ("fe80::3", 0, None),
        ] {
            assert_eq!(at(ip, netns), expect, "{ip} asked by {netns}");
        }
    }
}
