//! Requests that no adapter looks at: bytes go from one socket to the other.

use std::{future::poll_fn, io::Write as _, rc::Rc};

use tokio::io::AsyncWriteExt;

use super::{
    Next,
    ask::{ask, failed, head_of, reach},
    buffers::Buffer,
    chunks::{Body, Framing, Piece},
    response::Head,
    write::{Broken, refuse, write},
};
use crate::{
    http::{exchange::Exchange, forward::Reached},
    io::Socket,
    limits::LEAN_COPY,
    listen::stop::Phase,
    pick::Picked,
    upstream::Plain,
    worker::Worker,
};

/// Sends on a request: as it came, with a head of `length` bytes, it is in `input`; as it goes to the endpoint, in `out`.
pub(super) async fn forward(
    exchange: &Rc<Exchange>,
    picked: Rc<Picked>,
    client: &mut Socket,
    input: &mut Buffer,
    length: usize,
    out: &mut Vec<u8>,
) -> Next {
    let reached = reach(exchange, picked, &input.unread()[..length]).await;
    input.consume(length);
    exchange.conn.worker.buffers.take_back(input);
    match reached {
        Ok(reached) => carry_out(exchange, reached, client, out).await,
        Err(refusal) => refuse(exchange, refusal, client, out).await,
    }
}

/// Sends the head in `out` where it may go, and carries the answer back.
pub(super) async fn carry_out(
    exchange: &Rc<Exchange>,
    mut reached: Reached<Plain>,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Next {
    let conn = &exchange.conn;
    let worker = &conn.worker;
    // All methods that go this way may be repeated (RFC 9110 9.2.2).
    let repeat = reached.sending.reused;
    let mut answer = match ask(exchange, &mut reached, repeat, out, None).await {
        Ok(asked) => asked,
        Err(refusal) => return refuse(exchange, refusal, client, out).await,
    };
    // Used in place: whatever is moved here, every request that waits has twice.
    let server = &mut reached.sending.socket;
    out.clear();
    let close = conn.stop.has_reached(Phase::Retire);
    let write = |head: &Head<'_>| {
        head.write(close, out);
        Ok(())
    };
    let passed = match head_of(worker, server, &mut answer, &exchange.method, write).await {
        Ok((passed, ())) => passed,
        Err(error) => {
            worker.buffers.give_input(answer);
            return refuse(exchange, failed(reached.picked.address, error).into(), client, out).await;
        }
    };
    exchange.answered(passed.status);
    let relayed = relay(worker, exchange, passed.framing, server, &mut answer, client, out).await;
    // Behind its end nothing may stand: it would be taken for the next one's.
    if relayed.is_ok() && passed.keep && answer.is_empty() {
        reached.sending.home.keep(reached.sending.socket);
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

/// Carries the body to the client; what is left in `out` at its end is still to be written.
async fn relay(
    worker: &Worker,
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
                let read = poll_fn(|cx| worker.buffers.poll_more(answer, server, cx)).await;
                if read.map_err(|error| Broken::Answer(error.into()))? == 0 {
                    body.end().map_err(Broken::Answer)?;
                }
            }
            // Nobody announced that it takes any.
            Piece::Trailers(_) => {}
            Piece::Over => {
                if rechunk {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                return Ok(());
            }
        }
    }
}
