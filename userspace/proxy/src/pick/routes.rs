//! Routes that a worker keeps: a request finds its endpoint, and all that is told of it, without looking anything up.
//!
//! What was dialled leads to the same port of the same service until something else is in force, and what is known of an endpoint
//! stays the same. Which one it is, splits and the balancer say, each time anew. All routes are of one configuration and go together
//! with it, also where no request comes to see that it has gone. A connection remembers its route weakly: it finds none of another
//! configuration, and keeps none in memory.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    ptr,
    rc::{Rc, Weak},
    sync::Arc,
    thread,
};

use weft_policy::{HttpRequestView, Identity, Service, ServiceName, ServicePort};

use super::{Picked, Step};
use crate::{
    error::DataError,
    report,
    route::{self, Backend, Dialled, Target},
    watch::{InForce, SnapshotWatch},
    worker::Worker,
};

/// One worker's.
#[derive(Default)]
pub(crate) struct Routes(RefCell<Known>);

#[derive(Default)]
struct Known {
    /// All of them are of this. `None`: before the first.
    under: Option<Arc<InForce>>,
    /// By what was dialled, and whether that is a pod's own loopback. No more than the snapshot has virtual IPs and endpoints: others
    /// are as many as clients think of.
    of: HashMap<(SocketAddr, bool), Rc<Route>>,
}

/// Where something that was dialled leads.
pub(crate) enum Route {
    /// To any endpoint of a service's port, or of those that it is split to.
    Service {
        under: Arc<InForce>,
        service: Arc<Service>,
        /// Index into [`Service::ports`].
        port: usize,
        /// Those that were picked before.
        backends: RefCell<Vec<KnownBackend>>,
    },
    /// There, and nowhere else.
    Alone(Rc<Picked>),
}

/// A service port that requests go to, with those of its endpoints that were picked before, in its order.
pub(crate) struct KnownBackend {
    /// Only to be compared.
    port: *const ServicePort,
    by_split: bool,
    endpoints: Vec<Option<Rc<Picked>>>,
}

// === impl Routes ===

impl Routes {
    /// Where `dialled` leads under what is in force.
    ///
    /// # Errors
    /// See [`route::target`].
    pub(crate) fn of(&self, worker: &Worker, dialled: Dialled) -> Result<Rc<Route>, DataError> {
        self.settle(&worker.snapshots);
        let mut known = self.0.borrow_mut();
        let key = (dialled.address, dialled.pods_loopback);
        if let Some(route) = known.of.get(&key) {
            return Ok(Rc::clone(route));
        }
        let under = Arc::clone(known.under.get_or_insert_with(|| worker.snapshots.load_full()));
        let target = route::target(&under, dialled, &worker.config.virtual_ranges)?;
        let keeps = matches!(target, Target::Service { .. } | Target::Endpoint(_));
        let route = Rc::new(Route::new(worker, under, target));
        if keeps {
            known.of.insert(key, Rc::clone(&route));
        }
        Ok(route)
    }

    /// The same for who remembers it from the last time.
    ///
    /// # Errors
    /// As [`Routes::of`].
    pub(crate) fn again(
        &self,
        worker: &Worker,
        dialled: Dialled,
        last: &RefCell<Weak<Route>>,
    ) -> Result<Rc<Route>, DataError> {
        self.settle(&worker.snapshots);
        // Nobody but us keeps one for longer than a pick takes.
        if let Some(route) = last.borrow().upgrade() {
            return Ok(route);
        }
        let route = self.of(worker, dialled)?;
        last.replace(Rc::downgrade(&route));
        Ok(route)
    }

    /// Lets go of what is not of the configuration in force.
    pub(crate) fn settle(&self, snapshots: &SnapshotWatch) {
        let mut known = self.0.borrow_mut();
        if let Some(under) = &known.under
            && Arc::ptr_eq(under, &snapshots.load())
        {
            return;
        }
        let routes = std::mem::take(&mut known.of);
        let under = known.under.replace(snapshots.load_full());
        drop(known);
        drop(routes);
        if let Some(last) = under.and_then(Arc::into_inner) {
            // Nobody else has it. There may be much of it, and requests wait for this thread. Where no other is to be had, it is dropped
            // here.
            let _ = thread::Builder::new()
                .name("weft-let-go".to_owned())
                .spawn(move || drop(last));
        }
    }
}

// === impl Route ===

impl Route {
    fn new(worker: &Worker, under: Arc<InForce>, target: Target) -> Self {
        let chain = |service: Option<&ServiceName>| under.chains.of(service, service).cloned();
        let (address, identity, destination, chain) = match target {
            Target::Service { service, port } => {
                return Self::Service {
                    under,
                    service,
                    port,
                    backends: RefCell::default(),
                };
            }
            Target::Endpoint(owner) => {
                let (address, identity) = (owner.endpoint.address, owner.endpoint.identity);
                let destination = worker.destinations.of(&under, &owner.service, address, identity);
                (address, identity, destination, chain(Some(&*owner.service)))
            }
            Target::Workload {
                address,
                identity,
                guarded,
            } => {
                let destination = match &guarded {
                    // Not kept: a server has as many addresses as its clients think of.
                    Some(service) => report::service_destination(&under, service, address, Some(identity)),
                    None => report::workload_destination(&under, address, identity),
                };
                (address, identity, destination, chain(guarded.as_ref()))
            }
            Target::Outside(address) => {
                let destination = report::bare_destination(address);
                (address, Identity::OUTSIDE, destination, chain(None))
            }
        };
        Self::Alone(Rc::new(Picked {
            load: worker.loads.of(address),
            snapshot: under,
            address,
            identity,
            destination,
            split: None,
            chain,
        }))
    }

    /// Picks for one request or connection; `skip` holds endpoints that were tried in vain.
    pub(super) fn step(
        &self,
        worker: &Worker,
        request: Option<&dyn HttpRequestView>,
        skip: &[SocketAddr],
    ) -> Result<Step, DataError> {
        let (under, service, port, backends) = match self {
            Self::Alone(picked) => return Ok(Step::Picked(Rc::clone(picked))),
            Self::Service {
                under,
                service,
                port,
                backends,
            } => (under, service, *port, backends),
        };
        let backend = route::backend(under, service, port, request, &worker.random)?;
        let endpoints = &backend.port.endpoints;
        let Some(index) = worker.balancer.pick(endpoints, skip, &worker.loads, &worker.random) else {
            return Ok(Step::Empty {
                service: backend.service.name.clone(),
                port: backend.port.port,
                pending: backend.port.pending && skip.is_empty(),
            });
        };
        let mut backends = backends.borrow_mut();
        let at = backends.iter().position(|known| known.is(&backend)).unwrap_or_else(|| {
            backends.push(KnownBackend::new(&backend));
            backends.len() - 1
        });
        let picked = backends[at].endpoints[index].get_or_insert_with(|| {
            let (address, identity) = (endpoints[index].address, endpoints[index].identity);
            let (called, name) = (&service.name, &backend.service.name);
            Rc::new(Picked {
                snapshot: Arc::clone(under),
                address,
                identity,
                destination: worker.destinations.of(under, name, address, identity),
                split: backend.split.cloned(),
                chain: under.chains.of(Some(called), Some(name)).cloned(),
                load: worker.loads.of(address),
            })
        });
        Ok(Step::Picked(Rc::clone(picked)))
    }
}

// === impl KnownBackend ===

impl KnownBackend {
    fn new(backend: &Backend<'_>) -> Self {
        Self {
            port: backend.port,
            by_split: backend.split.is_some(),
            endpoints: vec![None; backend.port.endpoints.len()],
        }
    }

    fn is(&self, backend: &Backend<'_>) -> bool {
        ptr::eq(self.port, backend.port) && self.by_split == backend.split.is_some()
    }
}
