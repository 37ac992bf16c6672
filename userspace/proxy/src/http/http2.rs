//! HTTP/2 towards clients, with prior knowledge: a connection, and its streams in tasks of their own.
//!
//! On h2 itself, as towards endpoints: hyper does not let us say how much small DATA frames may take of our memory.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{Response, request};
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{body::ResponseBody, ending::until_told_or_idle, head, server};
use crate::{
    conn::Conn,
    io::{ConnClock, Prefixed, Sifted, Socket, gather},
    limits::{
        H2_CONNECTION_WINDOW, H2_FRAMES, H2_MAX_LOCAL_RESETS, H2_MAX_PENDING_RESETS, H2_MAX_STREAMS, H2_SEND_BUFFER,
        H2_STREAM_WINDOW, MAX_HEADER_BYTES,
    },
    wire::{Http2Body, WireBody, send_body, tell_length},
};

/// A client's connection; ends with it.
struct Serving<T> {
    conn: Rc<Conn>,
    clock: Arc<ConnClock>,
    state: State<T>,
    /// It is to end once its streams have.
    told: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "it is in the connection's task, and open for all but a moment of its life"
)]
enum State<T> {
    Begins(Handshake<T, Bytes>),
    Open(Connection<T, Bytes>),
}

/// Serves HTTP/2.
pub(crate) async fn serve(conn: Rc<Conn>, stream: Prefixed<Socket>) {
    // Slow headers are bounded by the stream limits here; the clock only tells idle connections.
    let clock = ConnClock::new();
    let (stream, outlet) = gather(Sifted::of_client(stream));
    let handshake = Builder::new()
        .max_concurrent_streams(H2_MAX_STREAMS)
        .initial_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .data_frame_budget(H2_FRAMES)
        .max_send_buffer_size(H2_SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_pending_accept_reset_streams(H2_MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(H2_MAX_LOCAL_RESETS))
        .handshake(stream);
    let serving = pin!(Serving {
        conn: Rc::clone(&conn),
        clock: Arc::clone(&clock),
        state: State::Begins(handshake),
        told: false,
    });
    let idle = conn.worker.idlers.join(&clock);
    let served = until_told_or_idle(serving, Serving::graceful_shutdown, conn.stop.clone(), idle);
    if let Some(Err(error)) = outlet.drive(served).await {
        tracing::debug!(peer = %conn.peer, %error, "client connection ended");
    }
}

/// One request, to the last byte of its answer, or until the client gives up.
async fn stream(
    conn: Rc<Conn>,
    clock: Arc<ConnClock>,
    head: Box<request::Parts>,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let answered = {
        let mut serving = pin!(server::serve(conn, clock, head, WireBody::Http2(Http2Body::new(body))));
        poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        })
        .await
    };
    match answered {
        Some(Ok(response)) => {
            if let Some((body, stream)) = answer(respond, response) {
                send_body(body, stream).await;
            }
        }
        Some(Err(_unanswered)) => respond.send_reset(Reason::INTERNAL_ERROR),
        // Nobody waits for it.
        None => {}
    }
}

/// What is left to be sent, behind the head.
fn answer(
    mut respond: SendResponse<Bytes>,
    response: Response<ResponseBody>,
) -> Option<(ResponseBody, SendStream<Bytes>)> {
    let (mut head, body) = response.into_parts();
    // Filters may have put something there, and h2 would refuse it.
    head::strip_hop_by_hop(&mut head.headers);
    let end = body.is_end_stream();
    if !end && let Some(length) = body.size_hint().exact() {
        tell_length(&mut head.headers, length);
    }
    match respond.send_response(Response::from_parts(head, ()), end) {
        Ok(stream) => (!end).then_some((body, stream)),
        Err(error) => {
            tracing::debug!(%error, "an answer that cannot be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

// === impl Serving ===

impl<T: AsyncRead + AsyncWrite + Unpin> Serving<T> {
    /// The client is told which streams are still answered.
    fn graceful_shutdown(mut self: Pin<&mut Self>) {
        self.told = true;
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Serving<T> {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.state {
                State::Begins(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if self.told {
                        connection.graceful_shutdown();
                    }
                    self.state = State::Open(connection);
                }
                State::Open(connection) => match ready!(connection.poll_accept(cx)) {
                    Some(Ok((request, respond))) => {
                        let (conn, clock) = (Rc::clone(&self.conn), Arc::clone(&self.clock));
                        let (head, body) = request.into_parts();
                        tokio::task::spawn_local(stream(conn, clock, Box::new(head), body, respond));
                    }
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}
