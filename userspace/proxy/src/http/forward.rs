//! One request: where to, may it, send it, and what comes back.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use http::{Method, Request, Response, StatusCode, request};
use hyper::{body::Body, upgrade::OnUpgrade};
use tokio::sync::Notify;
use weft_adapters::{
    Bag, Directives, FlowProtocol, Pipeline,
    attribute::{DestinationView, PeerView, RequestView},
};
use weft_policy::{Decision, ObjectRef, Verdict};

use super::{
    body::{RequestBody, ResponseBody},
    exchange::Exchange,
    head,
    lean::AnswerError,
    respond::{DenyReason, Refusal},
    tunnel::{self, Upgrading},
    view::{self, View},
};
use crate::{
    balance::InFlight,
    conn::Conn,
    error::DataError,
    judge,
    limits::CONNECT_ATTEMPTS,
    pick::{Picked, pick_for},
    report,
    upstream::{Lease, Sending, Upstream, UpstreamBody, Wire},
    wire::WireBody,
};

/// Carries a request out.
///
/// # Errors
/// What the client is to be told instead of an endpoint's answer.
pub(crate) async fn forward(
    exchange: &Rc<Exchange>,
    mut head: Box<request::Parts>,
    incoming: WireBody,
) -> Result<Response<ResponseBody>, Refusal> {
    let downstream = head.extensions.remove::<OnUpgrade>();
    let mut body = RequestBody::new(incoming, Rc::clone(exchange));
    let go = head::expects_continue(&head).then(|| body.wait_for_continue());
    head::check(&head)?;
    head::settle(&mut head)?;
    let wire = if exchange.is_http1 { Wire::Http1 } else { Wire::Http2 };
    let picked = pick_allowed(exchange, &head).await?;
    let end = body.is_end_stream();
    let received = consult(exchange, &picked, &mut head, end).await?;
    if exchange.chain().is_some() && !end {
        body = body.filtered();
    }
    let changed = received.is_some();
    let worker = &exchange.conn.worker;
    let take = async |upstream: &Upstream| worker.pool.take(upstream, wire).await;
    let reached = reach(exchange, picked, received.as_ref().unwrap_or(&head), take, None).await?;
    let upgrade = head::upgrade(&head);
    let upgrading = downstream.filter(|_| upgrade.is_some()).map(|client| Upgrading {
        client,
        asked: Box::new(head::copy(received.as_ref().unwrap_or(&head))),
    });
    let conn = &exchange.conn;
    exchange.pass_trace_on(&mut head.headers);
    let prepared = head::prepare_request(
        &mut head,
        wire,
        conn.context.original,
        conn.forwarded_for.as_ref(),
        upgrade,
    );
    prepared.map_err(|error| if changed { error.of_adapters() } else { error })?;
    if wire == Wire::Http1 && !body.is_end_stream() {
        head::chunk_unsized(&mut head.headers);
    }
    let Reached { picked, load, sending } = send(exchange, reached, wire, received, head, body, go).await?;
    let (response, lease) = sending;
    answer(exchange, &picked, response, lease, load, upgrading).await
}

/// An endpoint that may be asked, and a connection to it.
pub(crate) struct Reached<T> {
    pub(crate) picked: Rc<Picked>,
    pub(crate) load: InFlight,
    pub(crate) sending: T,
}

/// Shows a request's head to the adapters that look at what goes to `picked`. Returns it as it came, if they may have changed
/// it: endpoints are picked and judged by what the client asked, whatever adapters make of it. `end`: it has no body.
///
/// # Errors
/// One of them refuses it, or made something of it that cannot be sent.
pub(crate) async fn consult(
    exchange: &Rc<Exchange>,
    picked: &Picked,
    head: &mut request::Parts,
    end: bool,
) -> Result<Option<Box<request::Parts>>, Refusal> {
    let request = view::of_checks(head);
    let directives = check(exchange, picked, request).await?;
    // A path that has two readings must be let pass in both, as by access rules.
    if picked.is_checked()
        && let Some(path) = view::resolved_target(head)
    {
        check(exchange, picked, RequestView { path: &path, ..request }).await?;
    }
    let may_change = picked.is_filtered() || !directives.request.is_empty();
    let received = may_change.then(|| Box::new(head::copy(head)));
    let counted = counted(picked, head, &directives);
    change(exchange, picked, head, end, directives).await?;
    let counted = counted.as_deref().or(received.as_deref());
    use_up(exchange, picked, view::of_checks(counted.unwrap_or(head))).await?;
    Ok(received)
}

/// A request as quotas are to see it, if not as it came: with what checks have set in place of what the client sent.
pub(crate) fn counted(picked: &Picked, head: &request::Parts, directives: &Directives) -> Option<Box<request::Parts>> {
    (picked.has_quotas() && !directives.request.is_empty()).then(|| {
        let mut counted = head::copy(head);
        for operation in &directives.request {
            operation.apply(&mut counted.headers);
        }
        Box::new(counted)
    })
}

/// The same after the checks, which wanted this.
async fn change(
    exchange: &Rc<Exchange>,
    picked: &Picked,
    head: &mut request::Parts,
    end: bool,
    directives: Directives,
) -> Result<(), Refusal> {
    let filtered = exchange.begin_filters(picked).is_some();
    let changed = filtered || !directives.request.is_empty();
    for operation in &directives.request {
        operation.apply(&mut head.headers);
    }
    exchange.on_answer(directives.response);
    if let Some(chain) = exchange.chain() {
        chain.request_headers(head, end).await?;
    }
    if changed {
        head::check(head).map_err(DataError::of_adapters)?;
        head::check_length(&mut head.headers, end);
    }
    Ok(())
}

/// Picks an endpoint and judges it.
async fn pick_allowed(exchange: &Exchange, head: &request::Parts) -> Result<Rc<Picked>, Refusal> {
    let conn = &exchange.conn;
    let view = View::new(head);
    let picked = pick_for(conn, &view, &[]).await?;
    authorize(exchange, &picked, head, &view)?;
    Ok(picked)
}

/// Connects, to `picked` and then to others, until one accepts or all that may be tried were. `failed`: what connecting to `picked`
/// came to already.
pub(crate) async fn reach<T>(
    exchange: &Exchange,
    mut picked: Rc<Picked>,
    head: &request::Parts,
    take: impl AsyncFn(&Upstream) -> io::Result<T>,
    mut failed: Option<io::Error>,
) -> Result<Reached<T>, Refusal> {
    let conn = &exchange.conn;
    let view = View::new(head);
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let load = picked.load.begin();
        let taken = match failed.take() {
            Some(error) => Err(error),
            None => take(&conn.upstream(picked.address)).await,
        };
        let error = match taken {
            Ok(sending) => return Ok(Reached { picked, load, sending }),
            Err(source) => {
                tried.push(picked.address);
                DataError::Connect {
                    address: picked.address,
                    tried: tried.len(),
                    source,
                }
            }
        };
        if tried.len() >= CONNECT_ATTEMPTS || picked.address == conn.context.original {
            return Err(error.into());
        }
        picked = match pick_for(conn, &view, &tried).await {
            Ok(other) if other.has_adapters_of(&picked) => other,
            // There is no other, or (a split drew anew) one whose adapters have not looked: what happened to this one says more.
            _ => return Err(error.into()),
        };
        authorize(exchange, &picked, head, &view)?;
    }
}

/// The rules' verdict on both readings of a request.
pub(crate) fn judge_both(conn: &Conn, picked: &Picked, head: &request::Parts, view: &View<'_>) -> Decision {
    let decision = judge::request(conn, picked, view);
    match View::resolved(head).filter(|_| decision.verdict.passes()) {
        Some(resolved) => decision.and(judge::request(conn, picked, &resolved)),
        None => decision,
    }
}

/// The operator's rules, on the endpoint that was picked. What they say of all requests there alike, the connection remembers.
fn authorize(exchange: &Exchange, picked: &Rc<Picked>, head: &request::Parts, view: &View<'_>) -> Result<(), Refusal> {
    let conn = &exchange.conn;
    exchange.set_destination(&picked.destination);
    if let Some(rule) = conn.last.allowed(picked) {
        exchange.allowed(rule);
        return Ok(());
    }
    let all = judge::all_requests(conn, picked);
    let decision = all.unwrap_or_else(|| judge_both(conn, picked, head, view));
    let rule = report::rule_object(&picked.snapshot, decision.rule);
    if decision.verdict == Verdict::Allow {
        let rule = rule.or_else(|| picked.split.clone());
        if all.is_some() {
            conn.last.all_allowed(picked, rule.clone());
        }
        exchange.allowed(rule);
        return Ok(());
    }
    let why = report::deny_words(rule.as_deref(), &picked.destination);
    if decision.verdict == Verdict::Audit {
        exchange.audited(rule, &why);
        return Ok(());
    }
    let reason = denied(exchange, &view::of_checks(head), StatusCode::FORBIDDEN, rule, &why);
    Err(Refusal::Denied(Box::new(reason)))
}

/// The adapters' checks; the first that denies ends it.
pub(crate) async fn check(
    exchange: &Exchange,
    picked: &Picked,
    request: RequestView<'_>,
) -> Result<Directives, Refusal> {
    match picked.chain.as_ref().filter(|chain| !chain.pipeline.is_empty()) {
        Some(chain) => ask(exchange, picked, &chain.pipeline, request).await,
        None => Ok(Directives::default()),
    }
}

/// The adapters' quotas, after all others have let it pass: a request that is refused uses nothing up. They change nothing.
pub(crate) async fn use_up(exchange: &Exchange, picked: &Picked, request: RequestView<'_>) -> Result<(), Refusal> {
    match picked.chain.as_ref().filter(|chain| !chain.quotas.is_empty()) {
        Some(chain) => ask(exchange, picked, &chain.quotas, request).await.map(drop),
        None => Ok(()),
    }
}

async fn ask(
    exchange: &Exchange,
    picked: &Picked,
    checks: &Pipeline,
    request: RequestView<'_>,
) -> Result<Directives, Refusal> {
    let conn = &exchange.conn;
    let bag = Bag {
        generation: picked.snapshot.generation,
        source: PeerView {
            namespace: &conn.source.namespace,
            service: conn.source.service.as_deref(),
            account: &conn.source.account,
            ip: Some(conn.peer.ip()),
        },
        destination: DestinationView {
            namespace: &picked.destination.namespace,
            service: picked.destination.service.as_deref(),
            account: picked.destination.account.as_deref(),
            ip: conn.context.original.ip(),
            port: conn.context.original.port(),
        },
        request: Some(request),
        connection: Default::default(),
        protocol: if exchange.grpc {
            FlowProtocol::Grpc
        } else {
            FlowProtocol::Http
        },
    };
    checks.check(&bag).await.map_err(|deny| {
        let deny = *deny;
        let status = StatusCode::from_u16(deny.status).unwrap_or(StatusCode::FORBIDDEN);
        let words = format!("{} (adapter {}, {})", deny.message, deny.adapter, deny.rule);
        let mut reason = denied(exchange, &request, status, Some(Arc::new(deny.rule)), &words);
        reason.headers = deny.headers;
        reason.body = deny.body;
        Refusal::Denied(Box::new(reason))
    })
}

fn denied(
    exchange: &Exchange,
    request: &RequestView<'_>,
    status: StatusCode,
    rule: Option<Arc<ObjectRef>>,
    why: &str,
) -> DenyReason {
    let ends = report::from_to(&exchange.conn.source, &exchange.destination());
    DenyReason {
        status,
        rule,
        text: format!("{} {} {ends} denied: {why}", request.method, request.url_path()),
        headers: Vec::new(),
        body: None,
    }
}

/// Sends it, and once more on a fresh connection where the pool's was being closed by the endpoint just then: to another endpoint, if
/// this one takes none any more. `received`: the head as it came, if adapters may have changed it.
async fn send(
    exchange: &Rc<Exchange>,
    reached: Reached<Sending>,
    wire: Wire,
    received: Option<Box<request::Parts>>,
    mut head: Box<request::Parts>,
    body: RequestBody,
    go: Option<Arc<Notify>>,
) -> Result<Reached<(Response<WireBody>, Lease)>, Refusal> {
    let Reached { picked, load, sending } = reached;
    let conn = &exchange.conn;
    let worker = &conn.worker;
    let failed = |address, source| {
        if exchange.has_request_broken() {
            DataError::RequestBody
        } else {
            DataError::Upstream { address, source }
        }
    };
    let reused = sending.is_reused();
    // A request that may have arrived is only repeated if that does no harm (RFC 9110 9.2.2) and there is no body.
    let replay = (reused && body.is_end_stream() && is_idempotent(&head.method)).then(|| Box::new(head::copy(&head)));
    if let Some(go) = go {
        head = tell_of_continue(head, go);
    }
    let error = match sending.send(head, UpstreamBody::Forwarded(body)).await {
        Ok(sending) => return Ok(Reached { picked, load, sending }),
        Err(error) => error,
    };
    let (head, body) = match (error.unsent, replay) {
        _ if exchange.has_request_broken() => return Err(DataError::RequestBody.into()),
        (Some(unsent), _) if reused => unsent,
        (None, Some(head)) if error.is_lost => {
            let nothing = RequestBody::empty(Rc::clone(exchange));
            (head, UpstreamBody::Forwarded(nothing))
        }
        _ => return Err(failed(picked.address, error.source).into()),
    };
    worker.metrics.upstream_retried.inc();
    drop(load);
    // In boxes, as it is rare.
    let received = received.unwrap_or_else(|| Box::new(head::received(&head, conn.forwarded_for.as_ref())));
    let open = async |upstream: &Upstream| worker.pool.open(upstream, wire).await;
    let Reached { picked, load, sending } = Box::pin(reach(exchange, picked, &received, open, None)).await?;
    match Box::pin(sending.send(head, body)).await {
        Ok(sending) => Ok(Reached { picked, load, sending }),
        Err(error) => Err(failed(picked.address, error.source).into()),
    }
}

/// `go` is given when the endpoint says `100 Continue`.
fn tell_of_continue(head: Box<request::Parts>, go: Arc<Notify>) -> Box<request::Parts> {
    let mut request = Request::from_parts(*head, ());
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            go.notify_one();
        }
    });
    Box::new(request.into_parts().0)
}

/// The endpoint's answer becomes the client's.
async fn answer(
    exchange: &Rc<Exchange>,
    picked: &Rc<Picked>,
    mut response: Response<WireBody>,
    lease: Lease,
    load: InFlight,
    upgrading: Option<Upgrading>,
) -> Result<Response<ResponseBody>, Refusal> {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = match (switching, upgrading) {
        (true, Some(client)) => Some((client, hyper::upgrade::on(&mut response))),
        (true, None) => {
            return Err(DataError::UnaskedUpgrade {
                address: picked.address,
            }
            .into());
        }
        (false, _) => None,
    };
    let (mut head, incoming) = response.into_parts();
    // Of others only the chunks were undone, or nothing, and the client would not learn of the rest.
    let settled = match head::is_chunked_at_most(&head.headers) {
        true => head::settle_length(&mut head.headers),
        false => Err(AnswerError::TransferCoding),
    };
    settled.map_err(|error| DataError::Upstream {
        address: picked.address,
        source: error.into(),
    })?;
    head::prepare_response(&mut head, switching);
    let end = switching || exchange.method == Method::HEAD || incoming.is_end_stream();
    if let Some(chain) = exchange.chain() {
        chain.response_parts(&mut head, end).await?;
    }
    exchange.change_answer(&mut head.headers);
    exchange.answered(head.status);
    exchange.note_grpc_status(&head.headers);
    let body = match tunnel {
        Some((client, server)) => {
            drop(lease);
            tunnel::spawn(exchange, Rc::clone(picked), client, server, load);
            ResponseBody::text("", Rc::clone(exchange))
        }
        None => {
            let body = ResponseBody::forwarded(incoming, Rc::clone(exchange), lease, load);
            body.after_head(end)
        }
    };
    Ok(Response::from_parts(head, body))
}

/// RFC 9110 9.2.2, of the methods that have no body as a rule.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
