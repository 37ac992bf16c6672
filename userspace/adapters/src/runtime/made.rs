//! Chains that are kept as long as they would be made the same again: in a large mesh they are of services by the thousand, of which
//! a change touches one.

use std::sync::Arc;

use weft_policy::{Adapter, Service, ServiceName, Snapshot};

use crate::chain::Chains;

/// Chains, and the snapshot's part that they were made of.
#[derive(Debug)]
pub(super) struct MadeChains {
    adapters: Vec<Arc<Adapter>>,
    services: Vec<Arc<Service>>,
    pub chains: Arc<Chains>,
}

// === impl MadeChains ===

impl MadeChains {
    pub fn of(snapshot: &Snapshot, chains: Arc<Chains>) -> Self {
        Self {
            adapters: snapshot.adapters.clone(),
            services: snapshot.services.values().cloned().collect(),
            chains,
        }
    }

    /// Whether the very same adapters look at the same services, with the same splits between these. That each adapter is made as it
    /// was is not asked.
    pub fn fit(&self, snapshot: &Snapshot) -> bool {
        let same = |(a, b): (&Arc<Adapter>, &Arc<Adapter>)| Arc::ptr_eq(a, b);
        self.adapters.len() == snapshot.adapters.len()
            && self.services.len() == snapshot.services.len()
            && self.adapters.iter().zip(&snapshot.adapters).all(same)
            && self.services.iter().zip(snapshot.services.values()).all(split_alike)
    }
}

fn split_alike((a, b): (&Arc<Service>, &Arc<Service>)) -> bool {
    Arc::ptr_eq(a, b) || (a.name == b.name && leaves(a).eq(leaves(b)))
}

fn leaves(service: &Service) -> impl Iterator<Item = &ServiceName> {
    let splits = service.ports.iter().filter_map(|port| port.split.as_ref());
    splits.flat_map(|split| split.backends.iter().map(|backend| &backend.service))
}
