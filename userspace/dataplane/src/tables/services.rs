//! Services, endpoints and their weighted backends as entries of `weft_dests` and `weft_backends`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use weft_abi::{
    Addr, Backend, BackendKey, Dest, DestKey, External, backend_flags, dest_flags, dest_kind, external_guard, protocol,
};
use weft_policy::{Acceleration, Endpoint, FailureMode, L7, Protocol, Service, ServiceName, ServicePort, Snapshot};

use super::{ForeignCgroups, Tables};

/// A backend before its slot is known: weight relative to the others of its set.
struct Weighted {
    /// `None`: a share of a split that leads nowhere (the service or its port is missing, or nothing listens).
    address: Option<SocketAddr>,
    identity: u32,
    class: u32,
    service: u32,
    weight: f64,
    /// [`backend_flags`]
    flags: u16,
}

/// Adds every service and endpoint of the snapshot.
pub fn fill(snapshot: &Snapshot, foreign: &ForeignCgroups, tables: &mut Tables) {
    for service in snapshot.services.values() {
        add(snapshot, foreign, tables, service);
    }
}

/// Adds one service and its endpoints. To be called in the order in which the snapshot has them.
pub fn add(snapshot: &Snapshot, foreign: &ForeignCgroups, tables: &mut Tables, service: &Service) {
    for vip in [addr(service.vip4.into()), addr(service.vip6.into())] {
        let none = DestKey {
            addr: vip,
            port_be: 0,
            protocol: 0,
            pad: 0,
        };
        tables.dests.insert(
            none,
            Dest {
                kind: dest_kind::NO_PORT,
                ..Dest::default()
            },
        );
    }
    for port in &service.ports {
        add_port(snapshot, tables, service, port);
        add_external(foreign, tables, service, port);
    }
}

/// The service that an endpoint counts for. Of several the one that `weft explain` names: its access policy is its identity's
/// in any case, but not who asks it.
pub fn owner(snapshot: &Snapshot, address: SocketAddr, protocol: Protocol) -> Option<&ServiceName> {
    let owner = snapshot.by_endpoint.get(&(address, protocol))?;
    Some(&owner.service)
}

/// The foreign proxy of a service port, unless its cgroup is not there: then the failure mode holds.
fn add_external(foreign: &ForeignCgroups, tables: &mut Tables, service: &Service, port: &ServicePort) {
    let L7::External { address, cgroup } = &service.l7 else {
        return;
    };
    let Some(cgroup) = foreign.get(cgroup).filter(|_| port.protocol == Protocol::Tcp) else {
        return;
    };
    let both = address.ip().is_loopback();
    let external = External {
        addr4: match address.ip() {
            IpAddr::V4(v4) => addr(v4.into()),
            IpAddr::V6(_) if both => Addr::LOCALHOST_V4,
            IpAddr::V6(_) => Addr::default(),
        },
        addr6: match address.ip() {
            IpAddr::V6(v6) => addr(v6.into()),
            IpAddr::V4(_) if both => Addr::LOCALHOST_V6,
            IpAddr::V4(_) => Addr::default(),
        },
        cgroup: *cgroup,
        port_be: address.port().to_be(),
        pad: [0; 6],
    };
    tables.externals.insert(port.id, external);
    tables.externals.insert(external_guard(external.port_be), external);
}

fn add_port(snapshot: &Snapshot, tables: &mut Tables, service: &Service, port: &ServicePort) {
    let number = protocol_number(port.protocol);
    let policy = policy_flags(service, port);
    let (set4, set6) = (port.id * 2, port.id * 2 + 1);
    let backends = weighted(snapshot, service, port);
    let of = |v6: bool| -> Vec<&Weighted> {
        backends
            .iter()
            .filter(|backend| backend.address.is_none_or(|address| address.is_ipv6() == v6))
            .collect()
    };
    let leads = |set: &[&Weighted]| set.iter().any(|backend| backend.address.is_some());
    let (v4, native) = (of(false), of(true));
    // IPv4 sockets to a service that only IPv6 endpoints serve go through the proxy, which dials for them.
    let only_v6 = service.l7 == L7::Auto && !leads(&v4) && leads(&native);
    let mut flags = policy;
    if port.protocol == Protocol::Tcp && port.proxied.is_some() {
        flags |= dest_flags::PROXIED;
    }
    let network = !snapshot.network.isolation.is_empty();
    let mut parties = backends
        .iter()
        .filter(|backend| backend.address.is_some())
        .map(|backend| (backend.identity, if network { backend.class } else { 0 }));
    let first = parties.next().unwrap_or_default();
    // A foreign proxy is given the backend that was picked, so that one is judged.
    if flags & dest_flags::EXTERNAL == 0 && parties.any(|party| party != first) {
        flags |= dest_flags::MIXED;
    }
    let count4 = fill_set(tables, set4, &v4);
    // An IPv6 socket can reach an IPv4 address in v4-mapped form, not the other way round: one set for both then.
    let (set6, count6) = match leads(&native) {
        true => (set6, fill_set(tables, set6, &native)),
        false => (set4, count4),
    };
    let dest = Dest {
        service: port.id,
        identity: first.0,
        set4,
        count4,
        set6,
        count6,
        class: first.1,
        kind: dest_kind::SERVICE,
        flags,
        pad: [0; 2],
    };
    let for_v4 = Dest {
        flags: if only_v6 { flags | dest_flags::PROXIED } else { flags },
        ..dest
    };
    for (vip, dest) in [(addr(service.vip4.into()), for_v4), (addr(service.vip6.into()), dest)] {
        let key = DestKey {
            addr: vip,
            port_be: port.port.to_be(),
            protocol: number,
            pad: 0,
        };
        tables.dests.insert(key, dest);
    }
    for endpoint in &port.endpoints {
        if owner(snapshot, endpoint.address, port.protocol).is_some_and(|owner| *owner != service.name) {
            continue;
        }
        let (addr, port_be) = address(endpoint.address);
        let key = DestKey {
            addr,
            port_be,
            protocol: number,
            pad: 0,
        };
        tables.dests.entry(key).or_insert(Dest {
            service: port.id,
            identity: endpoint.identity.0,
            class: endpoint.class.0,
            kind: dest_kind::ENDPOINT,
            // Past the name there is no way past the adapters.
            flags: if port.guarded {
                policy | dest_flags::PROXIED
            } else {
                policy
            },
            ..Dest::default()
        });
    }
}

/// The port's own endpoints evenly, or its split's leaves by weight; inside a leaf evenly. The share of a leaf that is
/// missing or has no ready endpoint leads nowhere, as it does per request; all weights zero leave nothing.
fn weighted(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> Vec<Weighted> {
    let mut backends = Vec::new();
    // Also of a port that is split per request: what the kernel picks while the proxy is away. Which requests match it cannot
    // tell; those that do not are the root's own.
    let Some(split) = port.split.as_ref().filter(|split| split.matches.is_empty()) else {
        extend(snapshot, &mut backends, (service, service), port, 1.0);
        return backends;
    };
    for backend in split.backends.iter().filter(|backend| backend.weight > 0) {
        let weight = f64::from(backend.weight);
        let leaf = snapshot.services.get(&backend.service).zip(backend.port);
        match leaf.and_then(|(leaf, index)| Some((leaf, leaf.ports.get(index)?))) {
            Some((to, leaf)) if !leaf.endpoints.is_empty() => {
                extend(snapshot, &mut backends, (service, to), leaf, weight);
            }
            _ => backends.push(Weighted {
                address: None,
                identity: 0,
                class: 0,
                service: port.id,
                weight,
                flags: 0,
            }),
        }
    }
    backends
}

/// Adds the endpoints of a port of a service that is reached by way of another, or by its own.
fn extend(
    snapshot: &Snapshot,
    backends: &mut Vec<Weighted>,
    (root, service): (&Service, &Service),
    port: &ServicePort,
    weight: f64,
) {
    let flags = |identity| {
        let audits = snapshot.access.get(&identity).is_some_and(|policy| policy.audit);
        match (root.sees_requests_to(service), audits) {
            (true, _) => 0,
            (false, false) => backend_flags::UNASKED,
            (false, true) => backend_flags::UNASKED | backend_flags::AUDITED,
        }
    };
    // A workload that listens on both families counts once in each.
    let mut per_family: BTreeMap<bool, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &port.endpoints {
        per_family.entry(endpoint.address.is_ipv6()).or_default().push(endpoint);
    }
    for family in per_family.values() {
        for endpoint in family {
            backends.push(Weighted {
                address: Some(endpoint.address),
                identity: endpoint.identity.0,
                class: endpoint.class.0,
                service: port.id,
                weight: weight / family.len() as f64,
                flags: flags(endpoint.identity),
            });
        }
    }
}

/// Writes a set's alias table (Vose 1991) and returns its size.
fn fill_set(tables: &mut Tables, set: u32, backends: &[&Weighted]) -> u32 {
    let weights: Vec<f64> = backends.iter().map(|backend| backend.weight).collect();
    for (slot, ((threshold, alias), backend)) in alias_table(&weights).into_iter().zip(backends).enumerate() {
        // Port 0 cannot be dialled: the programs refuse there.
        let (addr, port_be) = backend.address.map_or((Addr::UNSPECIFIED_V4, 0), address);
        let value = Backend {
            addr,
            port_be,
            flags: backend.flags,
            identity: backend.identity,
            class: backend.class,
            service: backend.service,
            threshold,
            alias,
        };
        tables.backends.insert(BackendKey { set, slot: slot as u32 }, value);
    }
    backends.len() as u32
}

/// Threshold (keep the slot if a random u32 is at most this) and alias of each slot.
fn alias_table(weights: &[f64]) -> Vec<(u32, u32)> {
    let count = weights.len();
    let total: f64 = weights.iter().sum();
    let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / total * count as f64).collect();
    let mut table: Vec<(u32, u32)> = (0..count).map(|slot| (u32::MAX, slot as u32)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..count).partition(|slot| scaled[*slot] < 1.0);
    while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
        table[less] = ((scaled[less] * f64::from(u32::MAX)) as u32, more as u32);
        scaled[more] -= 1.0 - scaled[less];
        if scaled[more] < 1.0 {
            large.pop();
            small.push(more);
        }
    }
    table
}

fn policy_flags(service: &Service, port: &ServicePort) -> u8 {
    let mut flags = match service.failure_mode {
        Some(FailureMode::Open) => dest_flags::FAIL_OPEN_ROUTE | dest_flags::FAIL_OPEN_ACCESS,
        Some(FailureMode::Closed) => 0,
        // Which rules a foreign proxy has nobody knows here.
        None if matches!(service.l7, L7::External { .. }) => 0,
        // An adapter that cannot be asked refuses, as an access rule does.
        None if port.guarded => 0,
        // Undeclared: an access rule that cannot be asked refuses, a mere route gives way.
        None => dest_flags::FAIL_OPEN_ROUTE,
    };
    match service.l7 {
        L7::External { .. } => flags |= dest_flags::EXTERNAL,
        // A foreign proxy may splice, which misses redirected bytes.
        _ => match service.acceleration {
            Acceleration::Off => {}
            Acceleration::Proxy => flags |= dest_flags::ACCELERATE,
            Acceleration::Full => flags |= dest_flags::ACCELERATE | dest_flags::FULL,
        },
    }
    flags
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    }
}

/// Address and port as they stand in keys.
pub fn address(address: SocketAddr) -> (Addr, u16) {
    (addr(address.ip()), address.port().to_be())
}

/// Address as it stands in keys.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Addr::from_octets(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::alias_table;

    /// Probability of each slot being chosen, from the table.
    fn shares(table: &[(u32, u32)]) -> Vec<f64> {
        let mut shares = vec![0.0; table.len()];
        for (slot, (threshold, alias)) in table.iter().enumerate() {
            let keep = (f64::from(*threshold) + 1.0) / (f64::from(u32::MAX) + 1.0);
            shares[slot] += keep / table.len() as f64;
            shares[*alias as usize] += (1.0 - keep) / table.len() as f64;
        }
        shares
    }

    #[test]
    fn every_backend_gets_its_weight() {
        for weights in [
            vec![90.0, 10.0],
            vec![1.0],
            vec![1.0, 1.0, 1.0],
            vec![50.0, 0.5, 0.5, 99.0, 3.0],
        ] {
            let total: f64 = weights.iter().sum();
            for (share, weight) in shares(&alias_table(&weights)).iter().zip(&weights) {
                assert!(
                    (share - weight / total).abs() < 1e-8,
                    "{weights:?}: {share} for {weight}"
                );
            }
        }
        assert!(alias_table(&[]).is_empty());
    }
}
