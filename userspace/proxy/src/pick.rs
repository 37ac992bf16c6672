//! From an original destination to one endpoint, waiting for it where its workload is starting.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use weft_adapters::{Chain, Destination};
use weft_policy::{HttpRequestView, Identity, ObjectRef, ServiceName};

use crate::{
    error::DataError,
    report,
    route::{self, Dialled, Target},
    watch::InForce,
    worker::Worker,
};

/// Where to connect to, and what is needed to judge and report it.
#[derive(Clone)]
pub(crate) struct Picked {
    /// Under which the whole decision was and will be taken.
    pub(crate) snapshot: Arc<InForce>,
    pub(crate) address: SocketAddr,
    pub(crate) identity: Identity,
    pub(crate) destination: Arc<Destination>,
    /// The TrafficSplit that chose it.
    pub(crate) split: Option<Arc<ObjectRef>>,
    /// The adapters that look at it; `None`: nobody does.
    pub(crate) chain: Option<Arc<Chain>>,
}

enum Step {
    Picked(Box<Picked>),
    /// No ready endpoint.
    Empty {
        service: ServiceName,
        port: u16,
        /// One is about to come.
        pending: bool,
    },
}

// === impl Picked ===

impl Picked {
    /// Whether adapters look at what goes there.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| !chain.is_empty())
    }

    /// Whether checks do, beside quotas.
    pub(crate) fn is_checked(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| !chain.pipeline.is_empty())
    }

    /// Whether quotas do.
    pub(crate) fn has_quotas(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| !chain.quotas.is_empty())
    }

    /// Whether adapters that may change it do.
    pub(crate) fn is_filtered(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| !chain.filters.is_empty())
    }

    /// Whether what the adapters of `other` let pass has met those that look here.
    pub(crate) fn has_adapters_of(&self, other: &Self) -> bool {
        match (&self.chain, &other.chain) {
            (Some(chain), Some(other)) => Arc::ptr_eq(chain, other) || chain.is_same(other),
            (None, None) => true,
            _ => false,
        }
    }
}

/// Picks for one request (`request` given) or one connection. `skip` holds endpoints that were tried in vain.
///
/// Takes the snapshot in force; where it has no endpoint but promises one, waits for the next snapshots, at most
/// [`ProxyConfig::pending_timeout`](crate::ProxyConfig::pending_timeout).
///
/// # Errors
/// See [`route::target`] and [`route::backend`]; [`DataError::NoEndpoint`].
pub(crate) async fn pick(
    worker: &Worker,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
) -> Result<Box<Picked>, DataError> {
    let snapshot = worker.snapshots.load_full();
    let (service, port) = match step(worker, snapshot, dialled, request, skip)? {
        Step::Picked(picked) => return Ok(picked),
        Step::Empty {
            service,
            port,
            pending: false,
        } => {
            return Err(DataError::NoEndpoint {
                service,
                port,
                waited: None,
            });
        }
        Step::Empty {
            service,
            port,
            pending: true,
        } => (service, port),
    };
    wait(worker, dialled, request, skip, service, port).await
}

/// As [`pick`], where nothing has to be waited for and nothing is wrong; `None`: it is not so.
pub(crate) fn pick_now(worker: &Worker, dialled: Dialled, request: &dyn HttpRequestView) -> Option<Box<Picked>> {
    match step(worker, worker.snapshots.load_full(), dialled, Some(request), &[]) {
        Ok(Step::Picked(picked)) => Some(picked),
        Ok(Step::Empty { .. }) | Err(_) => None,
    }
}

async fn wait(
    worker: &Worker,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
    mut service: ServiceName,
    mut port: u16,
) -> Result<Box<Picked>, DataError> {
    let mut snapshots = worker.snapshots.clone();
    let began = Instant::now();
    let deadline = began + worker.config.pending_timeout;
    loop {
        snapshots.mark();
        match step(worker, snapshots.load_full(), dialled, request, skip)? {
            Step::Picked(picked) => return Ok(picked),
            Step::Empty { pending: false, .. } => {
                return Err(DataError::NoEndpoint {
                    service,
                    port,
                    waited: Some(waited(began)),
                });
            }
            // A split may draw another backend the next time: name the one we wait for now.
            Step::Empty {
                service: now,
                port: its_port,
                pending: true,
            } => (service, port) = (now, its_port),
        }
        if timeout_at(deadline, snapshots.changed()).await.is_err() {
            return Err(DataError::NoEndpoint {
                service,
                port,
                waited: Some(waited(began)),
            });
        }
    }
}

fn waited(began: Instant) -> Duration {
    began.elapsed()
}

fn step(
    worker: &Worker,
    snapshot: Arc<InForce>,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
) -> Result<Step, DataError> {
    let picked = match route::target(&snapshot, dialled, &worker.config.virtual_ranges)? {
        Target::Service { service, port } => {
            let backend = route::backend(&snapshot, &service, port, request, &worker.random)?;
            let endpoints = &backend.port().endpoints;
            let Some(index) = worker.balancer.pick(endpoints, skip, &worker.loads, &worker.random) else {
                let port = backend.port();
                return Ok(Step::Empty {
                    service: backend.service.name.clone(),
                    port: port.port,
                    pending: port.pending && skip.is_empty(),
                });
            };
            let (address, identity) = (endpoints[index].address, endpoints[index].identity);
            Picked {
                destination: worker
                    .destinations
                    .of(&snapshot, &backend.service.name, address, identity),
                chain: snapshot
                    .chains
                    .of(Some(&service.name), Some(&backend.service.name))
                    .cloned(),
                snapshot,
                address,
                identity,
                split: backend.split,
            }
        }
        Target::Endpoint(owner) => Picked {
            destination: worker.destinations.of(
                &snapshot,
                &owner.service,
                owner.endpoint.address,
                owner.endpoint.identity,
            ),
            chain: snapshot.chains.of(Some(&owner.service), Some(&owner.service)).cloned(),
            snapshot,
            address: owner.endpoint.address,
            identity: owner.endpoint.identity,
            split: None,
        },
        Target::Workload {
            address,
            identity,
            guarded,
        } => Picked {
            destination: match &guarded {
                // Not kept: a server has as many addresses as its clients think of.
                Some(service) => report::service_destination(&snapshot, service, address, Some(identity)),
                None => report::workload_destination(&snapshot, address, identity),
            },
            chain: snapshot.chains.of(guarded.as_ref(), guarded.as_ref()).cloned(),
            snapshot,
            address,
            identity,
            split: None,
        },
        Target::Outside(address) => Picked {
            destination: report::bare_destination(address),
            chain: snapshot.chains.of(None, None).cloned(),
            snapshot,
            address,
            identity: Identity::OUTSIDE,
            split: None,
        },
    };
    Ok(Step::Picked(Box::new(picked)))
}
