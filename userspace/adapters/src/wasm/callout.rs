//! Calls of filters to services: what they order, and what comes back.

use std::{rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full as Whole};
use hyper::body::Body;
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};
use tracing::debug;

use super::{
    grpc::{self, Outgoing, Unframe},
    kept::{Full, Hold, bytes_of},
    worker::Worker,
};
use crate::{
    grpc::{FRAME, unframe},
    stream::ResponseHead,
    upstreams::{CallBody, CallProtocol, Calling, Upstreams},
};

/// Longest body of an answer, or message in one, bytes: a longer one is no answer.
const MAX_ANSWER: usize = 1 << 20;

/// What a call takes of what is kept for an instance, beside what is sent and what comes back.
pub(super) const CALL: usize = 1024;

/// A call that a module wants made when its callback is over.
#[derive(Debug)]
pub(super) struct Order {
    /// Who is told what came back.
    pub context: u32,
    pub token: u32,
    pub upstream: String,
    pub request: Request<()>,
    pub kind: Kind,
    /// Room for that, and for the answer.
    pub kept: Hold,
}

#[derive(Debug)]
pub(super) enum Kind {
    Http {
        body: Bytes,
        trailers: HeaderMap,
        limit: Duration,
    },
    /// One message there, one back.
    GrpcCall { message: Bytes, limit: Duration },
    /// Messages both ways; what is to be sent comes through here.
    GrpcStream { messages: mpsc::Receiver<(Bytes, Hold)> },
}

/// A call under way, as its module may go on with it.
#[derive(Debug)]
pub(super) enum Call {
    /// One request, one answer.
    Once,
    /// What is to be sent goes in here; `None`: this side has ended.
    Stream(Option<mpsc::Sender<(Bytes, Hold)>>),
}

/// What a module is told. Of each call but a stream there is one.
#[derive(Debug)]
pub(super) enum Event {
    /// `None`: there was no answer, or not in time.
    Http {
        token: u32,
        answer: Option<HttpAnswer>,
    },
    GrpcInitial {
        token: u32,
        metadata: HeaderMap,
    },
    GrpcMessage {
        token: u32,
        message: Bytes,
        #[expect(dead_code, reason = "room for it, until the module was told")]
        kept: Hold,
    },
    GrpcTrailing {
        token: u32,
        metadata: HeaderMap,
    },
    GrpcClose {
        token: u32,
        status: u32,
        text: String,
    },
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    pub head: ResponseHead,
    pub body: Bytes,
    pub trailers: HeaderMap,
    #[expect(dead_code, reason = "room for it, until the module was told")]
    pub kept: Hold,
}

/// A status of gRPC and its message.
type Status = (u32, String);

// === impl Kind ===

impl Kind {
    /// What is to be sent, as far as it is there.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Http { body, trailers, .. } => body.len() + bytes_of(trailers),
            Self::GrpcCall { message, .. } => message.len(),
            Self::GrpcStream { .. } => 0,
        }
    }
}

// === impl Event ===

impl Event {
    /// The call that it is about.
    pub fn token(&self) -> u32 {
        match self {
            Self::Http { token, .. }
            | Self::GrpcInitial { token, .. }
            | Self::GrpcMessage { token, .. }
            | Self::GrpcTrailing { token, .. }
            | Self::GrpcClose { token, .. } => *token,
        }
    }
}

// === impl Order ===

impl Order {
    /// What the module is told where no call can be made.
    pub fn refused(&self) -> Event {
        let token = self.token;
        match self.kind {
            Kind::Http { .. } => Event::Http { token, answer: None },
            Kind::GrpcCall { .. } | Kind::GrpcStream { .. } => Event::GrpcClose {
                token,
                status: grpc::UNAVAILABLE,
                text: String::new(),
            },
        }
    }

    /// Makes the call, and tells what came back.
    pub async fn run(self, upstreams: &dyn Upstreams, tell: impl Fn(Event)) {
        let Self {
            token,
            upstream,
            request,
            kind,
            kept,
            ..
        } = self;
        let call = |body: CallBody, protocol| upstreams.call(&upstream, request.map(|()| body), protocol);
        match kind {
            Kind::Http { body, trailers, limit } => {
                let body = Whole::new(body).map_err(|never| match never {});
                let body = match trailers.is_empty() {
                    true => body.boxed_unsync(),
                    false => body.with_trailers(async { Some(Ok(trailers)) }).boxed_unsync(),
                };
                let answer = timeout(limit, gather(call(body, CallProtocol::Http), kept)).await;
                let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
                let answer = answer.inspect_err(|reason| debug!(upstream, "a filter's call failed: {reason}"));
                let answer = answer.ok();
                tell(Event::Http { token, answer });
            }
            Kind::GrpcCall { message, limit } => {
                let body = Whole::new(message).map_err(|never| match never {}).boxed_unsync();
                let calling = call(body, CallProtocol::Grpc);
                let answer = timeout(limit, one_message(calling, kept)).await;
                let answer = answer.unwrap_or_else(|_| Err((grpc::DEADLINE, String::new())));
                tell(match answer {
                    Ok((message, kept)) => Event::GrpcMessage { token, message, kept },
                    Err((status, text)) => {
                        debug!(upstream, status, "a filter's call failed: {text}");
                        Event::GrpcClose { token, status, text }
                    }
                });
            }
            Kind::GrpcStream { messages } => {
                let body = Outgoing(messages).boxed_unsync();
                let calling = call(body, CallProtocol::Grpc);
                let (status, text) = messages_of(calling, token, kept, &tell).await;
                debug!(upstream, status, "a filter's stream ended: {text}");
                tell(Event::GrpcClose { token, status, text });
            }
        }
    }
}

/// Collects a whole answer, or says why there is none.
async fn gather(calling: Calling, mut kept: Hold) -> Result<HttpAnswer, String> {
    let response = calling.await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    answered(&mut kept, &parts.headers).map_err(|full| full.to_string())?;
    let (body, trailers) = collect(body, MAX_ANSWER, &mut kept).await?;
    Ok(HttpAnswer {
        head: ResponseHead::new(parts.status, parts.headers),
        body,
        trailers: trailers.unwrap_or_default(),
        kept,
    })
}

/// The one message of an answer, and room for it.
async fn one_message(calling: Calling, mut kept: Hold) -> Result<(Bytes, Hold), Status> {
    let unavailable = |reason: String| (grpc::UNAVAILABLE, reason);
    let response = calling.await.map_err(|error| unavailable(error.to_string()))?;
    let (parts, body) = response.into_parts();
    answered(&mut kept, &parts.headers).map_err(exhausted)?;
    let body = collect(body, MAX_ANSWER + FRAME, &mut kept).await;
    let (body, trailers) = body.map_err(unavailable)?;
    let trailers = trailers.as_ref().and_then(grpc::status);
    let status = trailers.or_else(|| grpc::status(&parts.headers));
    match status.unwrap_or_else(|| (grpc::status_of(parts.status), String::new())) {
        (0, _) => {}
        failed => return Err(failed),
    }
    let message = unframe(body).map_err(|error| (grpc::INTERNAL, error.to_string()))?;
    Ok((message, kept))
}

/// Tells each message as it comes; the status at the end.
async fn messages_of(calling: Calling, token: u32, mut kept: Hold, tell: &impl Fn(Event)) -> Status {
    let response = match calling.await {
        Ok(response) => response,
        Err(error) => return (grpc::UNAVAILABLE, error.to_string()),
    };
    let (parts, mut body) = response.into_parts();
    if let Err(full) = answered(&mut kept, &parts.headers) {
        return exhausted(full);
    }
    let initial = |metadata| tell(Event::GrpcInitial { token, metadata });
    if let Some(status) = grpc::status(&parts.headers) {
        // Nothing else comes, and so the head is told as what comes last.
        initial(HeaderMap::new());
        let metadata = parts.headers;
        tell(Event::GrpcTrailing { token, metadata });
        return status;
    }
    initial(parts.headers);
    let mut status = None;
    let mut unframe = Unframe::default();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return (grpc::UNAVAILABLE, error.to_string()),
        };
        match frame.into_data() {
            Ok(data) => {
                if let Err(full) = kept.grow(data.len()) {
                    return exhausted(full);
                }
                unframe.push(&data);
                loop {
                    match unframe.next() {
                        Ok(Some(message)) => {
                            let kept = kept.split(FRAME + message.len());
                            tell(Event::GrpcMessage { token, message, kept });
                        }
                        Ok(None) => break,
                        Err(_) => return (grpc::INTERNAL, "a message that cannot be read".into()),
                    }
                }
            }
            Err(frame) => {
                if let Ok(metadata) = frame.into_trailers() {
                    status = grpc::status(&metadata);
                    tell(Event::GrpcTrailing { token, metadata });
                }
            }
        }
    }
    status.unwrap_or_else(|| (grpc::status_of(parts.status), String::new()))
}

/// What was sent is gone; what comes back needs room.
fn answered(kept: &mut Hold, head: &HeaderMap) -> Result<(), Full> {
    drop(kept.take());
    kept.grow(CALL + bytes_of(head))
}

fn exhausted(full: Full) -> Status {
    (grpc::EXHAUSTED, full.to_string())
}

/// A whole body of `most` bytes at most, as long as there is room for it, and its trailers.
async fn collect(mut body: CallBody, most: usize, kept: &mut Hold) -> Result<(Bytes, Option<HeaderMap>), String> {
    let mut whole = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) => {
                if whole.len() + data.len() > most {
                    return Err(format!("more than {most} bytes"));
                }
                kept.grow(data.len()).map_err(|full| full.to_string())?;
                if whole.is_empty() && body.is_end_stream() {
                    return Ok((data, None));
                }
                whole.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((whole.freeze(), trailers))
}

/// Makes the call as a task of the worker's thread.
pub(super) fn spawn(worker: &Rc<Worker>, order: Order) -> AbortHandle {
    let upstreams = worker.plugin.upstreams.clone();
    let worker = Rc::downgrade(worker);
    let (context, token) = (order.context, order.token);
    let call = async move {
        order
            .run(&*upstreams, |event| {
                if let Some(worker) = worker.upgrade() {
                    worker.answered(context, event);
                }
            })
            .await;
        if let Some(worker) = worker.upgrade() {
            worker.call_ended(token);
        }
    };
    tokio::task::spawn_local(call).abort_handle()
}
