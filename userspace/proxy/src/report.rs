//! Names for flow events, from the numbers that the kernel and the snapshot use.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, sync::Arc, time::SystemTime};

use weft_adapters::{Destination, Flow, FlowEvent, FlowProtocol, FlowVerdict, Peer, Record, Side};
use weft_policy::{Identity, ObjectRef, RuleId, ServiceName, Snapshot};

use crate::{context::ConnContext, worker::Worker};

/// Stands for a name that nobody knows.
const UNKNOWN: &str = "unknown";

/// The calling side of a connection.
fn peer(snapshot: &Snapshot, source: Identity, workload: Option<u64>) -> Peer {
    let workload = workload.and_then(|cgroup| snapshot.by_cgroup.get(&cgroup));
    let account = snapshot.account(source);
    Peer {
        namespace: account
            .map(|account| account.namespace.clone())
            .or_else(|| workload.map(|workload| workload.namespace.to_string()))
            .unwrap_or_else(|| UNKNOWN.to_owned()),
        service: workload.and_then(|workload| workload.service.as_deref().map(str::to_owned)),
        account: account
            .map(|account| account.name.clone())
            .or_else(|| workload.map(|workload| workload.account.to_string()))
            .unwrap_or_else(|| UNKNOWN.to_owned()),
    }
}

/// Calling sides, of one generation of the snapshot: made once for a workload, not once for a connection.
#[derive(Default)]
pub(crate) struct Peers(RefCell<KnownPeers>);

#[derive(Default)]
struct KnownPeers {
    generation: u64,
    of: HashMap<(Identity, Option<u64>), Arc<Peer>>,
}

// === impl Peers ===

impl Peers {
    pub(crate) fn of(&self, snapshot: &Snapshot, context: &ConnContext) -> Arc<Peer> {
        let mut known = self.0.borrow_mut();
        if known.generation != snapshot.generation {
            known.generation = snapshot.generation;
            known.of.clear();
        }
        let (source, workload) = (context.source, context.source_workload);
        let found = known.of.entry((source, workload));
        Arc::clone(found.or_insert_with(|| Arc::new(peer(snapshot, source, workload))))
    }
}

/// A called service, with an endpoint of it or before one is picked.
pub(crate) fn service_destination(
    snapshot: &Snapshot,
    service: &ServiceName,
    address: SocketAddr,
    identity: Option<Identity>,
) -> Arc<Destination> {
    Arc::new(Destination {
        namespace: service.namespace.to_string(),
        service: Some(service.name.to_string()),
        account: identity
            .and_then(|identity| snapshot.account(identity))
            .map(|account| account.name.clone()),
        address: address.ip(),
        port: address.port(),
    })
}

/// Called services by endpoint, of one generation of the snapshot: made once for an endpoint, not once for a request.
#[derive(Default)]
pub(crate) struct Destinations(RefCell<Known>);

#[derive(Default)]
struct Known {
    generation: u64,
    of: HashMap<SocketAddr, Arc<Destination>>,
}

// === impl Destinations ===

impl Destinations {
    /// As [`service_destination`].
    pub(crate) fn of(
        &self,
        snapshot: &Snapshot,
        service: &ServiceName,
        address: SocketAddr,
        identity: Identity,
    ) -> Arc<Destination> {
        let mut known = self.0.borrow_mut();
        if known.generation != snapshot.generation {
            known.generation = snapshot.generation;
            known.of.clear();
        }
        // An endpoint may be one of several services.
        let is_it = |found: &&Arc<Destination>| {
            found.service.as_deref() == Some(&*service.name) && *found.namespace == *service.namespace
        };
        if let Some(found) = known.of.get(&address).filter(is_it) {
            return Arc::clone(found);
        }
        let made = service_destination(snapshot, service, address, Some(identity));
        known.of.insert(address, Arc::clone(&made));
        made
    }
}

/// A workload's port that no service leads to.
pub(crate) fn workload_destination(snapshot: &Snapshot, address: SocketAddr, identity: Identity) -> Arc<Destination> {
    let account = snapshot.account(identity);
    Arc::new(Destination {
        namespace: account.map_or_else(|| UNKNOWN.to_owned(), |account| account.namespace.clone()),
        service: None,
        account: account.map(|account| account.name.clone()),
        address: address.ip(),
        port: address.port(),
    })
}

/// An address of no service, or of one that is gone.
pub(crate) fn bare_destination(address: SocketAddr) -> Arc<Destination> {
    Arc::new(Destination {
        namespace: UNKNOWN.to_owned(),
        service: None,
        account: None,
        address: address.ip(),
        port: address.port(),
    })
}

/// Both ends of a refusal in one line: `default/client to default/web`.
pub(crate) fn from_to(peer: &Peer, destination: &Destination) -> String {
    match &destination.service {
        Some(service) => {
            format!(
                "from {}/{} to {}/{service}",
                peer.namespace, peer.account, destination.namespace
            )
        }
        None => format!(
            "from {}/{} to {}",
            peer.namespace,
            peer.account,
            SocketAddr::new(destination.address, destination.port)
        ),
    }
}

/// What a rule says that refuses, for responses and flow events.
pub(crate) fn deny_words(rule: Option<&ObjectRef>, destination: &Destination) -> String {
    match rule {
        Some(rule) if rule.kind == "MeshConfig" && destination.account.is_none() && destination.service.is_none() => {
            format!("the destination is outside the mesh ({rule}: outboundDefault deny)")
        }
        Some(rule) if rule.kind == "MeshConfig" => format!("no TrafficTarget allows it ({rule}: accessDefault deny)"),
        Some(rule) if rule.kind == "NetworkPolicy" => format!("no NetworkPolicy allows it ({rule} isolates)"),
        Some(rule) => format!("{rule} allows other requests only"),
        None => "no rule allows it".to_owned(),
    }
}

/// What is said of something that is audited: `why` it would be denied.
pub(crate) fn audit_words(why: &str) -> String {
    format!("let through and reported (audit): {why}")
}

/// The object behind a rule number.
pub(crate) fn rule_object(snapshot: &Snapshot, rule: Option<RuleId>) -> Option<Arc<ObjectRef>> {
    rule.and_then(|rule| snapshot.rule(rule)).cloned()
}

/// An adapter, named as the rule that decided.
pub(crate) fn adapter(name: &str) -> Arc<ObjectRef> {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.into()), name),
        None => (None, name),
    };
    Arc::new(ObjectRef {
        kind: "Adapter".into(),
        namespace,
        name: name.into(),
    })
}

/// Tells the reporters of an opaque connection's event.
#[derive(Clone)]
pub(crate) struct TcpFlow {
    pub(crate) source: Arc<Peer>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) rule: Option<Arc<ObjectRef>>,
}

// === impl TcpFlow ===

impl TcpFlow {
    pub(crate) fn tell(
        &self,
        worker: &Worker,
        event: FlowEvent,
        verdict: FlowVerdict,
        reason: String,
        bytes: (u64, u64),
    ) {
        worker.reporter.record(Record::Flow(Arc::new(Flow {
            time: SystemTime::now(),
            event,
            reporter: Side::Proxy,
            verdict,
            reason: reason.into(),
            rule: self.rule.clone(),
            source: Arc::clone(&self.source),
            destination: Arc::clone(&self.destination),
            protocol: FlowProtocol::Tcp,
            l7: None,
            bytes_sent: bytes.0,
            bytes_received: bytes.1,
            rtt_us: None,
            errno: None,
        })));
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::Account;

    use super::*;

    #[test]
    fn a_destination_is_that_of_its_service_and_generation() {
        let named = |name: &str| ServiceName {
            namespace: "default".into(),
            name: name.into(),
        };
        let snapshot = |generation, account: &str| {
            let account = Account {
                namespace: "default".into(),
                name: account.into(),
            };
            Snapshot {
                generation,
                accounts: [(Identity::FIRST, account)].into_iter().collect(),
                ..Snapshot::default()
            }
        };
        let destinations = Destinations::default();
        let address = ([127, 0, 0, 1], 80).into();
        let of = |snapshot: &Snapshot, name: &str| destinations.of(snapshot, &named(name), address, Identity::FIRST);
        let (first, second) = (snapshot(1, "old"), snapshot(2, "new"));
        assert!(Arc::ptr_eq(&of(&first, "a"), &of(&first, "a")));
        assert_eq!(of(&first, "b").service.as_deref(), Some("b"));
        assert_eq!(of(&first, "a").account.as_deref(), Some("old"));
        assert_eq!(of(&second, "a").account.as_deref(), Some("new"));
    }
}
