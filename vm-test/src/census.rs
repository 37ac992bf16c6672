//! How many entries the maps of a lab's daemon have, read from their pins: what grows and never shrinks is a leak.

use std::{collections::HashSet, hash::Hash, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, PerCpuHashMap, SockHash},
};
use weft_abi::{
    Backend, BackendKey, ConnRecord, Dest, DestKey, EdgeCounters, EdgeKey, FlowKey, FlowRecord, ListenKey, ListenValue,
    PolicyKey, PolicyValue, Tuple, Versioned, Workload,
};

/// The maps that are counted, by the names of their pins.
pub const MAPS: [&str; 10] = [
    "conns",
    "flows",
    "edges",
    "listen",
    "workloads",
    "policy",
    "dests",
    "backends",
    "tx",
    "rx",
];

/// Entries of `map`, one of [`MAPS`], of the daemon whose bpffs this is. Costs a system call an entry.
///
/// The map changes meanwhile: a key that goes away sends the walk back to the start, so keys are counted once each, and the
/// walk ends after [`MAX_STEPS`].
///
/// # Errors
/// No such pin; or the map has other keys or values than this checkout's.
pub fn entries(bpffs: &Path, map: &str) -> Result<usize> {
    let pin = bpffs.join("maps").join(map);
    let count = || -> Result<usize, aya::maps::MapError> {
        let data = MapData::from_pin(&pin)?;
        match map {
            "conns" => hash::<Tuple, ConnRecord>(data),
            "flows" => hash::<FlowKey, FlowRecord>(data),
            "edges" => per_cpu::<EdgeKey, EdgeCounters>(data),
            "listen" => hash::<ListenKey, ListenValue>(data),
            "workloads" => hash::<u64, Workload>(data),
            "policy" => hash::<PolicyKey, Versioned<PolicyValue>>(data),
            "dests" => hash::<DestKey, Versioned<Dest>>(data),
            "backends" => hash::<BackendKey, Versioned<Backend>>(data),
            _ => sockets::<Tuple>(data),
        }
    };
    count().with_context(|| format!("count the entries of {}", pin.display()))
}

/// Entries that `map` has room for, as the kernel says.
///
/// # Errors
/// No such pin.
pub fn room(bpffs: &Path, map: &str) -> Result<usize> {
    let pin = bpffs.join("maps").join(map);
    let info = MapData::from_pin(&pin).and_then(|data| data.info());
    let info = info.with_context(|| format!("ask for the size of {}", pin.display()))?;
    Ok(info.max_entries() as usize)
}

/// Far more than a lab's maps have entries.
const MAX_STEPS: usize = 1 << 20;

fn hash<K: Pod + Eq + Hash, V: Pod>(data: MapData) -> Result<usize, aya::maps::MapError> {
    let map: HashMap<MapData, K, V> = Map::HashMap(data).try_into()?;
    Ok(distinct(map.keys().filter_map(Result::ok)))
}

fn per_cpu<K: Pod + Eq + Hash, V: Pod>(data: MapData) -> Result<usize, aya::maps::MapError> {
    let map: PerCpuHashMap<MapData, K, V> = Map::PerCpuHashMap(data).try_into()?;
    Ok(distinct(map.keys().filter_map(Result::ok)))
}

fn sockets<K: Pod + Eq + Hash>(data: MapData) -> Result<usize, aya::maps::MapError> {
    let map: SockHash<MapData, K> = Map::SockHash(data).try_into()?;
    Ok(distinct(map.keys().filter_map(Result::ok)))
}

fn distinct<K: Eq + Hash>(keys: impl Iterator<Item = K>) -> usize {
    keys.take(MAX_STEPS).collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_met_twice_counts_once() {
        assert_eq!(distinct([1, 2, 3, 1, 2].into_iter()), 3);
    }
}
