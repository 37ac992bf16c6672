//! The short way of a request that nothing but the operator's rules looks at: without a body, adapters or trace, written as
//! everybody writes it. Most are.
//!
//! hyper's two connections, the maps of headers between them and the channels that join these cost several times what the
//! rules do. Here a head is read where it lies, judged, and written on with what is ours left out; the answer follows it. What a
//! request meets is the same: the same pick, the same rules, the same report at its end. Whatever is unusual or refused is
//! handed to hyper as it came, before anything of it has gone anywhere ([`request`] says what that is), so there is one place
//! that knows how to say no.
//!
//! ```text
//!  client --> head: Head::read --> pick, rules --> Head::write --> endpoint
//!               | hyper is to look      | no, or an adapter
//!               +-----------------------+--> server.rs, forward.rs
//!  client <-- Passed::read (head), Body::next (framing said anew) <-- endpoint
//! ```
//! A connection that waits has no buffer ([`buffers`]).

pub(crate) mod buffers;
mod chunks;
mod request;
mod response;

use std::{
    future::poll_fn,
    io::{self, Write as _},
    mem::MaybeUninit,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};
use weft_adapters::trace;
use weft_policy::{ObjectRef, Verdict};

use self::{
    buffers::Buffer,
    chunks::{Body, Framing, Piece},
    request::Head,
    response::{AnswerError, Passed},
};
use super::{
    exchange::{Asked, Exchange},
    respond::{self, Refusal},
};
use crate::{
    conn::Conn,
    error::DataError,
    io::{ConnClock, Prefixed, Socket},
    judge,
    limits::{IDLE_TIMEOUT, LEAN_COPY, MAX_HEADERS},
    listen::stop::Phase,
    metrics::ProxyMetrics,
    pick::{Picked, pick_now},
    report,
    worker::Worker,
};

/// How [`serve`] ended.
pub(crate) enum Ended {
    /// The connection is over.
    Over,
    /// hyper is to go on with it.
    Handed(Prefixed<Socket>),
}

/// What becomes of a connection after a request.
enum Next {
    Request,
    Close,
    /// Nothing of the request was used up.
    Hyper,
}

/// A request that may go the short way.
struct Admitted {
    picked: Picked,
    rule: Option<ObjectRef>,
    asked: Asked,
    /// Bytes of its head.
    length: usize,
}

/// An answer that its client does not get whole.
enum Broken {
    /// The endpoint's side.
    Answer(AnswerError),
    /// The client has gone.
    Client,
}

/// Serves requests that go the short way, one after the other, until one does not.
pub(crate) async fn serve(conn: &Rc<Conn>, clock: &Arc<ConnClock>, stream: Prefixed<Socket>) -> Ended {
    let (prefix, mut socket) = stream.into_parts();
    let worker = &conn.worker;
    let mut came = None;
    if !prefix.is_empty() {
        let mut buffer = worker.buffers.input();
        if !buffer.put(&prefix) {
            return Ended::Handed(Prefixed::new(prefix, socket));
        }
        came = Some(buffer);
    }
    drop(prefix);
    let mut stop = conn.stop.clone();
    let mut draining = pin!(stop.reached(Phase::Drain));
    let mut idle = pin!(sleep(IDLE_TIMEOUT));
    loop {
        let mut input = match came.take() {
            Some(input) => input,
            None => {
                let _resting = Resting::new(&worker.metrics);
                let read = poll_fn(|cx| {
                    if let Poll::Ready(read) = worker.buffers.poll_read(&mut socket, cx) {
                        return Poll::Ready(read.ok());
                    }
                    // Set for when the connection was new; requests that came since have moved it.
                    while idle.as_mut().poll(cx).is_ready() {
                        let left = IDLE_TIMEOUT.saturating_sub(clock.idle_for().unwrap_or_default());
                        if left.is_zero() {
                            return Poll::Ready(None);
                        }
                        idle.as_mut().reset(Instant::now() + left);
                    }
                    draining.as_mut().poll(cx).map(|()| None)
                });
                match read.await {
                    Some(input) if !input.is_empty() => input,
                    end => {
                        if let Some(input) = end {
                            worker.buffers.give_input(input);
                        }
                        let _gone = socket.shutdown().await;
                        return Ended::Over;
                    }
                }
            }
        };
        // In a box: a connection that waits has nothing of it.
        match Box::pin(exchange(conn, clock, &mut socket, &mut input)).await {
            Next::Request if input.is_empty() => worker.buffers.give_input(input),
            Next::Request => came = Some(input),
            Next::Close => {
                worker.buffers.give_input(input);
                let _gone = socket.shutdown().await;
                return Ended::Over;
            }
            Next::Hyper => {
                let prefix = Bytes::copy_from_slice(input.unread());
                worker.buffers.give_input(input);
                return Ended::Handed(Prefixed::new(prefix, socket));
            }
        }
    }
}

/// One request, from its head in `input` to the last byte of its answer.
async fn exchange(conn: &Rc<Conn>, clock: &Arc<ConnClock>, client: &mut Socket, input: &mut Buffer) -> Next {
    let worker = &conn.worker;
    let mut out = worker.buffers.output();
    let next = match admit(conn, input.unread(), &mut out) {
        Some(admitted) => forward(conn, clock, client, input, admitted, &mut out).await,
        None => Next::Hyper,
    };
    worker.buffers.give_output(out);
    next
}

/// Picks and judges as [`super::forward`] does; appends the head that goes to the endpoint to `out`. `None`: hyper is to look.
fn admit(conn: &Conn, bytes: &[u8], out: &mut Vec<u8>) -> Option<Admitted> {
    if trace::is_wanted() {
        return None;
    }
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let head = Head::read(bytes, &mut lines)?;
    let picked = pick_now(&conn.worker, conn.dialled(), &head)?;
    if picked.chain.as_ref().is_some_and(|chain| !chain.is_empty()) {
        return None;
    }
    let decision = judge::request(conn, &picked, &head);
    if decision.verdict != Verdict::Allow {
        return None;
    }
    head.write(conn.forwarded_for.as_ref(), out);
    Some(Admitted {
        rule: report::rule_object(&picked.snapshot, decision.rule).or_else(|| picked.split.clone()),
        picked,
        asked: head.asked(),
        length: head.length,
    })
}

async fn forward(
    conn: &Rc<Conn>,
    clock: &Arc<ConnClock>,
    client: &mut Socket,
    input: &mut Buffer,
    admitted: Admitted,
    out: &mut Vec<u8>,
) -> Next {
    let worker = &conn.worker;
    let address = admitted.picked.address;
    let _load = worker.loads.begin(address);
    let upstream = conn.upstream(address);
    let Ok((mut server, mut reused)) = worker.pool.take_plain(&upstream).await else {
        // hyper's way tries others.
        return Next::Hyper;
    };
    input.consume(admitted.length);
    let method = admitted.asked.method.clone();
    let exchange = Exchange::new(conn, clock, admitted.asked);
    exchange.set_destination(&admitted.picked.destination);
    exchange.allowed(admitted.rule);
    let refused = |error: Box<dyn std::error::Error + Send + Sync>| DataError::Upstream { address, source: error };
    let mut answer = loop {
        let error = match ask(worker, &mut server, out).await {
            Ok(answer) => break answer,
            Err(error) => error,
        };
        // All methods that go this way may be repeated (RFC 9110 9.2.2).
        if !std::mem::take(&mut reused) || !is_lost(&error) {
            return refuse(&exchange, refused(error.into()), client, out).await;
        }
        worker.metrics.upstream_retried.inc();
        server = match worker.pool.open_plain(&upstream).await {
            Ok(server) => server,
            Err(source) => {
                let error = DataError::Connect {
                    address,
                    tried: 1,
                    source,
                };
                return refuse(&exchange, error, client, out).await;
            }
        };
    };
    out.clear();
    let close = conn.stop.has_reached(Phase::Retire);
    let passed = match head_of(&mut server, &mut answer, &method, close, out).await {
        Ok(passed) if passed.status == StatusCode::SWITCHING_PROTOCOLS => Err(DataError::UnaskedUpgrade { address }),
        Ok(passed) => Ok(passed),
        Err(error) => Err(refused(error.into())),
    };
    let passed = match passed {
        Ok(passed) => passed,
        Err(error) => {
            worker.buffers.give_input(answer);
            return refuse(&exchange, error, client, out).await;
        }
    };
    answer.consume(passed.length);
    exchange.answered(passed.status);
    let relayed = relay(&exchange, passed.framing, &mut server, &mut answer, client, out).await;
    // Behind its end nothing may stand: it would be taken for the next one's.
    if relayed.is_ok() && passed.keep && answer.is_empty() {
        worker.pool.keep_plain(upstream, server);
    }
    worker.buffers.give_input(answer);
    match &relayed {
        Ok(()) => {}
        Err(Broken::Client) => return Next::Close,
        // What came before is the client's; that it is not all, the end of the connection says.
        Err(Broken::Answer(error)) => exchange.response_broke(error),
    }
    match client.write_all(out).await {
        Ok(()) if relayed.is_ok() && !close => Next::Request,
        _ => Next::Close,
    }
}

/// Sends a head and waits for the first bytes of the answer.
async fn ask(worker: &Worker, server: &mut Socket, head: &[u8]) -> Result<Buffer, AnswerError> {
    server.write_all(head).await?;
    let answer = poll_fn(|cx| worker.buffers.poll_read(server, cx)).await?;
    if answer.is_empty() {
        worker.buffers.give_input(answer);
        return Err(AnswerError::Cut);
    }
    Ok(answer)
}

/// The endpoint had closed the connection before it read the request, as far as can be told.
fn is_lost(error: &AnswerError) -> bool {
    match error {
        AnswerError::Cut => true,
        AnswerError::Io(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
        _ => false,
    }
}

/// Reads up to the answer's head, past interim ones, and appends what goes to the client to `out`.
async fn head_of(
    server: &mut Socket,
    answer: &mut Buffer,
    method: &Method,
    close: bool,
    out: &mut Vec<u8>,
) -> Result<Passed, AnswerError> {
    loop {
        match Passed::read(answer.unread(), method, close, out)? {
            Some(passed) if passed.status.is_informational() && passed.status != StatusCode::SWITCHING_PROTOCOLS => {
                answer.consume(passed.length);
            }
            Some(passed) => return Ok(passed),
            None if answer.is_full() => return Err(AnswerError::TooLong),
            None => {
                if poll_fn(|cx| answer.poll_fill(server, cx)).await? == 0 {
                    return Err(AnswerError::Cut);
                }
            }
        }
    }
}

/// Carries the body to the client; what is left in `out` at its end is still to be written.
async fn relay(
    exchange: &Exchange,
    framing: Framing,
    server: &mut Socket,
    answer: &mut Buffer,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Result<(), Broken> {
    let rechunk = matches!(framing, Framing::Chunked | Framing::Close);
    let mut body = Body::new(framing);
    loop {
        match body.next(answer).map_err(Broken::Answer)? {
            Piece::Data(count) => {
                if rechunk {
                    // A Vec takes all.
                    let _ = write!(out, "{count:x}\r\n");
                }
                let data = &answer.unread()[..count];
                if count <= LEAN_COPY {
                    out.extend_from_slice(data);
                } else {
                    write(client, out).await?;
                    client.write_all(data).await.map_err(|_gone| Broken::Client)?;
                }
                if rechunk {
                    out.extend_from_slice(b"\r\n");
                }
                exchange.response_data(count);
                answer.consume(count);
            }
            Piece::More => {
                write(client, out).await?;
                let read = poll_fn(|cx| answer.poll_fill(server, cx)).await;
                if read.map_err(|error| Broken::Answer(error.into()))? == 0 {
                    body.end().map_err(Broken::Answer)?;
                }
            }
            Piece::Over => {
                if rechunk {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                return Ok(());
            }
        }
    }
}

async fn write(client: &mut Socket, out: &mut Vec<u8>) -> Result<(), Broken> {
    if out.is_empty() {
        return Ok(());
    }
    client.write_all(out).await.map_err(|_gone| Broken::Client)?;
    out.clear();
    Ok(())
}

/// Answers in the endpoint's place, as hyper would write it.
async fn refuse(exchange: &Rc<Exchange>, error: DataError, client: &mut Socket, out: &mut Vec<u8>) -> Next {
    let Ok(response) = respond::refuse(exchange, Refusal::Failed(error)).await else {
        return Next::Close;
    };
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await else {
        return Next::Close;
    };
    let body = body.to_bytes();
    let close = exchange.conn.stop.has_reached(Phase::Retire);
    out.clear();
    let reason = head.status.canonical_reason().unwrap_or_default();
    // A Vec takes all.
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", head.status.as_str());
    for (name, value) in &head.headers {
        request::write_line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    request::write_line(out, b"content-length", body.len().to_string().as_bytes());
    if close {
        request::write_line(out, b"connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    if exchange.method != Method::HEAD {
        out.extend_from_slice(&body);
        exchange.response_data(body.len());
    }
    match client.write_all(out).await {
        Ok(()) if !close => Next::Request,
        _ => Next::Close,
    }
}

/// Counts a connection as resting for as long as it lives.
struct Resting<'a>(&'a ProxyMetrics);

// === impl Resting ===

impl<'a> Resting<'a> {
    fn new(metrics: &'a ProxyMetrics) -> Self {
        metrics.connections_resting.inc();
        Self(metrics)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.connections_resting.dec();
    }
}
