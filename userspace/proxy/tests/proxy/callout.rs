//! Calls that filters make while a request waits.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use tokio::sync::mpsc;
use weft_adapters::{
    Chain, Chains, FilterFactory, Lent, Step, StreamFilter, StreamInfo,
    upstreams::{CallError, CallProtocol, Upstreams},
};
use weft_policy::AppProtocol;
use weft_proxy::Callouts;

use crate::support::{
    H1, Mesh, Port, Spec, Text,
    bodies::pieces,
    client::{empty, request},
    server::{Nobody, Server, text},
};

/// Calls what the request's `x-call` names, and gives the endpoint the outcome as `x-outcome`.
struct Ask {
    upstreams: Arc<dyn Upstreams>,
    protocol: CallProtocol,
}

struct Asking {
    upstreams: Arc<dyn Upstreams>,
    protocol: CallProtocol,
    outcome: Option<Pin<Box<dyn Future<Output = String>>>>,
}

impl FilterFactory for Ask {
    fn name(&self) -> &str {
        "ask"
    }

    fn stream(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(Asking {
            upstreams: self.upstreams.clone(),
            protocol: self.protocol,
            outcome: None,
        }))
    }
}

impl StreamFilter for Asking {
    fn on_request_headers(&mut self, head: &mut request::Parts, _: bool) -> Step {
        let upstream = head.headers["x-call"].to_str().unwrap();
        let call = Request::post("http://who.example/check?a=1")
            .header("x-from", "filter")
            .header("connection", "close")
            .body(
                Full::new(Bytes::from("question"))
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            )
            .unwrap();
        let known = self.upstreams.knows(upstream);
        let calling = self.upstreams.call(upstream, call, self.protocol);
        self.outcome = Some(Box::pin(async move {
            match calling.await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    if status == 204 {
                        return format!("{known} {status}");
                    }
                    match response.into_body().collect().await {
                        Ok(body) => {
                            let trailer = body
                                .trailers()
                                .map(|trailers| trailers["grpc-status"].to_str().unwrap().to_owned());
                            let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
                            format!("{known} {status} {body} {}", trailer.unwrap_or_default())
                        }
                        Err(error) => format!("{known} {status} {error}"),
                    }
                }
                Err(error) => {
                    let kind = match &error {
                        CallError::Unknown { .. } => "unknown",
                        CallError::NoEndpoint { .. } => "no endpoint",
                        CallError::Connect { .. } => "connect",
                        CallError::Broken { .. } => "broken",
                    };
                    format!("{known} {kind}: {error}")
                }
            }
        }));
        Step::Pause
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let outcome = ready!(self.outcome.as_mut().unwrap().as_mut().poll(cx));
        if let Lent::RequestHeaders(head) = lent {
            head.headers.insert("x-outcome", outcome.parse().unwrap());
        }
        Poll::Ready(Step::Continue)
    }
}

/// A mesh whose service `web` tells the outcome of the call, and others beside it.
async fn mesh(others: Vec<Port>, protocol: CallProtocol, hosts: &[&str]) -> Mesh {
    let web = Server::http1(|request| async move { text(request.headers()["x-outcome"].as_bytes().to_vec()) }).await;
    let mut ports = vec![Port::http("web", [web.address])];
    ports.extend(others);
    let spec = Spec::of(ports);
    let mut mesh = Mesh::start(&spec);
    let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
    let upstreams = Arc::new(Callouts::new(mesh.snapshots(), "default", hosts));
    let chain = Chain {
        filters: vec![Arc::new(Ask { upstreams, protocol })],
        ..Chain::default()
    };
    mesh.publish_chains(&spec, Chains::everywhere(chain));
    mesh
}

async fn outcome(client: &mut H1, call: &str) -> String {
    let mut ask = request("GET", "/", empty());
    ask.headers_mut().insert("x-call", call.parse().unwrap());
    Text::read(client.send(ask).await).await.body
}

/// Says what it was asked.
async fn oracle() -> Server {
    Server::http1(|request| async move {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let said = body.collect().await.unwrap().to_bytes();
        let told = format!(
            "{} {} {:?} {:?} {:?} {}",
            head.method,
            head.uri,
            header("host"),
            header("x-from"),
            header("connection"),
            String::from_utf8_lossy(&said)
        );
        let mut response = text(told);
        *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
        response
    })
    .await
}

const TOLD: &str = r#"POST /check?a=1 Some("who.example") Some("filter") None question"#;

#[tokio::test]
async fn a_service_is_called_by_any_of_its_names_on_a_kept_connection() {
    let oracle = oracle().await;
    let mesh = mesh(vec![Port::http("oracle", [oracle.address])], CallProtocol::Http, &[]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    for name in [
        "oracle",
        "oracle.default",
        "oracle.default.mesh:80",
        "outbound|80||oracle.default.svc.cluster.local",
    ] {
        assert_eq!(outcome(&mut client, name).await, format!("true 418 {TOLD}"), "{name}");
    }
    assert_eq!(oracle.connections(), 1);
}

#[tokio::test]
async fn an_empty_answer_that_nobody_reads_leaves_its_connection() {
    let oracle = Server::http1(|request| async move {
        request.into_body().collect().await.unwrap();
        let mut response = text("");
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        response
    })
    .await;
    let mesh = mesh(vec![Port::http("oracle", [oracle.address])], CallProtocol::Http, &[]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..30 {
        assert_eq!(outcome(&mut client, "oracle").await, "true 204");
    }
    assert_eq!(oracle.connections(), 1);
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_an_error_that_says_so() {
    let down = Nobody::new();
    let ports = vec![Port::http("down", [down.address]), Port::http("nobody", [])];
    let outside = oracle().await;
    let mesh = mesh(ports, CallProtocol::Http, &[]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    let elsewhere = outside.address.to_string();
    for (name, expect) in [
        ("other", "false unknown: "),
        ("oracle:81", "false unknown: "),
        (elsewhere.as_str(), "false unknown: "),
        ("nobody", "true no endpoint: "),
        ("down", "true connect: "),
    ] {
        let outcome = outcome(&mut client, name).await;
        assert!(
            outcome.starts_with(expect) && outcome.contains(name),
            "{name}: {outcome}"
        );
    }
    assert_eq!(outside.connections(), 0);
}

#[tokio::test]
async fn a_host_that_the_operator_allows_is_called() {
    let outside = oracle().await;
    let host = format!("localhost:{}", outside.address.port());
    let mesh = mesh(Vec::new(), CallProtocol::Http, &[&host]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(outcome(&mut client, &host).await, format!("true 418 {TOLD}"));
}

#[tokio::test]
async fn a_grpc_call_goes_over_http2_and_brings_trailers() {
    let oracle = Server::http2(|request| async move {
        assert_eq!(request.uri().to_string(), "http://who.example/check?a=1");
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "question");
        let (sender, body) = pieces();
        tokio::spawn(async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().unwrap());
            sender.send(Frame::data(Bytes::from("answer"))).await.unwrap();
            sender.send(Frame::trailers(trailers)).await.unwrap();
        });
        Response::new(body)
    })
    .await;
    // The service does not say that it speaks HTTP/2.
    let mut port = Port::http("oracle", [oracle.address]);
    port.app = AppProtocol::Unknown;
    let mesh = mesh(vec![port], CallProtocol::Grpc, &[]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(outcome(&mut client, "oracle").await, "true 200 answer 5");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told() {
    let oracle = Server::raw(|mut stream| async move {
        use tokio::io::AsyncWriteExt;
        crate::support::client::read_until(&mut stream, "question").await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
            .await
            .unwrap();
    })
    .await;
    let mesh = mesh(vec![Port::http("oracle", [oracle.address])], CallProtocol::Http, &[]).await;
    let mut client = H1::new(mesh.dial(0).await).await;
    let outcome = outcome(&mut client, "oracle").await;
    assert!(
        outcome.starts_with("true 200 call `oracle`: the connection ended before"),
        "{outcome}"
    );
}

#[tokio::test]
async fn a_request_that_goes_away_takes_its_call_along() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let (left, mut leavings) = mpsc::unbounded_channel();
    let oracle = Server::raw(move |mut stream| {
        let (arrived, left) = (arrived.clone(), left.clone());
        async move {
            crate::support::client::read_until(&mut stream, "question").await;
            arrived.send(()).unwrap();
            left.send(crate::support::client::read_all(&mut stream).await).unwrap();
        }
    })
    .await;
    let mesh = mesh(vec![Port::http("oracle", [oracle.address])], CallProtocol::Http, &[]).await;
    let mut client = crate::support::H2::new(mesh.dial(0).await).await;
    let mut ask = request("GET", "http://web/", empty());
    ask.headers_mut().remove("host");
    ask.headers_mut().insert("x-call", "oracle".parse().unwrap());
    let asked = tokio::spawn(async move { client.try_send(ask).await.is_ok() });
    arrivals.recv().await.unwrap();
    asked.abort();
    assert_eq!(leavings.recv().await.unwrap(), "");
}
