//! hyper towards HTTP/1 clients: settings, the drain, slow headers and idle connections.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH},
    request,
};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    body::ResponseBody,
    exchange::{Asked, Exchange},
    forward,
    lean::{self, Ended},
    respond::{self, Refusal, Unanswered},
};
use crate::{
    conn::Conn,
    io::{ConnClock, Prefixed, Socket, Watched},
    limits::{HEADER_READ_TIMEOUT, HTTP1_BUFFER, IDLE_TICK, IDLE_TIMEOUT, MAX_HEADER_BYTES, MAX_HEADERS, REST_AFTER},
    listen::stop::Phase,
    metrics::RequestOutcome,
    tcp,
    wire::WireBody,
};

/// What [`ConnClock`] counts in.
const CLOCK_STEP: Duration = Duration::from_millis(1);

/// How [`watch`] ended.
enum Watch {
    Over,
    /// An answer broke off whose end is that of the connection.
    Broken,
    /// Nothing is under way.
    Rests,
}

/// Serves HTTP/1.0 and 1.1, one request after the other: the short way ([`lean`]) as long as that will do, by hyper from the
/// first request that takes more until none comes for a while. No `async fn`, which would have what it is given twice.
pub(crate) fn serve_http1(conn: Rc<Conn>, mut stream: Prefixed<Socket>) -> impl Future<Output = ()> {
    let clock = ConnClock::new();
    // In boxes: nothing of one way is kept by a connection that goes the other.
    async move {
        loop {
            match Box::pin(lean::serve(&conn, &clock, &mut stream)).await {
                Ended::Over => return,
                Ended::Handed => {}
            }
            if stream.has_prefix() {
                clock.bytes_came();
            }
            stream = match Box::pin(serve_requests(&conn, &clock, stream)).await {
                None => return,
                Some(resting) => resting,
            };
        }
    }
}

/// Until the connection is over (`None`), or rests.
async fn serve_requests(conn: &Rc<Conn>, clock: &Arc<ConnClock>, stream: Prefixed<Socket>) -> Option<Prefixed<Socket>> {
    let io = TokioIo::new(Watched::new(stream, Arc::clone(clock)));
    let mut builder = conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // `ConnClock` tells slow headers from idle connections, hyper's timer does not.
        .header_read_timeout(None)
        // A client that has shut its writing side still gets its answer.
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(HTTP1_BUFFER)
        .auto_date_header(false);
    let service = {
        let (conn, clock) = (Rc::clone(conn), Arc::clone(clock));
        service_fn(move |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            serve(
                Rc::clone(&conn),
                Arc::clone(&clock),
                Box::new(head),
                WireBody::Http1(body),
            )
        })
    };
    let mut served = Box::new(builder.serve_connection(io, service).with_upgrades());
    let ended = watch(
        conn,
        clock,
        Pin::new(&mut *served),
        conn::http1::UpgradeableConnection::graceful_shutdown,
    );
    let ended = ended.await;
    if matches!(ended, Watch::Over) {
        return None;
    }
    let parts = served.into_parts()?;
    let mut stream = parts.io.into_inner().into_inner();
    if matches!(ended, Watch::Broken) {
        tcp::reset(stream.into_parts().1);
        return None;
    }
    stream.prepend(parts.read_buf);
    Some(stream)
}

/// Drives an HTTP/1 connection to its end, or until it rests; ends it when it drains, idles, or dawdles.
async fn watch<C>(
    conn: &Conn,
    clock: &ConnClock,
    mut served: Pin<&mut C>,
    graceful_shutdown: impl Fn(Pin<&mut C>),
) -> Watch
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut stop = conn.stop.clone();
    let mut ticks = interval_at(Instant::now() + REST_AFTER, REST_AFTER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ending = false;
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %conn.peer, %error, "client connection ended");
                    if error.is_parse() {
                        // hyper has refused its head.
                        conn.worker.count_request(RequestOutcome::Downstream);
                    }
                    if error.is_user() && conn.until_close.get() {
                        return Watch::Broken;
                    }
                }
                return Watch::Over;
            }
            // Closing between two requests could meet one that is on its way: until then the answers say it.
            () = stop.reached(Phase::Drain), if !ending => {
                ending = true;
                graceful_shutdown(served.as_mut());
            }
            _ = ticks.tick() => {
                match clock.idle_for() {
                    // A long answer needs nobody to look four times a second.
                    None => ticks.reset_after(IDLE_TICK),
                    // Then it may rest.
                    Some(idle) if idle <= REST_AFTER => ticks.reset_after(REST_AFTER - idle + CLOCK_STEP),
                    Some(_) => {}
                }
                if clock.head_is_late(HEADER_READ_TIMEOUT) {
                    tracing::debug!(peer = %conn.peer, "request headers took too long");
                    conn.worker.count_request(RequestOutcome::Downstream);
                    return Watch::Over;
                }
                if !ending && clock.rests(REST_AFTER) {
                    return Watch::Rests;
                }
                if !ending && clock.is_idle(IDLE_TIMEOUT) {
                    ending = true;
                    graceful_shutdown(served.as_mut());
                }
            }
        }
    }
}

/// Answers one request, whatever becomes of it.
///
/// # Errors
/// A filter wants the client to get no answer.
pub(super) async fn serve(
    conn: Rc<Conn>,
    clock: Arc<ConnClock>,
    head: Box<request::Parts>,
    body: WireBody,
) -> Result<Response<ResponseBody>, Unanswered> {
    let exchange = Exchange::new(&conn, &clock, Asked::of(&head, &conn.worker.agents));
    let version = head.version;
    let mut response = match forward_unless_stopped(&exchange, head, body).await {
        Ok(response) => response,
        Err(refusal) => Box::pin(respond::refuse(&exchange, refusal)).await?,
    };
    // A client that gets neither a length nor chunks takes the end of the connection for that of the answer.
    if version == Version::HTTP_10 {
        conn.until_close.set(!response.headers().contains_key(CONTENT_LENGTH));
    }
    if version < Version::HTTP_2
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
        && conn.stop.has_reached(Phase::Retire)
    {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Ends early where a filter of the request's body wants it, which the upstream connection reads: in a task of its own, or in this
/// one, where it then also ends in an error.
async fn forward_unless_stopped(
    exchange: &Rc<Exchange>,
    head: Box<request::Parts>,
    body: WireBody,
) -> Result<Response<ResponseBody>, Refusal> {
    let mut forwarding = pin!(forward::forward(exchange, head, body));
    poll_fn(|cx| {
        if let Some(chain) = exchange.chain()
            && let Poll::Ready(stop) = chain.poll_stopped(cx)
        {
            return Poll::Ready(Err(stop.into()));
        }
        let forwarded = forwarding.as_mut().poll(cx);
        if !matches!(forwarded, Poll::Ready(Ok(_)))
            // It was made just now, or has just ended it.
            && let Some(chain) = exchange.chain()
            && let Poll::Ready(stop) = chain.poll_stopped(cx)
        {
            return Poll::Ready(Err(stop.into()));
        }
        forwarded
    })
    .await
}
