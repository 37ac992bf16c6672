//! Asking an endpoint: a head goes out, the answer's comes back.

use std::{future::poll_fn, io, net::SocketAddr};

use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;

use super::{
    buffers::Buffer,
    response::{AnswerError, Passed},
};
use crate::{error::DataError, io::Socket, upstream::Upstream, worker::Worker};

/// What the client is told of it.
pub(super) fn failed(upstream: &Upstream, error: AnswerError) -> DataError {
    let address = upstream.address;
    match error {
        AnswerError::Upgrade => DataError::UnaskedUpgrade { address },
        error => DataError::Upstream {
            address,
            source: error.into(),
        },
    }
}

pub(super) fn failed_to_connect(address: SocketAddr, source: io::Error) -> DataError {
    DataError::Connect {
        address,
        tried: 1,
        source,
    }
}

/// Sends a head and waits for the first bytes of the answer; once more on a fresh connection, where this one was being closed by
/// the endpoint just then and it may be repeated.
pub(super) async fn ask(
    worker: &Worker,
    upstream: &Upstream,
    mut server: Socket,
    repeat: bool,
    head: &[u8],
) -> Result<(Socket, Buffer), DataError> {
    match try_ask(worker, &mut server, head).await {
        Ok(answer) => return Ok((server, answer)),
        Err(error) if repeat && is_lost(&error) => {}
        Err(error) => return Err(failed(upstream, error)),
    }
    worker.metrics.upstream_retried.inc();
    let fresh = worker.pool.open_plain(upstream).await;
    let mut server = fresh.map_err(|source| failed_to_connect(upstream.address, source))?;
    match try_ask(worker, &mut server, head).await {
        Ok(answer) => Ok((server, answer)),
        Err(error) => Err(failed(upstream, error)),
    }
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

/// Reads up to the answer's head, past interim ones, and appends what goes to the client to `out`.
pub(super) async fn head_of(
    worker: &Worker,
    server: &mut Socket,
    answer: &mut Buffer,
    method: &Method,
    close: bool,
    out: &mut Vec<u8>,
) -> Result<Passed, AnswerError> {
    let mut looked = 0;
    loop {
        // What is no head shows at its begin, maybe at once. After that: not from its begin with every byte that comes.
        let read = match looked == 0 || has_end(answer.unread(), looked) {
            true => Passed::read(answer.unread(), method, close, out)?,
            false => None,
        };
        looked = answer.unread().len();
        match read {
            Some(passed) if passed.status == StatusCode::SWITCHING_PROTOCOLS => return Err(AnswerError::Upgrade),
            Some(passed) if passed.status.is_informational() => {
                answer.consume(passed.length);
                looked = 0;
            }
            Some(passed) => return Ok(passed),
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
