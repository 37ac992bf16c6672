//! Names by which filters call upstreams.

use std::sync::Arc;

use weft_policy::{Protocol, Service, ServiceName, Snapshot};

/// Where a name may end in the words of the mesh or of Kubernetes: it means the same without them.
const SUFFIXES: [&str; 3] = [".svc.cluster.local", ".svc", ".mesh"];

/// A service's port that a name means.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) service: Arc<Service>,
    /// Index into [`Service::ports`], valid.
    pub(super) port: usize,
}

// === impl Named ===

impl Named {
    /// Looks `name` up: `NAME[.NAMESPACE[.mesh|.svc|.svc.cluster.local]][:PORT]`, or as Istio names clusters,
    /// `outbound|PORT|SUBSET|HOST` (the subset says nothing here). Without a namespace that of the adapter is meant, without
    /// a port the service's first TCP port.
    pub(super) fn find(name: &str, namespace: &str, snapshot: &Snapshot) -> Option<Self> {
        let (host, port) = split(name)?;
        let host = SUFFIXES
            .iter()
            .find_map(|suffix| host.strip_suffix(suffix))
            .unwrap_or(host);
        let (name, namespace) = host.split_once('.').unwrap_or((host, namespace));
        let service = snapshot.services.get(&ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        })?;
        let port = match port {
            Some(port) => service.port(port, Protocol::Tcp)?.0,
            None => service.ports.iter().position(|port| port.protocol == Protocol::Tcp)?,
        };
        Some(Self {
            service: Arc::clone(service),
            port,
        })
    }
}

/// Host and port.
fn split(name: &str) -> Option<(&str, Option<u16>)> {
    if let Some(cluster) = name.strip_prefix("outbound|") {
        let mut parts = cluster.split('|');
        let (port, _subset, host) = (parts.next()?, parts.next()?, parts.next()?);
        return parts.next().is_none().then_some((host, Some(port.parse().ok()?)));
    }
    match name.split_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((name, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_host_and_port() {
        for (name, expect) in [
            ("web", Some(("web", None))),
            ("web.shop:8080", Some(("web.shop", Some(8080)))),
            (
                "outbound|80||web.shop.svc.cluster.local",
                Some(("web.shop.svc.cluster.local", Some(80))),
            ),
            ("outbound|80|v1|web.shop.mesh", Some(("web.shop.mesh", Some(80)))),
            ("outbound|80|web", None),
            ("web:http", None),
            ("web:80:80", None),
            ("web:70000", None),
        ] {
            assert_eq!(split(name), expect, "{name}");
        }
    }
}
