//! Calls that filters make: to services of the mesh, and to other hosts that the operator allows.
//!
//! A call runs on the worker of the request that caused it, through that worker's pool and its balancing. It is the mesh's
//! own: no rule about workloads judges it, no filter sees it, no flow tells of it. The answer's body goes through a channel,
//! because whoever calls may keep it anywhere; dropping it, or the call, ends the exchange.

mod name;

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, request};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use weft_adapters::upstreams::{CallBody, CallError, CallProtocol, Calling, Upstreams};
use weft_policy::{AppProtocol, Identity, Snapshot};

use crate::{
    balance::InFlight,
    error::{DataError, chain},
    http::{head, view::View},
    limits::CONNECT_ATTEMPTS,
    pick::pick,
    route::Dialled,
    upstream::{Lease, SendError, Sending, Upstream, UpstreamBody, Wire},
    wire::WireBody,
    worker::Worker,
};

use name::Named;

thread_local! {
    /// The worker whose thread this is.
    static WORKER: RefCell<Weak<Worker>> = const { RefCell::new(Weak::new()) };
}

/// What the filters of one adapter may call.
#[derive(Clone)]
pub struct Callouts {
    snapshots: Arc<ArcSwap<Snapshot>>,
    namespace: String,
    hosts: Vec<Host>,
}

/// A host beside the mesh, `HOST:PORT` or `ADDRESS:PORT`, spoken to without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

#[derive(Debug, thiserror::Error)]
#[error("`{found}` is no host, expected `HOST:PORT` such as `authz.example.com:8080` or `[::1]:8080`")]
pub struct BadHost {
    pub found: String,
}

/// Frames from the task that reads the answer.
struct Answer(mpsc::Receiver<Result<Frame<Bytes>, CallError>>);

/// A connection to whoever is called.
struct Reached {
    sending: Sending,
    load: InFlight,
    address: SocketAddr,
    wire: Wire,
}

/// To be called on a worker's thread, before any filter runs there.
pub(crate) fn enter(worker: &Rc<Worker>) {
    WORKER.replace(Rc::downgrade(worker));
}

// === impl Host ===

impl std::str::FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let authority: Option<http::uri::Authority> = text.parse().ok();
        match authority {
            Some(authority)
                if authority.port_u16().is_some() && !authority.host().is_empty() && !text.contains('@') =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BadHost { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Callouts ===

impl Callouts {
    /// For an adapter in `namespace`: every service of the mesh, as `snapshots` has them, and `hosts`, named exactly as they are
    /// written there.
    pub fn new(snapshots: Arc<ArcSwap<Snapshot>>, namespace: impl Into<String>, hosts: Vec<Host>) -> Self {
        Self {
            snapshots,
            namespace: namespace.into(),
            hosts,
        }
    }

    fn is_host(&self, upstream: &str) -> bool {
        self.hosts.iter().any(|host| host.0 == upstream)
    }
}

impl Upstreams for Callouts {
    /// A service is named `NAME[.NAMESPACE[.mesh|.svc|.svc.cluster.local]][:PORT]` or `outbound|PORT|SUBSET|HOST`.
    fn knows(&self, upstream: &str) -> bool {
        self.is_host(upstream) || Named::find(upstream, &self.namespace, &self.snapshots.load()).is_some()
    }

    fn call(&self, upstream: &str, request: Request<CallBody>, protocol: CallProtocol) -> Calling {
        let (callouts, upstream) = (self.clone(), upstream.to_owned());
        Box::pin(async move {
            let Some(worker) = WORKER.with_borrow(Weak::upgrade) else {
                return Err(CallError::Connect {
                    upstream,
                    reason: "calls can be made while requests are served only".to_owned(),
                });
            };
            callouts.call_on(&worker, upstream, request, protocol).await
        })
    }
}

impl Callouts {
    async fn call_on(
        &self,
        worker: &Rc<Worker>,
        upstream: String,
        request: Request<CallBody>,
        protocol: CallProtocol,
    ) -> Result<Response<CallBody>, CallError> {
        let (mut head, body) = request.into_parts();
        let Reached {
            sending,
            load,
            address,
            wire,
        } = if self.is_host(&upstream) {
            reach_host(worker, &upstream, protocol).await?
        } else {
            let named = Named::find(&upstream, &self.namespace, &self.snapshots.load());
            match named {
                Some(named) => reach(worker, &upstream, &named, &head, protocol).await?,
                None => return Err(CallError::Unknown { upstream }),
            }
        };
        let broken = |reason: String| CallError::Broken {
            upstream: upstream.clone(),
            reason,
        };
        head::prepare_call(&mut head, wire, address, body.is_end_stream()).map_err(|error| broken(chain(&error)))?;
        let reused = sending.is_reused();
        let answered = match sending.send(Box::new(head), UpstreamBody::Call(body)).await {
            Err(SendError { unsent, source, .. }) => match unsent {
                // The endpoint was closing the pool's connection: nothing of it was sent.
                Some((head, body)) if reused => {
                    let fresh = worker.pool.open(&Upstream::at_home(address), wire).await;
                    let fresh = fresh.map_err(|error| CallError::Connect {
                        upstream: upstream.clone(),
                        reason: error.to_string(),
                    })?;
                    let answered = fresh.send(head, body).await;
                    answered.map_err(|error| broken(chain(&*error.source)))
                }
                _ => Err(broken(chain(&*source))),
            },
            Ok(answered) => Ok(answered),
        };
        let (response, lease) = answered?;
        Ok(response.map(|body| answer(worker, upstream, body, lease, load)))
    }
}

/// Picks an endpoint as for any request, and connects.
async fn reach(
    worker: &Worker,
    upstream: &str,
    named: &Named,
    head: &request::Parts,
    protocol: CallProtocol,
) -> Result<Reached, CallError> {
    let port = &named.service.ports[named.port];
    let wire = match (protocol, port.app) {
        (CallProtocol::Grpc, _) | (_, AppProtocol::Http2 | AppProtocol::Grpc) => Wire::Http2,
        (CallProtocol::Http, _) => Wire::Http1,
    };
    let dialled = Dialled {
        address: SocketAddr::new(named.service.vip4.into(), port.port),
        destination: Identity::OUTSIDE,
        pods_loopback: false,
    };
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut failed = None;
    loop {
        let picked = pick(worker, dialled, Some(&View::new(head)), &tried).await;
        let address = match (picked, failed) {
            (Ok(picked), _) => picked.address,
            // There is no other: what happened to this one says more.
            (Err(_), Some(failed)) => return Err(failed),
            (Err(DataError::NoEndpoint { .. }), None) => {
                return Err(CallError::NoEndpoint {
                    upstream: upstream.to_owned(),
                });
            }
            (Err(error), None) => {
                return Err(CallError::Connect {
                    upstream: upstream.to_owned(),
                    reason: chain(&error),
                });
            }
        };
        match connect(worker, upstream, address, wire).await {
            Ok(reached) => return Ok(reached),
            Err(error) => {
                tried.push(address);
                if tried.len() >= CONNECT_ATTEMPTS {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
}

async fn reach_host(worker: &Worker, upstream: &str, protocol: CallProtocol) -> Result<Reached, CallError> {
    let wire = match protocol {
        CallProtocol::Grpc => Wire::Http2,
        CallProtocol::Http => Wire::Http1,
    };
    let failed = |reason: String| CallError::Connect {
        upstream: upstream.to_owned(),
        reason,
    };
    let found = tokio::net::lookup_host(upstream).await;
    let mut error = failed("the name has no address".to_owned());
    for address in found.map_err(|error| failed(error.to_string()))?.take(CONNECT_ATTEMPTS) {
        match connect(worker, upstream, address, wire).await {
            Ok(reached) => return Ok(reached),
            Err(this) => error = this,
        }
    }
    Err(error)
}

async fn connect(worker: &Worker, upstream: &str, address: SocketAddr, wire: Wire) -> Result<Reached, CallError> {
    let load = worker.loads.begin(address);
    match worker.pool.take(&Upstream::at_home(address), wire).await {
        Ok(sending) => Ok(Reached {
            sending,
            load,
            address,
            wire,
        }),
        Err(error) => Err(CallError::Connect {
            upstream: upstream.to_owned(),
            reason: format!("{address}: {error}"),
        }),
    }
}

/// Reads the answer in a task of the worker's, frame by frame as they are taken.
fn answer(worker: &Worker, upstream: String, mut body: WireBody, mut lease: Lease, load: InFlight) -> CallBody {
    let (sender, receiver) = mpsc::channel(1);
    if body.is_end_stream() {
        // The next call may come before a task runs.
        lease.finish();
        return Answer(receiver).boxed_unsync();
    }
    worker.spawn_chore(async move {
        let _load = load;
        loop {
            let frame = tokio::select! {
                biased;
                frame = poll_fn(|cx| lease.poll_frame(&mut body, cx)) => frame,
                () = sender.closed() => return,
            };
            let Some(frame) = frame else {
                return lease.finish();
            };
            let frame = frame.map_err(|error| CallError::Broken {
                upstream: upstream.clone(),
                reason: chain(&*error),
            });
            if frame.is_ok() && body.is_end_stream() {
                // Whether it is taken or not, the connection is free.
                lease.finish();
                let _taken = sender.send(frame).await;
                return;
            }
            let broken = frame.is_err();
            if sender.send(frame).await.is_err() || broken {
                return;
            }
        }
    });
    Answer(receiver).boxed_unsync()
}

// === impl Answer ===

impl Body for Answer {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        self.0.poll_recv(cx)
    }
}

impl fmt::Debug for Callouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callouts")
            .field("namespace", &self.namespace)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_needs_a_port() {
        for (text, good) in [
            ("authz.example.com:8080", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("authz", false),
            (":80", false),
            ("http://a:80", false),
            ("user@a:80", false),
            ("a:99999", false),
        ] {
            assert_eq!(text.parse::<Host>().is_ok(), good, "{text}");
        }
    }
}
