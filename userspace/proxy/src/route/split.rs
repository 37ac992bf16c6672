//! TrafficSplit: by weight, a request or a connection at a time.

use std::sync::Arc;

use weft_policy::{HttpRequestView, Service, Snapshot, Split};

use super::Backend;
use crate::{balance::Random, error::DataError};

/// The service port that serves a call to port number `port` (an index) of `service`.
///
/// `request` is `None` for an opaque connection: a split with matches speaks of requests only, and does not concern it.
///
/// # Errors
/// The split has no backend (all weights zero), or the one drawn does not exist: its share fails, visibly, instead of
/// going to backends that were given less.
pub fn backend<'s>(
    snapshot: &'s Snapshot,
    service: &'s Arc<Service>,
    port: usize,
    request: Option<&dyn HttpRequestView>,
    random: &Random,
) -> Result<Backend<'s>, DataError> {
    let unknown = || DataError::PortUnknown {
        service: service.name.clone(),
        port: 0,
    };
    let called = service.ports.get(port).ok_or_else(unknown)?;
    let Some(split) = called.split.as_ref().filter(|split| concerns(split, request)) else {
        return Backend::new(service, port, None).ok_or_else(unknown);
    };
    let total: u64 = split.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let mut drawn = random.below(total);
    for backend in &split.backends {
        let weight = u64::from(backend.weight);
        if drawn < weight {
            return snapshot
                .services
                .get(&backend.service)
                .zip(backend.port)
                .and_then(|(service, port)| Backend::new(service, port, Some(&split.object)))
                .ok_or_else(|| DataError::BackendMissing {
                    split: split.object.clone(),
                    backend: backend.service.clone(),
                });
        }
        drawn -= weight;
    }
    Err(DataError::NoBackend {
        split: split.object.clone(),
    })
}

fn concerns(split: &Split, request: Option<&dyn HttpRequestView>) -> bool {
    split.matches.is_empty() || request.is_some_and(|request| split.matches.iter().any(|m| m.matches(request)))
}
