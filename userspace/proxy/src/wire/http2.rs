//! Bodies of HTTP/2.

use std::{
    error::Error,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, header::CONTENT_LENGTH};
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::error::BoxError;

/// One that comes in.
pub(crate) struct Http2Body {
    stream: RecvStream,
    /// Trailers are left, if any.
    data_done: bool,
    /// Of an answer: the task that still sends its request.
    sending: Option<AbortHandle>,
}

/// Sends `body` to its end, or until its sender or the other side gives up. Pieces that are empty are not worth a frame.
pub(crate) async fn send_body<B>(mut body: B, mut stream: SendStream<Bytes>)
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
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
                stream.send_reset(reset_of(&*error.into()));
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
                    if let Err(error) = stream.send_trailers(trailers) {
                        // Filters may have put something there that HTTP/2 forbids, and both sides would wait for the end. Of a
                        // stream that has ended, nothing is sent.
                        tracing::debug!(%error, "trailers that cannot be sent");
                        stream.send_reset(Reason::INTERNAL_ERROR);
                    }
                    return;
                }
            }
        }
    }
}

/// Waits until the other side takes something. As much as a frame of the body is sent then: what it has no room for is kept.
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

/// A body that broke off because its stream was reset is passed on as that. Only what is whole is reset without an error (RFC 9113, 8.1),
/// and h2 tells of no reset after the end.
fn reset_of(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return match error.reason() {
                Some(Reason::NO_ERROR) => Reason::CANCEL,
                reason => reason.unwrap_or(Reason::INTERNAL_ERROR),
            };
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

/// Says how long a body is, where that is known and not said.
pub(crate) fn tell_length(headers: &mut HeaderMap, length: u64) {
    let length = || HeaderValue::from(length);
    headers.entry(CONTENT_LENGTH).or_insert_with(length);
}

// === impl Http2Body ===

impl Http2Body {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self::answer(stream, None)
    }

    /// Of an answer whose request is still being sent: without whoever reads the answer, that ends too.
    pub(crate) fn answer(stream: RecvStream, sending: Option<AbortHandle>) -> Self {
        Self {
            stream,
            data_done: false,
            sending,
        }
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take()
            && !self.stream.is_end_stream()
        {
            // It may wait for room that an endpoint which nobody reads never makes; of a stream that nobody holds h2 sends a reset.
            sending.abort();
        }
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { stream, data_done, .. } = &mut *self;
        if !*data_done {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The stream may have ended since.
                    let _ended = stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => *data_done = true,
            }
        }
        Poll::Ready(match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// Of others the head says it.
    fn size_hint(&self) -> SizeHint {
        match self.is_end_stream() {
            true => SizeHint::with_exact(0),
            false => SizeHint::default(),
        }
    }
}
