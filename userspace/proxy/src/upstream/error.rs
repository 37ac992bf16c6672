//! Why a request that was sent got no answer.

use std::{error::Error, io};

use http::{Request, request};
use hyper::client::conn::TrySendError;

use super::UpstreamBody;
use crate::error::BoxError;

/// Why a request got no answer.
pub(crate) struct SendError {
    /// The request, if nothing of it was sent.
    pub(crate) unsent: Option<(Box<request::Parts>, UpstreamBody)>,
    /// The connection ended before a byte of the answer came, or the endpoint says that it has not looked at it.
    pub(crate) is_lost: bool,
    pub(crate) source: BoxError,
}

// === impl SendError ===

impl SendError {
    pub(super) fn of_http1(mut error: TrySendError<Request<UpstreamBody>>) -> Self {
        let unsent = error.take_message().map(Request::into_parts);
        Self {
            unsent: unsent.map(|(head, body)| (Box::new(head), body)),
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
