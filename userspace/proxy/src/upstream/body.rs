//! What is sent to an endpoint: a client's request, or a call of a filter's.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use weft_adapters::upstreams::CallBody;

use crate::{error::BoxError, http::body::RequestBody};

/// Either body.
pub(crate) enum UpstreamBody {
    Forwarded(RequestBody),
    Call(CallBody),
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Forwarded(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Call(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Forwarded(body) => body.is_end_stream(),
            Self::Call(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Forwarded(body) => body.size_hint(),
            Self::Call(body) => body.size_hint(),
        }
    }
}
