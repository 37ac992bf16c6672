//! Numbers of the kernel as the names that events and metrics carry.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

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

/// The name of an identity that is no workload's but has one.
fn special(identity: u32) -> Option<&'static str> {
    match identity {
        weft_abi::identity::PROXY => Some(PROXY),
        EdgeKey::OVERFLOW => Some(OVERFLOW),
        _ => None,
    }
}

impl InForce {
    /// The peer that an identity stands for; its service is not known by identity alone.
    pub fn peer(&self, identity: u32) -> Arc<Peer> {
        if let Some(name) = special(identity) {
            return Arc::new(Peer {
                namespace: String::new(),
                service: Some(name.to_owned()),
                account: UNKNOWN.to_owned(),
            });
        }
        let (namespace, account) = match self.snapshot.account(Identity(identity)) {
            Some(account) => (account.namespace.clone(), account.name.clone()),
            None => (UNKNOWN.to_owned(), UNKNOWN.to_owned()),
        };
        Arc::new(Peer {
            namespace,
            service: None,
            account,
        })
    }

    /// The workload whose cgroup it is.
    pub fn peer_in(&self, cgroup: u64) -> Option<Arc<Peer>> {
        let workload = self.snapshot.by_cgroup.get(&cgroup)?;
        Some(Arc::new(Peer {
            namespace: workload.namespace.to_string(),
            service: workload.service.as_deref().map(str::to_owned),
            account: workload.account.to_string(),
        }))
    }

    /// The destination as the kernel saw it: service port, identity, and the address that was dialled.
    pub fn destination(&self, service: u32, identity: u32, address: IpAddr, port: u16) -> Arc<Destination> {
        if identity == EdgeKey::OVERFLOW {
            return Arc::new(Destination {
                namespace: String::new(),
                service: Some(OVERFLOW.to_owned()),
                account: None,
                address,
                port,
            });
        }
        let account = self.snapshot.account(Identity(identity));
        let service = self.ports.get(&service).map(|(name, _)| name.clone());
        Arc::new(Destination {
            namespace: service
                .as_ref()
                .map(|service| service.namespace.to_string())
                .or_else(|| account.map(|account| account.namespace.clone()))
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            service: service.map(|service| service.name.to_string()),
            account: account.map(|account| account.name.clone()),
            address,
            port,
        })
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
