//! Calls that filters make to services of the mesh: what the proxy offers them.
//!
//! A filter names a service and hands over a request; how the name becomes endpoints, connections and mTLS is the proxy's
//! affair. Plain HTTP and gRPC, unary or streamed, all go through [`Upstreams::call`]: whoever calls frames messages and
//! keeps time limits.

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;

/// A body of a call, either way. Trailers are its last frame.
pub type CallBody = UnsyncBoxBody<Bytes, CallError>;

/// The head of the answer, with a body that goes on coming.
pub type Calling = Pin<Box<dyn Future<Output = Result<Response<CallBody>, CallError>>>>;

/// Carries calls. One value serves all workers.
pub trait Upstreams: Send + Sync {
    /// Whether `upstream` is the name of something that can be called: a filter that names anything else is told at once.
    /// Says nothing about whether it answers. Called during requests: no I/O, no waiting.
    fn knows(&self, upstream: &str) -> bool;

    /// Calls `upstream`. The request's URI has scheme, authority and path as the filter wrote them; the authority need not
    /// be the upstream's name. Called and polled on a worker's thread, inside its `LocalRuntime`; dropping the future, or
    /// the body, cancels the call. No time limit: the caller drops what takes too long.
    fn call(&self, upstream: &str, request: Request<CallBody>, protocol: CallProtocol) -> Calling;
}

/// What must be spoken with the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallProtocol {
    /// Whatever the service speaks.
    Http,
    /// HTTP/2, for gRPC: bodies flow both ways at the same time, and trailers matter.
    Grpc,
}

/// Why a call has no answer, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("call `{upstream}`: no such service, or none that this filter may call")]
    Unknown { upstream: String },
    #[error("call `{upstream}`: no endpoint is ready")]
    NoEndpoint { upstream: String },
    #[error("call `{upstream}`: connect: {reason}")]
    Connect { upstream: String, reason: String },
    #[error("call `{upstream}`: the connection ended before the answer did: {reason}")]
    Broken { upstream: String, reason: String },
}

/// A mesh in which nothing can be called.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUpstreams;

impl Upstreams for NoUpstreams {
    fn knows(&self, _upstream: &str) -> bool {
        false
    }

    fn call(&self, upstream: &str, _request: Request<CallBody>, _protocol: CallProtocol) -> Calling {
        let upstream = upstream.to_owned();
        Box::pin(async { Err(CallError::Unknown { upstream }) })
    }
}
