//! What comes of a request that was sent: an answer's body, or why there is none.

use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Request;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::TrySendError,
};

use super::{BoxError, UpstreamBody, http2::Http2Body};

/// The body of an answer, as its connection gives it.
pub(crate) enum AnswerBody {
    Http1(Incoming),
    Http2(Http2Body),
}

/// Why a request got no answer.
pub(crate) struct SendError {
    /// The request, if nothing of it was sent.
    pub(crate) unsent: Option<Box<Request<UpstreamBody>>>,
    /// The connection ended before a byte of the answer came.
    pub(crate) is_lost: bool,
    pub(crate) source: BoxError,
}

// === impl AnswerBody ===

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Http2(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

// === impl SendError ===

impl SendError {
    pub(super) fn of_http1(mut error: TrySendError<Request<UpstreamBody>>) -> Self {
        Self {
            unsent: error.take_message().map(Box::new),
            is_lost: is_lost(error.error()),
            source: error.into_error().into(),
        }
    }
}

fn is_lost(error: &hyper::Error) -> bool {
    let reset = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
    reset || error.is_closed() || error.is_canceled() || (error.is_incomplete_message() && !error.is_parse())
}
