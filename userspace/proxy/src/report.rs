//! Names for flow events, from the numbers that the kernel and the snapshot use.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use weft_adapters::{Destination, Flow, FlowEvent, FlowProtocol, FlowVerdict, Peer, Record, Side};
use weft_policy::{Identity, ObjectRef, RuleId, ServiceName, Snapshot};

use crate::{context::ConnContext, worker::Worker};

/// Stands for a name that nobody knows.
const UNKNOWN: &str = "unknown";

/// The calling side of a connection.
pub(crate) fn peer(snapshot: &Snapshot, context: &ConnContext) -> Arc<Peer> {
    let workload = context
        .source_workload
        .and_then(|cgroup| snapshot.by_cgroup.get(&cgroup));
    let account = snapshot.account(context.source);
    Arc::new(Peer {
        namespace: account
            .map(|account| account.namespace.clone())
            .or_else(|| workload.map(|workload| workload.namespace.clone()))
            .unwrap_or_else(|| UNKNOWN.to_owned()),
        service: workload.and_then(|workload| workload.service.clone()),
        account: account
            .map(|account| account.name.clone())
            .or_else(|| workload.map(|workload| workload.account.clone()))
            .unwrap_or_else(|| UNKNOWN.to_owned()),
    })
}

/// A called service, with an endpoint of it or before one is picked.
pub(crate) fn service_destination(
    snapshot: &Snapshot,
    service: &ServiceName,
    address: SocketAddr,
    identity: Option<Identity>,
) -> Arc<Destination> {
    Arc::new(Destination {
        namespace: service.namespace.clone(),
        service: Some(service.name.clone()),
        account: identity
            .and_then(|identity| snapshot.account(identity))
            .map(|account| account.name.clone()),
        address: address.ip(),
        port: address.port(),
    })
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
pub(crate) fn rule_object(snapshot: &Snapshot, rule: Option<RuleId>) -> Option<ObjectRef> {
    rule.and_then(|rule| snapshot.rule(rule)).cloned()
}

/// An adapter, named as the rule that decided.
pub(crate) fn adapter(name: &str) -> ObjectRef {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, name),
    };
    ObjectRef {
        kind: "Adapter".into(),
        namespace,
        name: name.into(),
    }
}

/// Tells the reporters of an opaque connection's event.
#[derive(Clone)]
pub(crate) struct TcpFlow {
    pub(crate) source: Arc<Peer>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) rule: Option<ObjectRef>,
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
            reason,
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
