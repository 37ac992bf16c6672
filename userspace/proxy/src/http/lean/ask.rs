//! Asking an endpoint: a head goes out, the answer's comes back.

use std::{future::poll_fn, io, net::SocketAddr, rc::Rc};

use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;

use super::{
    buffers::Buffer,
    request_lines,
    response::{self, AnswerError, Head, Passed},
};
use crate::{
    balance::InFlight,
    error::DataError,
    http::{
        exchange::Exchange,
        forward::{self as carry, Reached},
        respond::Refusal,
    },
    io::Socket,
    pick::Picked,
    upstream::{Plain, Upstream},
    worker::Worker,
};

/// Connects to an endpoint for the request that came with the head `text`.
pub(super) async fn reach(exchange: &Rc<Exchange>, picked: Rc<Picked>, text: &[u8]) -> Result<Reached<Plain>, Refusal> {
    let conn = &exchange.conn;
    let load = picked.load.begin();
    match conn.worker.pool.idle_plain(conn.home(&picked)) {
        Some(sending) => Ok(Reached { picked, load, sending }),
        // In a box: most find one.
        None => Box::pin(connect(exchange, picked, load, text)).await,
    }
}

async fn connect(
    exchange: &Rc<Exchange>,
    picked: Rc<Picked>,
    load: InFlight,
    text: &[u8],
) -> Result<Reached<Plain>, Refusal> {
    let worker = &exchange.conn.worker;
    let take = async |upstream: &Upstream| worker.pool.take_plain(upstream).await;
    let error = match take(&exchange.conn.upstream(picked.address)).await {
        Ok(sending) => return Ok(Reached { picked, load, sending }),
        Err(error) => error,
    };
    drop(load);
    // Others are picked by what the client asked, whatever adapters have made of it.
    let head = request_lines::parts(text)?;
    Box::pin(carry::reach(exchange, picked, &head, take, Some(error))).await
}

/// What the client is told of it.
pub(super) fn failed(address: SocketAddr, error: AnswerError) -> DataError {
    match error {
        AnswerError::Upgrade => DataError::UnaskedUpgrade { address },
        error => DataError::Upstream {
            address,
            source: error.into(),
        },
    }
}

/// Sends a head and waits for the first bytes of the answer; once more on a fresh connection in its place, where this one was being
/// closed by the endpoint just then and it may be repeated. `text`: the head as it came; `None`: `head` is what was written of it.
pub(super) async fn ask(
    exchange: &Rc<Exchange>,
    reached: &mut Reached<Plain>,
    repeat: bool,
    head: &[u8],
    text: Option<&[u8]>,
) -> Result<Buffer, Refusal> {
    let worker = &exchange.conn.worker;
    match try_ask(worker, &mut reached.sending.socket, head).await {
        Ok(answer) => return Ok(answer),
        Err(error) if repeat && is_lost(&error) => {}
        Err(error) => return Err(failed(reached.picked.address, error).into()),
    }
    worker.metrics.upstream_retried.inc();
    *reached = Box::pin(reach_anew(exchange, Rc::clone(&reached.picked), head, text)).await?;
    let asked = try_ask(worker, &mut reached.sending.socket, head).await;
    asked.map_err(|error| failed(reached.picked.address, error).into())
}

/// On a fresh connection, to another endpoint where this one takes none any more.
async fn reach_anew(
    exchange: &Rc<Exchange>,
    picked: Rc<Picked>,
    head: &[u8],
    text: Option<&[u8]>,
) -> Result<Reached<Plain>, Refusal> {
    let conn = &exchange.conn;
    let pool = &conn.worker.pool;
    let parts = match text {
        Some(text) => request_lines::parts(text)?,
        None => request_lines::parts_of_written(head, conn.forwarded_for.as_ref())?,
    };
    let open = async |upstream: &Upstream| {
        Ok(Plain {
            socket: pool.open_plain(upstream).await?,
            reused: false,
            home: pool.home(upstream),
        })
    };
    carry::reach(exchange, picked, &parts, open, None).await
}

async fn try_ask(worker: &Worker, server: &mut Socket, head: &[u8]) -> Result<Buffer, AnswerError> {
    let written = server.write_all(head).await;
    // An endpoint that did not read all of it may have said why.
    let answer = poll_fn(|cx| worker.buffers.poll_read(server, cx)).await;
    match (written, answer) {
        (_, Ok(answer)) if !answer.is_empty() => Ok(answer),
        (written, answer) => {
            let answer = answer.map(|answer| worker.buffers.give_input(answer));
            written?;
            answer?;
            Err(AnswerError::Cut)
        }
    }
}

/// The endpoint had closed the connection before it read the request, as far as can be told.
fn is_lost(error: &AnswerError) -> bool {
    match error {
        AnswerError::Cut => true,
        AnswerError::Io(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
        _ => false,
    }
}

/// Reads up to the answer's head, past interim ones, and hands it to `take` while it lies in the buffer; what is behind it stays
/// there.
pub(super) async fn head_of<T>(
    worker: &Worker,
    server: &mut Socket,
    answer: &mut Buffer,
    method: &Method,
    mut take: impl FnMut(&Head<'_>) -> Result<T, AnswerError>,
) -> Result<(Passed, T), AnswerError> {
    let mut looked = 0;
    loop {
        // What is no head shows at its begin, maybe at once. After that: not from its begin with every byte that comes.
        let read = match looked == 0 || has_end(answer.unread(), looked) {
            true => response::read(answer.unread(), method, &mut take)?,
            false => None,
        };
        looked = answer.unread().len();
        match read {
            Some((passed, _)) if passed.status == StatusCode::SWITCHING_PROTOCOLS => return Err(AnswerError::Upgrade),
            Some((passed, taken)) => {
                answer.consume(passed.length);
                if let Some(taken) = taken {
                    return Ok((passed, taken));
                }
                looked = 0;
            }
            None if answer.is_full() => return Err(AnswerError::TooLong),
            None => {
                if poll_fn(|cx| worker.buffers.poll_more(answer, server, cx)).await? == 0 {
                    return Err(AnswerError::Cut);
                }
            }
        }
    }
}

/// Whether a head may end in `bytes`, of which the first `looked` were looked at.
fn has_end(bytes: &[u8], looked: usize) -> bool {
    let rest = bytes.get(looked.saturating_sub(3)..).unwrap_or_default();
    rest.windows(2).any(|two| two == b"\n\n") || rest.windows(3).any(|three| three == b"\n\r\n")
}
