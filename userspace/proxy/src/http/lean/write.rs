//! What is written to the client.

use std::{
    future::poll_fn,
    io::Write as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    Method, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use hyper::body::Body as _;
use tokio::io::AsyncWriteExt;

use super::{
    Next, lines,
    response::{self, AnswerError},
};
use crate::{
    http::{
        body::ResponseBody,
        exchange::Exchange,
        respond::{self, Refusal},
    },
    io::Socket,
    limits::LEAN_COPY,
    listen::stop::Phase,
};

/// An answer that its client does not get whole.
pub(super) enum Broken {
    /// The endpoint's side.
    Answer(AnswerError),
    /// The client has gone.
    Client,
}

/// Writes `out`, which is empty then.
pub(super) async fn write(client: &mut Socket, out: &mut Vec<u8>) -> Result<(), Broken> {
    if out.is_empty() {
        return Ok(());
    }
    client.write_all(out).await.map_err(|_gone| Broken::Client)?;
    out.clear();
    Ok(())
}

/// Answers in the endpoint's place. In a box: it is rare, and larger than all else together.
pub(super) async fn refuse(exchange: &Rc<Exchange>, refusal: Refusal, client: &mut Socket, out: &mut Vec<u8>) -> Next {
    let answer = async {
        match respond::refuse(exchange, refusal).await {
            Ok(response) => respond_with(exchange, response, client, out).await,
            Err(_unanswered) => Next::Close,
        }
    };
    Box::pin(answer).await
}

/// Writes an answer whose body comes in frames, as hyper would.
pub(super) async fn respond_with(
    exchange: &Exchange,
    mut response: Response<ResponseBody>,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Next {
    let Written {
        length,
        without_body,
        close,
    } = write_head(exchange, &mut response, out);
    let sent = if without_body {
        Ok(())
    } else {
        send_frames(response.body_mut(), length, client, out).await
    };
    match (sent, client.write_all(out).await) {
        (Ok(()), Ok(())) if !close => Next::Request,
        // That it is not all, the end of the connection says.
        _ => Next::Close,
    }
}

/// A head that was written.
struct Written {
    /// Of the body, as told.
    length: Option<u64>,
    without_body: bool,
    /// The connection ends after it.
    close: bool,
}

fn write_head(exchange: &Exchange, response: &mut Response<ResponseBody>, out: &mut Vec<u8>) -> Written {
    if response.status().is_informational() {
        // A filter's: interim answers and changes of the protocol are not its to give.
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        exchange.set_status(response.status());
    }
    let status = response.status();
    let mut lengths = response.headers().get_all(CONTENT_LENGTH).iter();
    let said = lengths.next().and_then(|value| response::number(value.as_bytes()));
    let said = said.filter(|_| lengths.next().is_none());
    let without_body = exchange.method == Method::HEAD || response::is_bodiless(status);
    let length = match response.body().is_end_stream() {
        // Whatever was said.
        true if !without_body => Some(0),
        _ => said.or(response.body().size_hint().exact()),
    };
    let headers = response.headers_mut();
    let connection = headers.remove(CONNECTION);
    let closes = connection.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let close = closes || exchange.conn.stop.has_reached(Phase::Retire);
    out.clear();
    let reason = status.canonical_reason().unwrap_or_default();
    for part in [
        b"HTTP/1.1 ",
        status.as_str().as_bytes(),
        b" ",
        reason.as_bytes(),
        b"\r\n",
    ] {
        out.extend_from_slice(part);
    }
    for (name, value) in headers.iter() {
        // Said anew below, however a filter has said it.
        if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
            lines::write(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match length {
        _ if response::is_bodiless(status) => {}
        // To HEAD what is not known is not said.
        None if without_body => {}
        Some(length) => lines::write_length(out, length),
        None => lines::write(out, b"transfer-encoding", b"chunked"),
    }
    if close {
        lines::write(out, b"connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    Written {
        length,
        without_body,
        close,
    }
}

/// Carries a body to the client: of this length, or in chunks; what is left in `out` at its end is still to be written.
async fn send_frames(
    body: &mut ResponseBody,
    length: Option<u64>,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Result<(), Broken> {
    let mut left = length;
    loop {
        let data = match poll_fn(|cx| Poll::Ready(poll_data(body, cx))).await {
            Poll::Ready(data) => data,
            Poll::Pending => {
                write(client, out).await?;
                poll_fn(|cx| poll_data(body, cx)).await
            }
        };
        let Some(data) = data else { break };
        let mut data = data?;
        match &mut left {
            Some(left) => {
                // A filter may have made it longer than its head says.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            None if data.is_empty() => continue,
            None => _ = write!(out, "{:x}\r\n", data.len()),
        }
        if data.len() <= LEAN_COPY {
            out.extend_from_slice(&data);
        } else {
            write(client, out).await?;
            client.write_all(&data).await.map_err(|_gone| Broken::Client)?;
        }
        if left.is_none() {
            out.extend_from_slice(b"\r\n");
        }
        if out.len() > LEAN_COPY {
            write(client, out).await?;
        }
    }
    match left {
        None => out.extend_from_slice(b"0\r\n\r\n"),
        Some(0) => {}
        Some(_) => return Err(Broken::Answer(AnswerError::Cut)),
    }
    Ok(())
}

/// The bytes of the next frame. Trailers have none: nobody announced that it takes any.
fn poll_data(body: &mut ResponseBody, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
    let frame = ready!(Pin::new(body).poll_frame(cx));
    Poll::Ready(frame.map(|frame| match frame {
        Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
        // It is noted by the body itself.
        Err(_) => Err(Broken::Answer(AnswerError::Cut)),
    }))
}
