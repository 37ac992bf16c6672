//! From an original destination to one endpoint, waiting for it where its workload is starting.

mod routes;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use weft_adapters::{Chain, Destination};
use weft_policy::{HttpRequestView, Identity, ObjectRef, ServiceName};

pub(crate) use self::routes::{Route, Routes};
use crate::{balance::Load, conn::Conn, error::DataError, route::Dialled, watch::InForce, worker::Worker};

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
    /// What is in flight there.
    pub(crate) load: Load,
}

enum Step {
    Picked(Rc<Picked>),
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
/// See [`route::target`](crate::route::target) and [`route::backend`](crate::route::backend); [`DataError::NoEndpoint`].
pub(crate) async fn pick(
    worker: &Worker,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
) -> Result<Rc<Picked>, DataError> {
    let step = worker.routes.of(worker, dialled)?.step(worker, request, skip)?;
    picked(worker, dialled, request, skip, step).await
}

/// The same for a request of `conn`, which remembers where its last one went.
///
/// # Errors
/// As [`pick`].
pub(crate) async fn pick_for(
    conn: &Conn,
    request: &dyn HttpRequestView,
    skip: &[SocketAddr],
) -> Result<Rc<Picked>, DataError> {
    let step = conn.route()?.step(&conn.worker, Some(request), skip)?;
    picked(&conn.worker, conn.dialled(), Some(request), skip, step).await
}

/// As [`pick`] for a request of `conn`, where nothing has to be waited for and nothing is wrong; `None`: it is not so.
pub(crate) fn pick_now(conn: &Conn, request: &dyn HttpRequestView) -> Option<Rc<Picked>> {
    let route = conn.route().ok()?;
    match route.step(&conn.worker, Some(request), &[]) {
        Ok(Step::Picked(picked)) => Some(picked),
        Ok(Step::Empty { .. }) | Err(_) => None,
    }
}

/// What a first step came to, or those that follow it.
async fn picked(
    worker: &Worker,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
    step: Step,
) -> Result<Rc<Picked>, DataError> {
    match step {
        Step::Picked(picked) => Ok(picked),
        Step::Empty {
            service,
            port,
            pending: false,
        } => Err(DataError::NoEndpoint {
            service,
            port,
            waited: None,
        }),
        Step::Empty {
            service,
            port,
            pending: true,
        } => wait(worker, dialled, request, skip, service, port).await,
    }
}

async fn wait(
    worker: &Worker,
    dialled: Dialled,
    request: Option<&dyn HttpRequestView>,
    skip: &[SocketAddr],
    mut service: ServiceName,
    mut port: u16,
) -> Result<Rc<Picked>, DataError> {
    let mut snapshots = worker.snapshots.clone();
    let began = Instant::now();
    let deadline = began + worker.config.pending_timeout;
    loop {
        snapshots.mark();
        match worker.routes.of(worker, dialled)?.step(worker, request, skip)? {
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
