//! Reading edges and listeners.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
};

use aya::{
    maps::{HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use weft_abi::{
    Addr, ConnRecord, EdgeCounters, EdgeKey, FlowKey, FlowRecord, ListenKey, ListenValue, Tuple, flow_flags, protocol,
    sock_flags,
};
use weft_policy::Protocol;

use crate::{canary::is_canary, error::DataplaneError, sys::monotonic_ns};

/// An accepting end reads its record within a round trip; a minute is beyond every retransmission of the handshake.
const UNCLAIMED_NS: u64 = 60_000_000_000;

/// A datagram flow is forgotten after so long without a packet: beyond what NATs and conntrack keep (RFC 4787, 4.3 asks for
/// two minutes).
const IDLE_UDP_NS: u64 = 180_000_000_000;
/// TCP of others, seen on devices: RFC 5382, 5 asks for two hours and four minutes.
const IDLE_TCP_NS: u64 = 7_440_000_000_000;
/// The same after a FIN, of one that is refused, and of one that is no more than a SYN.
const ENDING_TCP_NS: u64 = 120_000_000_000;

/// One edge with its counters summed over CPUs, growing since the edge was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Who, to whom, how.
    pub key: EdgeKey,
    /// Totals.
    pub counters: EdgeCounters,
}

/// Reads the pinned `weft_edges`, but for what the canary of `weft doctor` did.
pub fn edges(pin: &Path) -> Result<Vec<Edge>, DataplaneError> {
    let mut edges = all_edges(pin)?;
    edges.retain(|edge| !is_canary(edge.key.source));
    Ok(edges)
}

/// All of them.
pub fn all_edges(pin: &Path) -> Result<Vec<Edge>, DataplaneError> {
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
            counters.merge(cpu);
        }
        edges.push(Edge { key, counters });
    }
    Ok(edges)
}

/// Makes the edges that count what finds no room, before anything can take it. Those of an earlier daemon stay.
pub fn make_overflow_edges(pin: &Path) -> Result<(), DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_edges",
        what: "make the overflow edges of",
        source: Box::new(source),
    };
    let map = Map::PerCpuHashMap(MapData::from_pin(pin).map_err(fail)?);
    let mut map: PerCpuHashMap<MapData, EdgeKey, EdgeCounters> = map.try_into().map_err(fail)?;
    let cpus = nr_cpus().map_err(|(_, source)| DataplaneError::Os {
        what: "count the CPUs",
        source,
    })?;
    for key in EdgeKey::overflows() {
        match map.get(&key, 0) {
            Ok(_) => continue,
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(fail(error)),
        }
        let zeros = PerCpuValues::try_from(vec![EdgeCounters::ZERO; cpus]).map_err(|source| DataplaneError::Os {
            what: "make a value a CPU",
            source,
        })?;
        map.insert(key, zeros, 0).map_err(fail)?;
    }
    Ok(())
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

/// Something listens (TCP) or is bound (UDP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// cgroup id of the workload.
    pub owner: u64,
    /// As it was bound.
    pub address: SocketAddr,
    pub protocol: Protocol,
}

/// Reads the pinned `weft_listen`: what is in one namespace (low half of its cookie).
pub fn listeners(pin: &Path, netns: u32) -> Result<Vec<Listener>, DataplaneError> {
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
        if key.netns != netns {
            continue;
        }
        found.push(Listener {
            owner: value.owner,
            address: socket_addr(&key.addr, key.port_be),
            protocol: if key.protocol == protocol::UDP {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
        });
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
        // Claimed and still here: a foreign proxy's, which goes when its dialling end closes.
        .filter(|(_, conn)| conn.flags & (sock_flags::REDIRECTED | sock_flags::CLAIMED) == sock_flags::REDIRECTED)
        .filter(|(_, conn)| now.saturating_sub(conn.started_ns) > UNCLAIMED_NS)
        .map(|(tuple, _)| tuple)
        .collect();
    for tuple in &stale {
        // Gone already is as good.
        let _ = map.remove(tuple);
    }
    Ok(stale.len())
}

/// Removes flows that are idle. How many.
pub fn sweep_flows(pin: &Path) -> Result<usize, DataplaneError> {
    let now = monotonic_ns();
    let idle = |key: &FlowKey, flow: &FlowRecord| {
        let allowed = if key.protocol != u32::from(protocol::TCP) {
            IDLE_UDP_NS
        } else if flow.flags & (flow_flags::ENDING | flow_flags::REFUSED) != 0 || flow.flags & flow_flags::ANSWERED == 0
        {
            ENDING_TCP_NS
        } else {
            IDLE_TCP_NS
        };
        now.saturating_sub(flow.seen_ns) > allowed
    };
    remove_flows(pin, idle)
}

/// Removes flows whose source `is_its` says so of.
pub fn forget_flows(pin: &Path, is_its: impl Fn(u32) -> bool) -> Result<(), DataplaneError> {
    remove_flows(pin, |_, flow| is_its(flow.source)).map(drop)
}

/// How many.
fn remove_flows(pin: &Path, goes: impl Fn(&FlowKey, &FlowRecord) -> bool) -> Result<usize, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_flows",
        what: "sweep",
        source: Box::new(source),
    };
    let map = Map::HashMap(MapData::from_pin(pin).map_err(fail)?);
    let mut map: HashMap<MapData, FlowKey, FlowRecord> = map.try_into().map_err(fail)?;
    let gone: Vec<FlowKey> = map
        .iter()
        .filter_map(Result::ok)
        .filter(|(key, flow)| goes(key, flow))
        .map(|(key, _)| key)
        .collect();
    for key in &gone {
        // Gone already is as good.
        let _ = map.remove(key);
    }
    Ok(gone.len())
}

/// Address and port out of a key; v4-mapped becomes IPv4.
pub fn socket_addr(addr: &Addr, port_be: u16) -> SocketAddr {
    SocketAddr::new(ip_addr(addr), u16::from_be(port_be))
}

/// Address out of a key; v4-mapped becomes IPv4.
pub fn ip_addr(addr: &Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}
