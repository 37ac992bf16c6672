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
    Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use hyper::body::Body as _;
use tokio::io::AsyncWriteExt;
use weft_adapters::{HeaderSection, ResponseHead};

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
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let head = ResponseHead::new(parts.status, parts.headers);
                respond_with(exchange, head, body, client, out).await
            }
            Err(_unanswered) => Next::Close,
        }
    };
    Box::pin(answer).await
}

/// Writes an answer whose body comes in frames, as hyper would.
pub(super) async fn respond_with(
    exchange: &Exchange,
    mut head: ResponseHead,
    mut body: ResponseBody,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Next {
    let Written {
        length,
        without_body,
        close,
    } = write_head(exchange, &mut head, &body, out);
    let sent = if without_body {
        Ok(())
    } else {
        send_frames(&mut body, length, client, out).await
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

fn write_head(exchange: &Exchange, head: &mut ResponseHead, body: &ResponseBody, out: &mut Vec<u8>) -> Written {
    if head.status.is_informational() {
        // A filter's: interim answers and changes of the protocol are not its to give.
        head.status = StatusCode::INTERNAL_SERVER_ERROR;
        exchange.set_status(head.status);
    }
    let status = head.status;
    let said = said_length(&head.headers);
    let bodiless = response::is_bodiless(status);
    let without_body = exchange.method == Method::HEAD || bodiless;
    let length = match body.is_end_stream() {
        // Whatever was said.
        true if !without_body => Some(0),
        _ => said.or(body.size_hint().exact()),
    };
    if length != said || (bodiless && said.is_some()) {
        // It is not to be said so.
        head.headers.map_mut();
    }
    let closes = match &mut head.headers {
        HeaderSection::Text(_) => false,
        HeaderSection::Map(headers) => {
            let connection = headers.remove(CONNECTION);
            connection.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
        }
    };
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
    let unsaid = match &head.headers {
        // With its length.
        HeaderSection::Text(headers) => {
            for (name, value) in headers.iter() {
                lines::write(out, name, value);
            }
            length.is_none()
        }
        HeaderSection::Map(headers) => {
            for (name, value) in headers {
                // Said anew below, however a filter has said it.
                if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
                    lines::write(out, name.as_str().as_bytes(), value.as_bytes());
                }
            }
            true
        }
    };
    match length {
        _ if bodiless => {}
        // To HEAD what is not known is not said.
        None if without_body => {}
        Some(length) if unsaid => lines::write_length(out, length),
        Some(_) => {}
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

/// What they say of the body's length; of two that may differ, neither.
fn said_length(headers: &HeaderSection) -> Option<u64> {
    let name = b"content-length";
    let one = match headers {
        // It is ours.
        HeaderSection::Text(_) => true,
        HeaderSection::Map(_) => headers.count(name) == 1,
    };
    headers.find(name).filter(|_| one).and_then(response::number)
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
