//! The verdict on one endpoint: network (who connects, by labels and addresses) and access (by account). Both must allow.
//!
//! The network dimension is judged anew for each request and each snapshot, as access is: labels may change meanwhile.

use weft_policy::{Class, Decision, HttpRequestView, Protocol, Snapshot};

use crate::{conn::Conn, pick::Picked};

/// On a request.
pub(crate) fn request(conn: &Conn, picked: &Picked, request: &dyn HttpRequestView) -> Decision {
    let snapshot = &picked.snapshot;
    network(conn, picked, snapshot).and(snapshot.authorize_request(
        conn.context.source,
        picked.identity,
        picked.address.port(),
        request,
    ))
}

/// The same of all requests alike; `None`: it depends on what is asked.
pub(crate) fn all_requests(conn: &Conn, picked: &Picked) -> Option<Decision> {
    let snapshot = &picked.snapshot;
    let access = snapshot.authorize_all_requests(conn.context.source, picked.identity, picked.address.port())?;
    Some(network(conn, picked, snapshot).and(access))
}

/// On a connection that does not carry HTTP, under `snapshot`, which may be a later one than it was picked under.
pub(crate) fn opaque(conn: &Conn, picked: &Picked, snapshot: &Snapshot) -> Decision {
    network(conn, picked, snapshot).and(snapshot.authorize_opaque(
        conn.context.source,
        picked.identity,
        picked.address.port(),
    ))
}

fn network(conn: &Conn, picked: &Picked, snapshot: &Snapshot) -> Decision {
    if snapshot.network.isolation.is_empty() {
        return Decision::UNRESTRICTED;
    }
    let destination = snapshot.class_of_destination(picked.address, Protocol::Tcp, picked.identity);
    snapshot.authorize_network(
        source(conn, snapshot),
        destination,
        Protocol::Tcp,
        picked.address.port(),
    )
}

/// The workload that dialled, else whoever has the address that the connection came from.
fn source(conn: &Conn, snapshot: &Snapshot) -> Class {
    let workload = conn.context.source_workload;
    workload
        .and_then(|cgroup| snapshot.class_of_workload_cgroup(cgroup))
        .unwrap_or_else(|| snapshot.class_of_address(conn.peer.ip()))
}
