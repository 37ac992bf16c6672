//! Reading edges and listeners.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use weft_abi::{Addr, ConnRecord, EdgeCounters, EdgeKey, ListenKey, ListenValue, Tuple, sock_flags};

use crate::{error::DataplaneError, sys::monotonic_ns};

/// An accepting end reads its record within a round trip; a minute is beyond every retransmission of the handshake.
const UNCLAIMED_NS: u64 = 60_000_000_000;

/// One edge with its counters summed over CPUs, growing since the edge was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Who, to whom, how.
    pub key: EdgeKey,
    /// Totals.
    pub counters: EdgeCounters,
}

/// Reads the pinned `weft_edges`.
pub fn edges(pin: &Path) -> Result<Vec<Edge>, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_edges",
        what: "read",
        source: Box::new(source),
    };
    let map = Map::PerCpuHashMap(MapData::from_pin(pin).map_err(fail)?);
    let map: PerCpuHashMap<MapData, EdgeKey, EdgeCounters> = map.try_into().map_err(fail)?;
    let mut edges = Vec::new();
    for entry in map.iter() {
        let (key, values) = entry.map_err(fail)?;
        let mut counters = EdgeCounters::default();
        for cpu in values.iter() {
            counters.opened += cpu.opened;
            counters.closed += cpu.closed;
            counters.refused += cpu.refused;
            counters.reset += cpu.reset;
            counters.bytes_sent += cpu.bytes_sent;
            counters.bytes_received += cpu.bytes_received;
        }
        edges.push(Edge { key, counters });
    }
    Ok(edges)
}

/// Removes entries of the pinned `weft_edges`.
pub fn forget_edges(pin: &Path, keys: &[EdgeKey]) -> Result<(), DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_edges",
        what: "open",
        source: Box::new(source),
    };
    let map = Map::PerCpuHashMap(MapData::from_pin(pin).map_err(fail)?);
    let mut map: PerCpuHashMap<MapData, EdgeKey, EdgeCounters> = map.try_into().map_err(fail)?;
    for key in keys {
        // Gone already is as good.
        let _ = map.remove(key);
    }
    Ok(())
}

/// Reads the pinned `weft_listen`: owner's cgroup id and address.
pub fn listeners(pin: &Path) -> Result<Vec<(u64, SocketAddr)>, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_listen",
        what: "read",
        source: Box::new(source),
    };
    let map = Map::HashMap(MapData::from_pin(pin).map_err(fail)?);
    let map: HashMap<MapData, ListenKey, ListenValue> = map.try_into().map_err(fail)?;
    let mut found = Vec::new();
    for entry in map.iter() {
        let (key, value) = entry.map_err(fail)?;
        found.push((value.owner, socket_addr(&key.addr, key.port_be)));
    }
    Ok(found)
}

/// Removes records of connections to the proxy that nobody accepted within [`UNCLAIMED_NS`]: the listener's queue had
/// overflowed, or the proxy died in between. How many.
pub fn sweep_conns(pin: &Path) -> Result<usize, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_conns",
        what: "sweep",
        source: Box::new(source),
    };
    let map = Map::HashMap(MapData::from_pin(pin).map_err(fail)?);
    let mut map: HashMap<MapData, Tuple, ConnRecord> = map.try_into().map_err(fail)?;
    let now = monotonic_ns();
    let stale: Vec<Tuple> = map
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, conn)| conn.flags & sock_flags::REDIRECTED != 0)
        .filter(|(_, conn)| now.saturating_sub(conn.started_ns) > UNCLAIMED_NS)
        .map(|(tuple, _)| tuple)
        .collect();
    for tuple in &stale {
        // Gone already is as good.
        let _ = map.remove(tuple);
    }
    Ok(stale.len())
}

/// Address and port out of a key; v4-mapped becomes IPv4.
pub fn socket_addr(addr: &Addr, port_be: u16) -> SocketAddr {
    SocketAddr::new(ip_addr(addr), u16::from_be(port_be))
}

/// Address out of a key; v4-mapped becomes IPv4.
pub fn ip_addr(addr: &Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}
