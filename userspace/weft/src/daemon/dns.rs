//! The DNS server with what it needs of this host.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::time::{MissedTickBehavior, interval};
use weft_dataplane::Dataplane;
use weft_policy::Snapshot;
use weft_proxy::dns::{DEFAULT_PORT, DnsServer, DnsSockets, ResolvConf};

use super::hand_over::{Sockets, names};

/// The system's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often it is looked at again: DHCP clients and VPNs change it.
const LOOK: Duration = Duration::from_secs(5);

/// Binds, in this thread's network namespace, what no earlier daemon passed, and serves.
pub fn start(
    inherited: &mut Sockets,
    ours: &mut Sockets,
    snapshot: Arc<ArcSwap<Snapshot>>,
    dataplane: &Dataplane,
    registry: &Mutex<Registry>,
) -> anyhow::Result<DnsServer> {
    // No file means what an empty one means: the resolver of this machine.
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_else(|error| {
        tracing::warn!(%error, "{RESOLV_CONF} cannot be read; other names than the mesh's are asked of 127.0.0.1");
        String::new()
    });
    let mut opened = DnsSockets {
        tcp: inherited.take(names::DNS_TCP),
        udp: inherited.take(names::DNS_UDP),
    };
    if opened.tcp.is_empty() {
        opened = DnsSockets::open(DEFAULT_PORT)?;
    }
    for listener in &opened.tcp {
        ours.add_copy(names::DNS_TCP, listener)?;
    }
    for socket in &opened.udp {
        ours.add_copy(names::DNS_UDP, socket)?;
    }
    let namespaces = dataplane.namespaces();
    let server = DnsServer::start_on(
        opened,
        ResolvConf::parse(&text),
        snapshot,
        Arc::new(move |number| namespaces.name(number)),
    )?;
    server
        .metrics()
        .register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(server)
}

/// Tells the server when the system's resolvers change. Runs until it is dropped.
pub async fn follow(server: Arc<DnsServer>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        ticks.tick().await;
        // One that cannot be read now (it is being replaced) changes nothing.
        let Ok(text) = tokio::fs::read_to_string(RESOLV_CONF).await else {
            continue;
        };
        if last.as_ref() != Some(&text) {
            server.set_resolv_conf(ResolvConf::parse(&text));
            last = Some(text);
        }
    }
}
