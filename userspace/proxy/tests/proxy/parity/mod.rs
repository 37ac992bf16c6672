//! The same filters and the same requests through Envoy's WebAssembly and ours: the same outcome.

mod envoy;
mod scenarios;

use std::{fs, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use weft_adapters::{
    Chain, Chains, FilterFactory,
    wasm::{Module, Plugin, PluginConfig, Services},
};
use weft_policy::AppProtocol;
use weft_proxy::Callouts;

use self::{
    envoy::{Envoy, Listener, Speaks},
    scenarios::{Ask, BYTES, BYTES_SAID, SCENARIOS},
};
use crate::support::{
    H1, H2, Mesh, Port, Spec, Text,
    client::{self, full, read_all},
    server::{Body, Server, text},
};

/// Headers that proxies add for themselves, or that say how a body is framed.
const OWN: [&str; 8] = [
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "x-request-id",
    "x-weft-reason",
    "x-weft-denied-by",
];

/// What a client sees: status, headers, body (in which the origin tells what it saw).
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: u16,
    headers: Vec<String>,
    body: String,
}

#[tokio::test]
async fn the_same_filter_does_the_same_in_envoy_and_here() {
    compare(Speaks::Http1).await;
}

#[tokio::test]
async fn the_same_filter_does_the_same_in_envoy_and_here_over_http2() {
    compare(Speaks::Http2).await;
}

async fn compare(speaks: Speaks) {
    let Some(binary) = envoy::binary() else { return };
    let origin = match speaks {
        Speaks::Http2 => Server::http2(origin).await,
        Speaks::Http1 | Speaks::Tcp => Server::http1(origin).await,
    };
    let oracle = Server::http1(oracle).await;
    let listeners: Vec<Listener<'_>> = SCENARIOS
        .iter()
        .map(|scenario| Listener {
            speaks,
            filters: scenario
                .filters
                .iter()
                .map(|&(module, configuration)| (file(module), configuration))
                .collect(),
            origin: origin.address,
            oracle: oracle.address,
        })
        .collect();
    let envoy = Envoy::start(&binary, &listeners).await;
    for (index, scenario) in SCENARIOS.iter().enumerate() {
        let spec = Spec::of([
            Port::http("web", [origin.address]),
            Port::http("oracle", [oracle.address]),
        ]);
        let filters: Vec<(PathBuf, &'static str)> = scenario
            .filters
            .iter()
            .map(|&(module, configuration)| (file(module), configuration))
            .collect();
        let mesh = mesh(&spec, scenario.name, &filters);
        for ask in scenario.asks {
            let theirs = outcome(TcpStream::connect(envoy.address(index)).await.unwrap(), ask, speaks).await;
            let ours = outcome(mesh.dial(0).await, ask, speaks).await;
            let name = scenario.name;
            assert_eq!(
                ours,
                theirs,
                "{name}: {ask:?}, {speaks:?}; on the right Envoy, which said {}",
                envoy.log()
            );
            assert_eq!(ours.status, ask.expect, "{name}: {ask:?}, {speaks:?}: {ours:?}");
        }
    }
}

#[tokio::test]
async fn the_same_filter_of_bytes_does_the_same_in_envoy_and_here() {
    let Some(binary) = envoy::binary() else { return };
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("bytes.wasm");
    fs::write(&module, wat::parse_str(BYTES).unwrap()).unwrap();
    let filters = [(module, "")];
    let origin = Server::raw(|mut stream| async move {
        let heard = read_all(&mut stream).await;
        // Of a connection that was cut nobody hears.
        let _cut = stream.write_all(format!("heard {heard}").as_bytes()).await;
    })
    .await;
    let listener = Listener {
        speaks: Speaks::Tcp,
        filters: filters.to_vec(),
        origin: origin.address,
        oracle: origin.address,
    };
    let envoy = Envoy::start(&binary, &[listener]).await;
    let mut port = Port::undeclared("db", [origin.address]);
    port.app = AppProtocol::Opaque;
    let mesh = mesh(&Spec::of([port]), "bytes", &filters);
    for (said, heard) in BYTES_SAID {
        let theirs = outcome_of_bytes(TcpStream::connect(envoy.address(0)).await.unwrap(), said).await;
        let ours = outcome_of_bytes(mesh.dial(0).await, said).await;
        assert_eq!(ours, theirs, "{said}; on the right Envoy, which said {}", envoy.log());
        assert_eq!(ours, *heard, "{said}");
    }
}

/// A module that `cargo xtask build --filters` made.
fn file(module: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm");
    let file = folder.join(format!("{module}.wasm"));
    file.canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask build --filters` makes it", file.display()))
}

/// All services have these filters.
fn mesh(spec: &Spec, name: &str, filters: &[(PathBuf, &'static str)]) -> Mesh {
    let mut mesh = Mesh::start(spec);
    let services = Services::default();
    let upstreams = Arc::new(Callouts::new(mesh.snapshots(), "default", Vec::new()));
    let filters = filters
        .iter()
        .map(|(file, configuration)| {
            let module = Module::compile(&fs::read(file).unwrap()).unwrap();
            let config = PluginConfig {
                name: name.into(),
                configuration: Bytes::from_static(configuration.as_bytes()),
                ..PluginConfig::default()
            };
            let plugin: Plugin = module.plugin(config, &services, upstreams.clone()).unwrap();
            plugin.prepare(2).unwrap();
            let factory: Arc<dyn FilterFactory> = Arc::new(plugin);
            factory
        })
        .collect();
    let chain = Chain {
        filters,
        ..Chain::default()
    };
    mesh.publish_chains(spec, Chains::everywhere(chain));
    mesh
}

async fn outcome(stream: TcpStream, ask: &Ask, speaks: Speaks) -> Outcome {
    let body = full(ask.body);
    let mut request = match speaks {
        Speaks::Http2 => {
            let request = Request::builder().method(ask.method);
            request.uri(format!("http://web{}", ask.path)).body(body).unwrap()
        }
        Speaks::Http1 | Speaks::Tcp => client::request(ask.method, ask.path, body),
    };
    for (name, value) in ask.headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let response = match speaks {
        Speaks::Http2 => H2::new(stream).await.send(request).await,
        Speaks::Http1 | Speaks::Tcp => H1::new(stream).await.send(request).await,
    };
    let (status, headers) = (response.status().as_u16(), told(response.headers()));
    let body = match Text::try_read(response).await {
        Ok(answer) => answer.body,
        Err(error) => format!("cut: {error:?}"),
    };
    Outcome { status, headers, body }
}

/// What a client hears that says this and no more. Being cut is hearing nothing.
async fn outcome_of_bytes(mut stream: TcpStream, said: &str) -> String {
    let _cut = stream.write_all(said.as_bytes()).await;
    let _cut = stream.shutdown().await;
    read_all(&mut stream).await
}

/// Headers as sorted lines, without those that are the proxy's.
fn told(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> = headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            !OWN.contains(&name) && !name.starts_with("x-forwarded-") && !name.starts_with("x-envoy-")
        })
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    lines
}

/// Answers with what it saw, and the status that the request wants.
async fn origin(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let saw = format!(
        "{} {}\n{}\n\n{}",
        head.method,
        head.uri,
        told(&head.headers).join("\n"),
        String::from_utf8_lossy(&body)
    );
    let status = head
        .headers
        .get("x-want")
        .map_or(200, |want| want.to_str().unwrap().parse().unwrap());
    // Over HTTP/2 hyper would send one in answer to HEAD.
    let empty = matches!(status, 204 | 304) || head.method == Method::HEAD;
    let body = Full::new(if empty { Bytes::new() } else { saw.into() });
    Response::builder()
        .status(status)
        .header("x-origin", "1")
        .header("content-type", "text/plain")
        .body(body.map_err(|never| match never {}).boxed())
        .unwrap()
}

/// Knows one token.
async fn oracle(request: Request<Incoming>) -> Response<Body> {
    let known = request
        .headers()
        .get("authorization")
        .is_some_and(|token| token == "good");
    let mut response = text("");
    if known {
        response.headers_mut().insert("x-user", "alice".parse().unwrap());
    } else {
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
    }
    response
}
