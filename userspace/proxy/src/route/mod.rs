//! Where a connection or a request goes: from what the client dialled, and what the snapshot says now.

mod split;

use std::{net::SocketAddr, sync::Arc};

use ipnet::IpNet;
use weft_policy::{
    AppProtocol, EndpointOwner, Identity, ObjectRef, Protocol, Service, ServiceName, ServicePort, Snapshot, Verdict,
};

pub use split::backend;

use crate::error::DataError;

/// What the original destination is, under one snapshot.
#[derive(Debug, Clone)]
pub enum Target {
    /// A virtual IP: any endpoint of this port may serve it.
    Service { service: Arc<Service>, port: usize },
    /// An endpoint's own address: exactly that one, under the same access rules.
    Endpoint(EndpointOwner),
    /// A port of a workload at an address that is no endpoint: the workload's access rules hold there too, and whatever guards
    /// the service that leads to that port elsewhere.
    Workload {
        address: SocketAddr,
        identity: Identity,
        guarded: Option<ServiceName>,
    },
    /// Not of the mesh.
    Outside(SocketAddr),
}

/// A service port that requests go to, after splits.
#[derive(Debug, Clone, Copy)]
pub struct Backend<'s> {
    pub service: &'s Arc<Service>,
    /// One of its own.
    pub port: &'s ServicePort,
    /// The TrafficSplit that chose it.
    pub split: Option<&'s Arc<ObjectRef>>,
}

/// What a client dialled.
#[derive(Debug, Clone, Copy)]
pub struct Dialled {
    /// v4-mapped addresses already made IPv4.
    pub address: SocketAddr,
    /// Whom the kernel took it for: it alone knows that an address beyond loopback is this machine's.
    pub destination: Identity,
    /// It is on the loopback of a pod's own namespace: what the snapshot says of that address is about another machine, as
    /// it were.
    pub pods_loopback: bool,
}

/// What is known about a destination's protocol before a byte was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Never parsed.
    Opaque,
    /// Declared to be HTTP, or nothing else is allowed there: the client speaks first.
    Http,
    /// A route speaks of its requests, but nobody declared it.
    Inferred,
    /// To be detected.
    Unknown,
}

// === impl Backend ===

impl<'s> Backend<'s> {
    /// `None` if the service has no such port.
    pub fn new(service: &'s Arc<Service>, port: usize, split: Option<&'s Arc<ObjectRef>>) -> Option<Self> {
        let port = service.ports.get(port)?;
        Some(Self { service, port, split })
    }
}

// === impl Dialled ===

impl Dialled {
    /// The endpoint that the snapshot has there.
    fn endpoint(self, snapshot: &Snapshot) -> Option<&EndpointOwner> {
        if self.pods_loopback {
            return None;
        }
        snapshot.by_endpoint.get(&(self.address, Protocol::Tcp))
    }

    /// Whose port it is, by the snapshot, else by what the kernel said.
    fn workload(self, snapshot: &Snapshot) -> Option<Identity> {
        let listens = if self.pods_loopback {
            None
        } else {
            snapshot.listener(self.address, Protocol::Tcp)
        };
        let listens = listens.map(|found| found.identity);
        listens.or((self.destination >= Identity::FIRST).then_some(self.destination))
    }

    /// The guarded service port that leads there, though by another address.
    fn guard(self, snapshot: &Snapshot) -> Option<(&Arc<Service>, usize)> {
        snapshot.guard(self.workload(snapshot)?, self.address.port())
    }
}

/// What is meant by what was dialled, under `snapshot`.
///
/// # Errors
/// A virtual IP without a service or without that port.
pub fn target(snapshot: &Snapshot, dialled: Dialled, virtual_ranges: &[IpNet]) -> Result<Target, DataError> {
    let original = dialled.address;
    if let Some(service) = snapshot.vip(original.ip()) {
        return match service.port(original.port(), Protocol::Tcp) {
            Some((port, _)) => Ok(Target::Service {
                service: Arc::clone(service),
                port,
            }),
            None => Err(DataError::PortUnknown {
                service: service.name.clone(),
                port: original.port(),
            }),
        };
    }
    if let Some(owner) = dialled.endpoint(snapshot) {
        return Ok(Target::Endpoint(owner.clone()));
    }
    if let Some(identity) = dialled.workload(snapshot) {
        return Ok(Target::Workload {
            address: original,
            identity,
            guarded: dialled.guard(snapshot).map(|(service, _)| service.name.clone()),
        });
    }
    if virtual_ranges.iter().any(|range| range.contains(&original.ip())) {
        return Err(DataError::ServiceUnknown { address: original });
    }
    Ok(Target::Outside(original))
}

/// What is known about the protocol of what was dialled before a byte was read, for a connection of `source`.
pub fn hint(snapshot: &Snapshot, dialled: Dialled, source: Identity) -> Hint {
    let original = dialled.address;
    let (port, alone) = match snapshot.vip(original.ip()) {
        Some(service) => (service.port(original.port(), Protocol::Tcp).map(|(_, port)| port), None),
        None => match dialled.endpoint(snapshot) {
            Some(owner) => {
                let service = snapshot.services.get(&owner.service);
                (
                    service.and_then(|service| service.ports.get(owner.port)),
                    Some(owner.endpoint.identity),
                )
            }
            None => {
                let guard = dialled.guard(snapshot);
                (
                    guard.and_then(|(service, port)| service.ports.get(port)),
                    dialled.workload(snapshot),
                )
            }
        },
    };
    match port {
        Some(port) if port.app == AppProtocol::Opaque => return Hint::Opaque,
        Some(port) if port.app.is_http() => return Hint::Http,
        _ => {}
    }
    let inferred = port.is_some_and(|port| port.http);
    // Where nothing but HTTP is allowed, a client that takes its time is no server-first protocol.
    let needs_http = |identity, port| {
        snapshot
            .authorize_connection(source, identity, Protocol::Tcp, port)
            .verdict
            == Verdict::NeedsHttp
    };
    let only_http = match (alone, port) {
        (Some(identity), _) => needs_http(identity, original.port()),
        (None, Some(port)) => port
            .endpoints
            .iter()
            .any(|endpoint| needs_http(endpoint.identity, endpoint.address.port())),
        (None, None) => false,
    };
    match (only_http, inferred) {
        (true, _) => Hint::Http,
        (false, true) => Hint::Inferred,
        (false, false) => Hint::Unknown,
    }
}

/// What adapters must look at there, or it does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Requests,
    /// The port is declared not to be HTTP.
    Bytes,
}

/// What must be looked at there; `None`: nothing.
pub fn guard(snapshot: &Snapshot, dialled: Dialled) -> Option<Guard> {
    let port = port(snapshot, dialled).filter(|port| port.guarded)?;
    Some(match port.app {
        AppProtocol::Opaque => Guard::Bytes,
        _ => Guard::Requests,
    })
}

fn port(snapshot: &Snapshot, dialled: Dialled) -> Option<&ServicePort> {
    match snapshot.vip(dialled.address.ip()) {
        Some(service) => service
            .port(dialled.address.port(), Protocol::Tcp)
            .map(|(_, port)| port),
        None => {
            let (service, port) = match dialled.endpoint(snapshot) {
                Some(owner) => (snapshot.services.get(&owner.service)?, owner.port),
                None => dialled.guard(snapshot)?,
            };
            service.ports.get(port)
        }
    }
}

/// The client's side of an address: v4-mapped IPv6 becomes IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
