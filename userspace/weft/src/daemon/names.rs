//! Numbers of the kernel as the names that events and metrics carry.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use weft_abi::EdgeKey;
use weft_adapters::{Destination, Peer};
use weft_policy::{Identity, ObjectRef, ObjectStatus, RuleId, Service, ServiceName, Snapshot};

use super::engine::InForce;

/// Stands in the names of a client or server that is not captured.
pub const UNKNOWN: &str = "unknown";
/// Source of the connections that our proxy makes to servers. Without namespace, as no service can be.
pub const PROXY: &str = "weft-proxy";
/// Both ends of what the kernel's table of edges had no room for.
pub const OVERFLOW: &str = "overflow";

/// Peers, and as many destinations, that are kept once named; one more, and all are named anew as they come. More: up to 300
/// bytes each for as long as a policy is in force, where clients dial ever other addresses.
const NAMES_KEPT: usize = 1_024;

/// The name of an identity that is no workload's but has one.
fn special(identity: u32) -> Option<&'static str> {
    match identity {
        weft_abi::identity::PROXY => Some(PROXY),
        EdgeKey::OVERFLOW => Some(OVERFLOW),
        _ => None,
    }
}

/// Names made under one policy: connections are between the same few again and again.
#[derive(Debug, Default)]
pub struct Named {
    peers: Kept<Who, Peer>,
    destinations: Kept<Target, Destination>,
}

/// Of whom a name is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Identity(u32),
    Cgroup(u64),
}

/// A destination as the kernel saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Target {
    service: u32,
    identity: u32,
    address: IpAddr,
    port: u16,
}

#[derive(Debug)]
struct Kept<K, V>(Mutex<HashMap<K, Arc<V>>>);

// === impl Kept ===

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Kept<K, V> {
    /// What is kept of it, else what `name` makes, which is kept from now on.
    fn get_or(&self, key: K, name: impl FnOnce() -> V) -> Arc<V> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&key) {
            return Arc::clone(known);
        }
        let named = Arc::new(name());
        if kept.len() >= NAMES_KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&named));
        named
    }
}

// === impl InForce ===

impl InForce {
    /// The peer that an identity stands for; its service is not known by identity alone.
    pub fn peer(&self, identity: u32) -> Arc<Peer> {
        self.named.peers.get_or(Who::Identity(identity), || {
            if let Some(name) = special(identity) {
                return Peer {
                    namespace: String::new(),
                    service: Some(name.to_owned()),
                    account: UNKNOWN.to_owned(),
                };
            }
            let (namespace, account) = match self.snapshot.account(Identity(identity)) {
                Some(account) => (account.namespace.clone(), account.name.clone()),
                None => (UNKNOWN.to_owned(), UNKNOWN.to_owned()),
            };
            Peer {
                namespace,
                service: None,
                account,
            }
        })
    }

    /// The workload whose cgroup it is.
    pub fn peer_in(&self, cgroup: u64) -> Option<Arc<Peer>> {
        let workload = self.snapshot.by_cgroup.get(&cgroup)?;
        Some(self.named.peers.get_or(Who::Cgroup(cgroup), || Peer {
            namespace: workload.namespace.to_string(),
            service: workload.service.as_deref().map(str::to_owned),
            account: workload.account.to_string(),
        }))
    }

    /// The destination as the kernel saw it: service port, identity, and the address that was dialled.
    pub fn destination(&self, service: u32, identity: u32, address: IpAddr, port: u16) -> Arc<Destination> {
        let target = Target {
            service,
            identity,
            address,
            port,
        };
        self.named.destinations.get_or(target, || self.name(target))
    }

    fn name(&self, target: Target) -> Destination {
        let Target {
            service,
            identity,
            address,
            port,
        } = target;
        if identity == EdgeKey::OVERFLOW {
            return Destination {
                namespace: String::new(),
                service: Some(OVERFLOW.to_owned()),
                account: None,
                address,
                port,
            };
        }
        let account = self.snapshot.account(Identity(identity));
        let service = self.ports.get(&service).map(|(name, _)| name.clone());
        Destination {
            namespace: service
                .as_ref()
                .map(|service| service.namespace.to_string())
                .or_else(|| account.map(|account| account.namespace.clone()))
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            service: service.map(|service| service.name.to_string()),
            account: account.map(|account| account.name.clone()),
            address,
            port,
        }
    }

    /// The object behind a rule number; 0 is none.
    pub fn rule(&self, rule: u32) -> Option<Arc<ObjectRef>> {
        self.snapshot.rule(RuleId(rule)).cloned()
    }

    /// What is known of an object.
    pub fn status(&self, object: &ObjectRef) -> Option<&ObjectStatus> {
        self.snapshot.statuses.get(self.snapshot.status_index(object)?)
    }

    /// [`InForce::ports`] of the snapshot after this one: the same where no port came or went, which most changes leave as they are.
    pub fn ports_of(&self, now: &Snapshot) -> Arc<HashMap<u32, (ServiceName, usize)>> {
        let before = &self.snapshot.services;
        if before.len() == now.services.len() && before.values().zip(now.services.values()).all(has_same_ports) {
            return Arc::clone(&self.ports);
        }
        let ports = now.services.values().flat_map(|service| {
            let ports = service.ports.iter().enumerate();
            ports.map(|(index, port)| (port.id, (service.name.clone(), index)))
        });
        Arc::new(ports.collect())
    }
}

fn has_same_ports((before, now): (&Arc<Service>, &Arc<Service>)) -> bool {
    let ids = before.ports.iter().map(|port| port.id);
    Arc::ptr_eq(before, now) || (before.name == now.name && ids.eq(now.ports.iter().map(|port| port.id)))
}

#[cfg(test)]
mod tests {
    use weft_policy::{Allocations, CompileInput, Store, compile};

    use super::*;

    /// Services with these ports.
    fn snapshot(allocations: &mut Allocations, services: &[(&str, &[u16])]) -> Snapshot {
        let mut store = Store::default();
        for (name, ports) in services {
            let ports = ports.iter().map(|port| format!("{{name: p{port}, port: {port}}}"));
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{}]}}\n",
                ports.collect::<Vec<_>>().join(", ")
            );
            store.apply_file(name, text.as_bytes());
        }
        let input = CompileInput::of(&store);
        compile(&input, allocations).snapshot
    }

    #[test]
    fn names_are_made_once_under_a_policy_however_many_are_asked_for() {
        let mut allocations = Allocations::default();
        let named = InForce {
            snapshot: Arc::new(snapshot(&mut allocations, &[])),
            ..InForce::default()
        };
        let address = |host: u32| IpAddr::from(std::net::Ipv4Addr::from(0xc0a8_0000 + host));
        let first = named.destination(0, 1, address(1), 80);
        assert!(Arc::ptr_eq(&first, &named.destination(0, 1, address(1), 80)));
        assert!(Arc::ptr_eq(&named.peer(1), &named.peer(1)));
        for (other, what) in [
            (named.destination(0, 1, address(1), 81), "port"),
            (named.destination(0, 1, address(2), 80), "address"),
            (named.destination(0, EdgeKey::OVERFLOW, address(1), 80), "identity"),
        ] {
            assert_ne!(other, first, "{what}");
        }
        // A scan of a whole network.
        for host in 0..3 * NAMES_KEPT as u32 {
            assert_eq!(named.destination(0, 1, address(host), 80).address, address(host));
        }
        assert!(named.named.destinations.0.lock().expect("no panic").len() <= NAMES_KEPT);
    }

    #[test]
    fn names_of_ports_are_made_anew_where_ports_came_or_went() {
        let mut allocations = Allocations::default();
        let mut of = |services: &[(&str, &[u16])]| snapshot(&mut allocations, services);
        let first = of(&[("kept", &[80]), ("web", &[80, 81])]);
        let before = InForce {
            ports: InForce::default().ports_of(&first),
            snapshot: Arc::new(first),
            ..InForce::default()
        };
        assert_eq!(before.ports.len(), 3);
        let same = before.ports_of(&of(&[("kept", &[80]), ("web", &[80, 81])]));
        assert!(Arc::ptr_eq(&same, &before.ports), "its ports are the same");
        for now in [
            of(&[("kept", &[80]), ("web", &[80])]),
            of(&[("kept", &[80]), ("web", &[82, 81])]),
            of(&[("api", &[80, 81]), ("kept", &[80])]),
            of(&[("kept", &[80])]),
            of(&[]),
        ] {
            let ports = before.ports_of(&now);
            let mut expect = HashMap::new();
            for service in now.services.values() {
                for (index, port) in service.ports.iter().enumerate() {
                    expect.insert(port.id, (service.name.clone(), index));
                }
            }
            assert_eq!(*ports, expect);
        }
    }
}
