//! The DNS server with what it needs of this host.

use std::{fs, sync::Arc};

use arc_swap::ArcSwap;
use weft_dataplane::Dataplane;
use weft_policy::Snapshot;
use weft_proxy::dns::{DEFAULT_PORT, DnsConfig, DnsServer, ResolvConf};

/// The system's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Binds and serves, in this thread's network namespace.
pub fn start(snapshot: Arc<ArcSwap<Snapshot>>, dataplane: &Dataplane) -> anyhow::Result<DnsServer> {
    // No file means what an empty one means: the resolver of this machine.
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_else(|error| {
        tracing::warn!(%error, "{RESOLV_CONF} cannot be read; other names than the mesh's are asked of 127.0.0.1");
        String::new()
    });
    let config = DnsConfig { port: DEFAULT_PORT, resolv_conf: ResolvConf::parse(&text) };
    let namespaces = dataplane.namespaces();
    Ok(DnsServer::start(config, snapshot, Arc::new(move |number| namespaces.name(number)))?)
}
