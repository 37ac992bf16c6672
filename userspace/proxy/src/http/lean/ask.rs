//! Asking an endpoint: a head goes out, the answer's comes back.

use std::{future::poll_fn, io};

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
    let mut server = fresh.map_err(|source| DataError::Connect {
        address: upstream.address,
        tried: 1,
        source,
    })?;
    match try_ask(worker, &mut server, head).await {
        Ok(answer) => Ok((server, answer)),
        Err(error) => Err(failed(upstream, error)),
    }
}

async fn try_ask(worker: &Worker, server: &mut Socket, head: &[u8]) -> Result<Buffer, AnswerError> {
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
pub(super) async fn head_of(
    server: &mut Socket,
    answer: &mut Buffer,
    method: &Method,
    close: bool,
    out: &mut Vec<u8>,
) -> Result<Passed, AnswerError> {
    loop {
        match Passed::read(answer.unread(), method, close, out)? {
            Some(passed) if passed.status == StatusCode::SWITCHING_PROTOCOLS => return Err(AnswerError::Upgrade),
            Some(passed) if passed.status.is_informational() => answer.consume(passed.length),
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
