//! Fixed points of a connection and a request at which a filter may look and change.
//!
//! ```text
//! connection -> request headers -> request body ... -> request trailers
//!                -> response headers -> response body ... -> response trailers -> end
//! ```
//! All points have an empty default; where no filter is configured, nothing is called and nothing is kept. Filters
//! run after routing and access checks, so none of them sees a request that policy refuses. They are synchronous
//! today; one that waits (a remote call) will get a second form of the same points.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, request, response};

use crate::context::ConnContext;

/// A filter; one value serves all workers. What it keeps a request, it keeps under [`Stream::id`].
pub trait Filter: Send + Sync {
    /// As in logs.
    fn name(&self) -> &str;

    /// A captured connection was accepted; nothing was read yet.
    fn on_connection(&self, _context: &ConnContext) -> ConnectionAction {
        ConnectionAction::Continue
    }

    /// The request is about to be forwarded.
    fn on_request_headers(&self, _stream: &Stream<'_>, _head: &mut request::Parts) -> RequestAction {
        RequestAction::Continue
    }

    /// A piece of the request body, as it passes. A filter that changes lengths removes `content-length` before.
    fn on_request_body(&self, _stream: &Stream<'_>, _piece: &mut Bytes) {}

    fn on_request_trailers(&self, _stream: &Stream<'_>, _trailers: &mut HeaderMap) {}

    /// The endpoint has answered.
    fn on_response_headers(&self, _stream: &Stream<'_>, _head: &mut response::Parts) {}

    fn on_response_body(&self, _stream: &Stream<'_>, _piece: &mut Bytes) {}

    fn on_response_trailers(&self, _stream: &Stream<'_>, _trailers: &mut HeaderMap) {}

    /// The request is over, in whatever way; called once for each request that saw `on_request_headers`.
    fn on_end(&self, _stream: &Stream<'_>) {}
}

/// Which request it is.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// Unique in this process.
    pub id: u64,
    pub context: &'a ConnContext,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionAction {
    Continue,
    /// Reset it.
    Refuse,
}

#[derive(Debug)]
pub enum RequestAction {
    Continue,
    /// Answer this and forward nothing.
    Respond(Response<String>),
}

// === impl ConnectionAction ===

impl ConnectionAction {
    pub(crate) fn is_refuse(self) -> bool {
        self == Self::Refuse
    }
}

// === impl RequestAction ===

impl RequestAction {
    /// A one-line answer in plain text.
    pub fn respond(status: StatusCode, text: impl Into<String>) -> Self {
        let mut response = Response::new(text.into());
        *response.status_mut() = status;
        Self::Respond(response)
    }
}
