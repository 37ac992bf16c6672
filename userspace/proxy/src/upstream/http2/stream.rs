//! One exchange on an HTTP/2 connection: a request goes out, an answer comes in.

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{HeaderValue, Method, Request, Response, header::CONTENT_LENGTH};
use hyper::body::{Body, Frame};

use super::super::{BoxError, SendError, UpstreamBody};

/// The body of an answer.
pub(crate) struct Http2Body {
    stream: RecvStream,
    /// Trailers are left, if any.
    data_done: bool,
}

/// Sends `request` and returns with the head of the answer. A body that has not gone out by then does so in a task of its own, until
/// its sender or the endpoint gives up; before, it ends with this call.
///
/// # Errors
/// With the request, if nothing of it was sent.
pub(super) async fn send(
    mut sender: SendRequest<Bytes>,
    request: Request<UpstreamBody>,
) -> Result<Response<Http2Body>, SendError> {
    if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
        return Err(SendError {
            unsent: Some(Box::new(request)),
            ..failed(error)
        });
    }
    let (mut head, body) = request.into_parts();
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || means_something_empty(&head.method))
    {
        let length = || HeaderValue::from(length);
        head.headers.entry(CONTENT_LENGTH).or_insert_with(length);
    }
    let end = body.is_end_stream();
    let sent = sender.send_request(Request::from_parts(head, ()), end);
    let (mut response, stream) = sent.map_err(failed)?;
    // An endpoint that takes fewer streams at a time has not heard of it yet.
    poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
    let mut sending = (!end).then(|| Box::pin(send_body(body, stream)));
    let answered = poll_fn(|cx| {
        if let Some(body) = &mut sending
            && body.as_mut().poll(cx).is_ready()
        {
            sending = None;
        }
        Pin::new(&mut response).poll(cx)
    });
    let answer = answered.await.map_err(failed)?;
    if let Some(body) = sending {
        tokio::task::spawn_local(body);
    }
    Ok(answer.map(|stream| Http2Body {
        stream,
        data_done: false,
    }))
}

async fn send_body(mut body: UpstreamBody, mut stream: SendStream<Bytes>) {
    loop {
        let next = poll_fn(|cx| {
            // Whoever resets it wants no more.
            match stream.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Some),
            }
        });
        let frame = match next.await {
            None => return,
            Some(None) => {
                let _gone = stream.send_data(Bytes::new(), true);
                return;
            }
            Some(Some(Err(error))) => {
                stream.send_reset(reason_of(&*error));
                return;
            }
            Some(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                let end = body.is_end_stream();
                if data.is_empty() && !end {
                    continue;
                }
                if !data.is_empty() && !has_room(&mut stream).await {
                    return;
                }
                if stream.send_data(data, end).is_err() || end {
                    return;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    let _gone = stream.send_trailers(trailers);
                    return;
                }
            }
        }
    }
}

/// Waits until the endpoint takes something. As much as a frame of the body is sent then: what it has no room for is kept.
async fn has_room(stream: &mut SendStream<Bytes>) -> bool {
    stream.reserve_capacity(1);
    poll_fn(|cx| {
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    })
    .await
}

/// A body that broke off because its stream was reset is passed on as that.
fn reason_of(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

//= RFC 9110, 8.6
//# A user agent SHOULD send Content-Length in a request when the method defines a meaning for enclosed content
fn means_something_empty(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

fn failed(error: h2::Error) -> SendError {
    let kind = error.get_io().map(io::Error::kind);
    SendError {
        unsent: None,
        is_lost: matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)),
        source: error.into(),
    }
}

// === impl Http2Body ===

impl Body for Http2Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { stream, data_done } = &mut *self;
        if !*data_done {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The stream may have ended since.
                    let _ended = stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(broken(error)),
                None => *data_done = true,
            }
        }
        Poll::Ready(match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => broken(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

//= RFC 9113, 8.1
//# Clients MUST NOT discard responses as a result of receiving such a RST_STREAM
fn broken<T>(error: h2::Error) -> Option<Result<T, BoxError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then(|| Err(error.into()))
}
