//! The DNS server with what it needs of this host.

use std::sync::Arc;

use arc_swap::ArcSwap;
use weft_dataplane::Dataplane;
use weft_policy::Snapshot;

pub async fn start(_: Arc<ArcSwap<Snapshot>>, _: &Dataplane) -> anyhow::Result<()> {
    Ok(())
}
