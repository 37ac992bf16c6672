//! One request in, one answer out. The table of paths is in [`super`].

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{net::UnixStream, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_policy::ObjectRef;

use super::{
    Control, ControlError,
    api::{ApplyRequest, ErrorBody, ObjectQuery},
    stall::StallGuard,
};
use crate::{
    daemon::hand_over::PROTOCOL,
    flows::{FlowQuery, Followed, Follower},
};

/// Largest YAML text that `PUT /v1/objects` takes; policy's own limit is lower and says so better.
pub const MAX_YAML_BYTES: usize = 8 << 20;
/// Largest JSON body of the other requests.
const MAX_JSON_BYTES: usize = 1 << 20;
/// A body must be here within so long of its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Those who follow flows hold a connection for long: so many may.
const MAX_FOLLOWERS: usize = 64;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub struct Handlers {
    control: Arc<dyn Control>,
    stop: CancellationToken,
    followers: Arc<Semaphore>,
}

/// An answer that is not 2xx.
struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

// === impl Handlers ===

impl Handlers {
    pub fn new(control: Arc<dyn Control>, stop: CancellationToken) -> Self {
        Self {
            control,
            stop,
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
        }
    }

    /// Never fails: what goes wrong is an answer, too.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.route(request)
            .await
            .unwrap_or_else(|refusal| json(refusal.status, &refusal.body))
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query());
        let path: Vec<&str> = head.uri.path().trim_matches('/').split('/').collect();
        match (&head.method, path.as_slice()) {
            (&Method::GET, ["healthz"]) => Ok(ok(&json!({ "status": "ok" }))),
            (&Method::GET, ["v1", "status"]) => self.get(|control| control.status()).await,
            (&Method::GET, ["v1", "edges"]) => self.get(|control| control.edges()).await,
            (&Method::GET, ["v1", "adapters"]) => self.get(|control| control.adapters()).await,
            (&Method::POST, ["v1", "adapters"]) => {
                let asked = read_json(body).await?;
                self.ask(move |control| control.change_adapter(asked)).await
            }
            (&Method::GET, ["v1", "doctor"]) => self.get(|control| control.doctor()).await,
            (&Method::GET, ["v1", "snapshot"]) => self.get(|control| control.snapshot()).await,
            (&Method::POST, ["v1", "hand-over"]) => self.hand_over(Request::from_parts(head, body)),
            (&Method::POST, ["v1", "shutdown"]) => self.get(|control| control.shutdown()).await,

            (&Method::GET, ["v1", "workloads"]) => self.get(|control| control.workloads()).await,
            (&Method::POST, ["v1", "workloads"]) => {
                let asked = read_json(body).await?;
                self.ask(move |control| control.register_workload(asked)).await
            }
            (&Method::DELETE, ["v1", "workloads", name @ ..]) => {
                let name = name.join("/");
                self.ask(move |control| control.deregister_workload(&name)).await
            }

            (&Method::GET, ["v1", "objects"]) => {
                let asked = query.objects()?;
                self.get(move |control| control.objects(&asked)).await
            }
            (&Method::PUT, ["v1", "objects"]) => {
                let file = query.one("file")?.unwrap_or_else(|| "-".to_owned());
                let yaml = String::from_utf8(read(body, MAX_YAML_BYTES).await?.into())
                    .map_err(|_| Refusal::invalid(format!("{file}: not UTF-8 text; expected YAML")))?;
                self.ask(move |control| control.apply(ApplyRequest { file, yaml }))
                    .await
            }
            (&Method::DELETE, ["v1", "objects", kind, name]) => {
                let namespace = query.one("namespace")?;
                let object = ObjectRef {
                    kind: (*kind).to_owned().into(),
                    namespace: namespace.map(Into::into),
                    name: (*name).to_owned(),
                };
                self.ask(move |control| control.delete(&object)).await
            }

            (&Method::GET, ["v1", "flows"]) => self.flows(&query),
            (&Method::POST, ["v1", "explain"]) => {
                let asked = read_json(body).await?;
                self.ask(move |control| control.explain(&asked)).await
            }
            (method, _) => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("no such request: {method} {}", head.uri.path()),
            )),
        }
    }

    /// The connection becomes the channel of a hand-over, if both speak the same protocol.
    fn hand_over(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let asked = request.headers().get(header::UPGRADE);
        if asked.is_none_or(|token| token.as_bytes() != PROTOCOL.as_bytes()) {
            return Err(Refusal::new(
                StatusCode::UPGRADE_REQUIRED,
                format!("this daemon hands over by {PROTOCOL} only: stop it, then start the other one"),
            ));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let control = Arc::clone(&self.control);
        tokio::spawn(async move {
            let parts = match upgrade.await {
                Ok(upgraded) => upgraded.downcast::<TokioIo<StallGuard<UnixStream>>>(),
                Err(error) => return tracing::warn!(%error, "hand-over"),
            };
            match parts {
                // The other end says nothing before it has seen our answer's end, so nothing of it was read yet.
                Ok(parts) if parts.read_buf.is_empty() => control.hand_over(parts.io.into_inner().into_inner()),
                Ok(_) | Err(_) => tracing::warn!("hand-over: the other end speaks out of turn"),
            }
        });
        let mut response = with_type("application/json", Full::from("").boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static(PROTOCOL));
        Ok(response)
    }

    /// What always has an answer.
    async fn get<T: Serialize + Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Control) -> T + Send + 'static,
    ) -> Result<Response<Body>, Refusal> {
        self.ask(move |control| Ok(question(control))).await
    }

    /// Asks on a thread that may block.
    async fn ask<T: Serialize + Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Control) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<Response<Body>, Refusal> {
        let control = Arc::clone(&self.control);
        match tokio::task::spawn_blocking(move || question(&*control)).await {
            Ok(answer) => Ok(ok(&answer?)),
            Err(error) => {
                tracing::error!(%error, "admin request");
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the daemon failed; see its log".to_owned(),
                ))
            }
        }
    }

    fn flows(&self, query: &Query) -> Result<Response<Body>, Refusal> {
        let (mut asked, mut follow) = (FlowQuery::default(), false);
        for (name, value) in &query.0 {
            match (name.as_str(), value.as_str()) {
                ("follow", value) => follow = matches!(value, "1" | "true" | ""),
                (name, value) => asked
                    .set(name, value)
                    .map_err(|error| Refusal::invalid(error.to_string()))?,
            }
        }
        let store = self.control.flows();
        if !follow {
            return Ok(ndjson(Full::new(lines(store.query(&asked).iter().map(|flow| &**flow)))));
        }
        let permit = Arc::clone(&self.followers).try_acquire_owned().map_err(|_| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{MAX_FOLLOWERS} clients follow flows already"),
            )
        })?;
        let (past, follower) = store.follow(asked);
        let past = lines(past.iter().map(|flow| &**flow));
        // The permit lives in the stream's state: it is given back when the connection ends.
        let coming = stream::unfold((follower, permit), |(mut follower, permit)| async move {
            next_lines(&mut follower).await.map(|bytes| (bytes, (follower, permit)))
        });
        let frames = stream::iter((!past.is_empty()).then_some(past))
            .chain(coming)
            .take_until(self.stop.clone().cancelled_owned())
            .map(|bytes| Ok(Frame::data(bytes)));
        Ok(ndjson(StreamBody::new(frames)))
    }
}

async fn next_lines(follower: &mut Follower) -> Option<Bytes> {
    Some(match follower.next().await? {
        Followed::Flow(flow) => lines(std::iter::once(&*flow)),
        Followed::Lagged(missed) => lines(std::iter::once(&json!({ "lagged": missed }))),
        Followed::Dropped(lost) => lines(std::iter::once(&json!({ "dropped": lost }))),
    })
}

fn lines<'a, T: Serialize + 'a>(values: impl Iterator<Item = &'a T>) -> Bytes {
    let mut text = Vec::new();
    for value in values {
        // Into memory, and of types whose keys are strings: there is nothing that could fail.
        if serde_json::to_writer(&mut text, value).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

fn ndjson(body: impl hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Response<Body> {
    with_type("application/x-ndjson", body.boxed_unsync())
}

fn ok(value: &impl Serialize) -> Response<Body> {
    json(StatusCode::OK, value)
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        Err(error) => {
            tracing::error!(%error, "admin answer");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                br#"{"error":"the answer cannot be written as JSON"}"#.to_vec(),
            )
        }
    };
    let mut response = with_type("application/json", Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let bytes = read(body, MAX_JSON_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("body: {error}")))
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, Refusal> {
    match timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("body: larger than {limit} bytes; send it in parts"),
        )),
        Ok(Err(error)) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("body: {error}"))),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "body: did not come in time".to_owned(),
        )),
    }
}

/// Decoded query parameters, in their order.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: Option<&str>) -> Self {
        Self(
            form_urlencoded::parse(text.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The value of the only parameter that this request knows.
    fn one(&self, known: &str) -> Result<Option<String>, Refusal> {
        let mut found = None;
        for (name, value) in &self.0 {
            if name != known {
                return Err(Refusal::invalid(format!(
                    "query parameter `{name}` is unknown; known: {known}"
                )));
            }
            found = Some(value.clone());
        }
        Ok(found)
    }

    fn objects(self) -> Result<ObjectQuery, Refusal> {
        let mut asked = ObjectQuery::default();
        for (name, value) in self.0 {
            let slot = match name.as_str() {
                "kind" => &mut asked.kind,
                "namespace" => &mut asked.namespace,
                "name" => &mut asked.name,
                _ => {
                    let known = "kind, namespace, name";
                    return Err(Refusal::invalid(format!(
                        "query parameter `{name}` is unknown; known: {known}"
                    )));
                }
            };
            *slot = Some(value);
        }
        Ok(asked)
    }
}

// === impl Refusal ===

impl Refusal {
    fn new(status: StatusCode, error: String) -> Self {
        Self {
            status,
            body: ErrorBody {
                error,
                details: Vec::new(),
            },
        }
    }

    fn invalid(error: String) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let text = error.to_string();
        match error {
            ControlError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, text),
            ControlError::Invalid { details, .. } => Self {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                body: ErrorBody { error: text, details },
            },
            ControlError::Conflict { .. } => Self::new(StatusCode::CONFLICT, text),
            ControlError::Unavailable { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            ControlError::HandedOver(_) => Self::new(StatusCode::MISDIRECTED_REQUEST, text),
            ControlError::Failed { source, .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}: {source:#}"))
            }
        }
    }
}
