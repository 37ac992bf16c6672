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
/// What is left of all but established connections while more than half of the table is in use: what conntrack gives a flow of
/// datagrams without an answer (`nf_conntrack_udp_timeout`). Most of such a table is one question and one answer each.
const CROWDED_NS: u64 = 30_000_000_000;

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

/// Removes flows that are idle, sooner where they crowd the table. How many.
pub fn sweep_flows(pin: &Path) -> Result<usize, DataplaneError> {
    let now = monotonic_ns();
    let (mut idle, mut quiet, mut flows) = (Vec::new(), Vec::new(), 0);
    let room = each_flow(pin, |key, flow| {
        flows += 1;
        match idleness(&key, &flow, now) {
            Idleness::None => {}
            Idleness::Quiet => quiet.push(key),
            Idleness::Idle => idle.push(key),
        }
    })?;
    if flows > room / 2 {
        idle.append(&mut quiet);
    }
    remove_flows(pin, &idle)?;
    Ok(idle.len())
}

/// How long nothing came of a flow.
#[derive(Debug, PartialEq, Eq)]
enum Idleness {
    None,
    /// Long enough to be forgotten where there is little room.
    Quiet,
    /// Long enough to be forgotten.
    Idle,
}

fn idleness(key: &FlowKey, flow: &FlowRecord, now: u64) -> Idleness {
    let ending = flow.flags & (flow_flags::ENDING | flow_flags::REFUSED) != 0;
    let (allowed, crowded) = if key.protocol != u32::from(protocol::TCP) {
        (IDLE_UDP_NS, CROWDED_NS)
    } else if ending || flow.flags & flow_flags::ANSWERED == 0 {
        (ENDING_TCP_NS, CROWDED_NS)
    } else {
        (IDLE_TCP_NS, IDLE_TCP_NS)
    };
    match now.saturating_sub(flow.seen_ns) {
        silent if silent > allowed => Idleness::Idle,
        silent if silent > crowded => Idleness::Quiet,
        _ => Idleness::None,
    }
}

/// Removes flows whose source `is_its` says so of.
pub fn forget_flows(pin: &Path, is_its: impl Fn(u32) -> bool) -> Result<(), DataplaneError> {
    let mut gone = Vec::new();
    each_flow(pin, |key, flow| {
        if is_its(flow.source) {
            gone.push(key);
        }
    })?;
    remove_flows(pin, &gone)
}

/// Shows every flow; how many the table has room for.
fn each_flow(pin: &Path, mut see: impl FnMut(FlowKey, FlowRecord)) -> Result<usize, DataplaneError> {
    let data = MapData::from_pin(pin).map_err(flows_failed)?;
    let room = data.info().map_err(flows_failed)?.max_entries();
    let map: HashMap<MapData, FlowKey, FlowRecord> = Map::HashMap(data).try_into().map_err(flows_failed)?;
    for (key, flow) in map.iter().filter_map(Result::ok) {
        see(key, flow);
    }
    Ok(room as usize)
}

fn remove_flows(pin: &Path, gone: &[FlowKey]) -> Result<(), DataplaneError> {
    if gone.is_empty() {
        return Ok(());
    }
    let map = Map::HashMap(MapData::from_pin(pin).map_err(flows_failed)?);
    let mut map: HashMap<MapData, FlowKey, FlowRecord> = map.try_into().map_err(flows_failed)?;
    for key in gone {
        // Gone already is as good.
        let _ = map.remove(key);
    }
    Ok(())
}

fn flows_failed(source: MapError) -> DataplaneError {
    DataplaneError::Map {
        map: "weft_flows",
        what: "sweep",
        source: Box::new(source),
    }
}

/// Address and port out of a key; v4-mapped becomes IPv4.
pub fn socket_addr(addr: &Addr, port_be: u16) -> SocketAddr {
    SocketAddr::new(ip_addr(addr), u16::from_be(port_be))
}

/// Address out of a key; v4-mapped becomes IPv4.
pub fn ip_addr(addr: &Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quiet_may_go_before_its_time_but_for_established_connections() {
        const SECOND: u64 = 1_000_000_000;
        let after = |protocol: u8, flags: u8, seconds: u64| {
            let key = FlowKey {
                protocol: u32::from(protocol),
                ..FlowKey::default()
            };
            let flow = FlowRecord {
                seen_ns: 7 * SECOND,
                flags,
                ..FlowRecord::default()
            };
            idleness(&key, &flow, (7 + seconds) * SECOND)
        };
        let answered = flow_flags::ANSWERED;
        for (protocol, flags, idle_after) in [
            (protocol::UDP, 0, 180),
            (protocol::TCP, 0, 120),
            (protocol::TCP, answered | flow_flags::ENDING, 120),
            (protocol::TCP, answered | flow_flags::REFUSED, 120),
        ] {
            for (seconds, expected) in [
                (0, Idleness::None),
                (30, Idleness::None),
                (31, Idleness::Quiet),
                (idle_after, Idleness::Quiet),
                (idle_after + 1, Idleness::Idle),
            ] {
                let found = after(protocol, flags, seconds);
                assert_eq!(found, expected, "{protocol}, flags {flags}, {seconds} s");
            }
        }
        assert_eq!(after(protocol::TCP, answered, 7_440), Idleness::None);
        assert_eq!(after(protocol::TCP, answered, 7_441), Idleness::Idle);
    }
}
