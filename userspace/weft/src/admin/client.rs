use std::{io, path::PathBuf};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use weft_adapters::Flow;
use weft_policy::{Explanation, ObjectRef};

use super::api::{
    AdapterChange, AdapterChanged, AdapterView, ApplyOutcome, DeleteOutcome, DoctorReport, EdgesView, ErrorBody,
    ExplainRequest, ObjectQuery, ObjectView, RegisterRequest, RegisterResponse, Status,
};
use crate::{daemon::hand_over::PROTOCOL, state_dir::StateDir};

/// How often, and after which pause, a request goes to the next daemon when the one asked has handed over.
const MISDIRECTED_TRIES: usize = 50;
const MISDIRECTED_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// A line of flows longer than this is not from a daemon.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Asks a running daemon. Every question is a connection of its own; dropping a future hangs up.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// The lines of `GET /v1/flows`.
#[derive(Debug)]
pub struct FlowReader {
    body: Incoming,
    buffer: BytesMut,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowLine {
    /// With the line as it was sent, for those who pass it on.
    Flow { flow: Box<Flow>, json: String },
    /// We read too slowly: so many flows passed by.
    Lagged(u64),
    /// So many were lost before the daemon saw them.
    Dropped(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon answers at {}; start one (weft daemon), or name its --state-dir", socket.display())]
    NoDaemon {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the admin socket {} is for root; run this command with sudo", socket.display())]
    NotAllowed {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{error}{}", listed(details))]
    Refused {
        status: StatusCode,
        error: String,
        details: Vec<String>,
    },
    #[error("talk to the daemon at {}", socket.display())]
    Broken {
        socket: PathBuf,
        #[source]
        source: hyper::Error,
    },
    #[error("understand the daemon's answer; is it of another version?")]
    Unreadable {
        #[source]
        source: serde_json::Error,
    },
}

// === impl Client ===

impl Client {
    pub fn new(state: &StateDir) -> Self {
        Self { socket: state.socket() }
    }

    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterResponse, ClientError> {
        self.json(Method::POST, "/v1/workloads", Some(request)).await
    }

    pub async fn deregister(&self, name: &str) -> Result<(), ClientError> {
        self.json(Method::DELETE, &format!("/v1/workloads/{name}"), NOTHING)
            .await
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json(Method::GET, "/v1/status", NOTHING).await
    }

    pub async fn edges(&self) -> Result<EdgesView, ClientError> {
        self.json(Method::GET, "/v1/edges", NOTHING).await
    }

    pub async fn adapters(&self) -> Result<Vec<AdapterView>, ClientError> {
        self.json(Method::GET, "/v1/adapters", NOTHING).await
    }

    pub async fn change_adapter(&self, change: &AdapterChange) -> Result<AdapterChanged, ClientError> {
        self.json(Method::POST, "/v1/adapters", Some(change)).await
    }

    pub async fn doctor(&self) -> Result<DoctorReport, ClientError> {
        self.json(Method::GET, "/v1/doctor", NOTHING).await
    }

    pub async fn objects(&self, query: &ObjectQuery) -> Result<Vec<ObjectView>, ClientError> {
        let mut parameters = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [
            ("kind", &query.kind),
            ("namespace", &query.namespace),
            ("name", &query.name),
        ] {
            if let Some(value) = value {
                parameters.append_pair(name, value);
            }
        }
        self.json(Method::GET, &format!("/v1/objects?{}", parameters.finish()), NOTHING)
            .await
    }

    /// `file` is the name that messages give the text.
    pub async fn apply(&self, file: &str, yaml: Vec<u8>) -> Result<ApplyOutcome, ClientError> {
        let parameters = form_urlencoded::Serializer::new(String::new())
            .append_pair("file", file)
            .finish();
        let path = format!("/v1/objects?{parameters}");
        decode(
            self.request(Method::PUT, &path, "application/yaml", yaml.into())
                .await?,
            self,
        )
        .await
    }

    pub async fn delete(&self, object: &ObjectRef) -> Result<DeleteOutcome, ClientError> {
        let mut path = format!("/v1/objects/{}/{}", object.kind, object.name);
        if let Some(namespace) = &object.namespace {
            path.push('?');
            path += &form_urlencoded::Serializer::new(String::new())
                .append_pair("namespace", namespace)
                .finish();
        }
        self.json(Method::DELETE, &path, NOTHING).await
    }

    pub async fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ClientError> {
        self.json(Method::POST, "/v1/explain", Some(request)).await
    }

    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.json(Method::POST, "/v1/shutdown", NOTHING).await
    }

    /// Makes this connection the channel of a hand-over.
    pub async fn hand_over(&self) -> Result<UnixStream, ClientError> {
        let broken = |source| self.broken(source);
        let response = self
            .send(Method::POST, "/v1/hand-over", PROTOCOL, &Bytes::new())
            .await?;
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        match upgraded.downcast::<TokioIo<UnixStream>>() {
            // The daemon waits for our first word.
            Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            Ok(_) | Err(_) => Err(ClientError::Refused {
                status: StatusCode::BAD_REQUEST,
                error: "the daemon speaks out of turn".to_owned(),
                details: Vec::new(),
            }),
        }
    }

    /// `parameters` are those of `GET /v1/flows`.
    pub async fn flows(&self, parameters: &[(&str, &str)]) -> Result<FlowReader, ClientError> {
        let parameters = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        let path = format!("/v1/flows?{parameters}");
        let response = self
            .request(Method::GET, &path, "application/json", Bytes::new())
            .await?;
        Ok(FlowReader {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|source| ClientError::Unreadable { source })?,
            None => Vec::new(),
        };
        decode(self.request(method, path, "application/json", body.into()).await?, self).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut tries = 0;
        loop {
            match self.send(method.clone(), path, content_type, &body).await {
                // A daemon that has just handed over did nothing; the next connection is the other's.
                Err(ClientError::Refused { status, .. })
                    if status == StatusCode::MISDIRECTED_REQUEST && tries < MISDIRECTED_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(MISDIRECTED_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// `wants`: the body's type, or the protocol of an upgrade.
    async fn send(
        &self,
        method: Method,
        path: &str,
        wants: &str,
        body: &Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.not_connected(source))?;
        let broken = |source| self.broken(source);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the connection; its errors come out of the request, too.
        tokio::spawn(connection.with_upgrades());
        let upgrade = wants == PROTOCOL;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "weft")
            .header(if upgrade { header::UPGRADE } else { header::CONTENT_TYPE }, wants)
            .header(header::CONNECTION, if upgrade { "upgrade" } else { "keep-alive" })
            .body(Full::new(body.clone()))
            .map_err(|error| ClientError::Refused {
                status: StatusCode::BAD_REQUEST,
                error: format!("`{path}` cannot be asked for: {error}"),
                details: Vec::new(),
            })?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            error: format!("the daemon answered {status}"),
            details: Vec::new(),
        });
        Err(ClientError::Refused {
            status,
            error: body.error,
            details: body.details,
        })
    }

    fn not_connected(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket, source },
            _ => ClientError::NoDaemon { socket, source },
        }
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            source,
        }
    }
}

const NOTHING: Option<&()> = None;

fn listed(details: &[String]) -> String {
    details.iter().map(|detail| format!("; {detail}")).collect()
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>, client: &Client) -> Result<T, ClientError> {
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|source| client.broken(source))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|source| ClientError::Unreadable { source })
}

// === impl FlowReader ===

impl FlowReader {
    /// The next line; `None` at the end (when following: the daemon stopped).
    pub async fn next(&mut self) -> Result<Option<FlowLine>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return parse_line(&line[..end]).map(Some);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return parse_line(&self.buffer).map(Some);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                // A daemon that was killed while we followed: the end, too.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

fn parse_line(line: &[u8]) -> Result<FlowLine, ClientError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Missed {
        Lagged(u64),
        Dropped(u64),
    }
    match serde_json::from_slice(line) {
        Ok(Missed::Lagged(missed)) => return Ok(FlowLine::Lagged(missed)),
        Ok(Missed::Dropped(lost)) => return Ok(FlowLine::Dropped(lost)),
        Err(_) => {}
    }
    let flow = serde_json::from_slice(line).map_err(|source| ClientError::Unreadable { source })?;
    Ok(FlowLine::Flow {
        flow,
        json: String::from_utf8_lossy(line).into_owned(),
    })
}
