//! The same filters and the same requests through Envoy's WebAssembly and ours: the same outcome.

mod envoy;
mod scenarios;

use std::{fs, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use weft_adapters::{
    Chain, Chains, FilterFactory,
    wasm::{Module, Plugin, PluginConfig, Services},
};
use weft_proxy::Callouts;

use self::{
    envoy::{Envoy, Listener},
    scenarios::{Ask, SCENARIOS, Scenario},
};
use crate::support::{
    H1, Mesh, Port, Spec, Text,
    client::{self, full},
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
    let Some(binary) = envoy::binary() else {
        eprintln!("skipped: needs Envoy, `cargo xtask setup` installs it");
        return;
    };
    let (origin, oracle) = (Server::http1(origin).await, Server::http1(oracle).await);
    let listeners: Vec<Listener<'_>> = SCENARIOS
        .iter()
        .map(|scenario| Listener {
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
        let mesh = mesh(scenario, &origin, &oracle).await;
        for ask in scenario.asks {
            let theirs = outcome(TcpStream::connect(envoy.address(index)).await.unwrap(), ask).await;
            let ours = outcome(mesh.dial(0).await, ask).await;
            let name = scenario.name;
            assert_eq!(
                ours,
                theirs,
                "{name}: {ask:?}; on the right Envoy, which said {}",
                envoy.log()
            );
            assert_eq!(ours.status, ask.expect, "{name}: {ask:?}: {ours:?}");
        }
    }
}

/// A module that `cargo xtask build --filters` made.
fn file(module: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm");
    let file = folder.join(format!("{module}.wasm"));
    file.canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask build --filters` makes it", file.display()))
}

async fn mesh(scenario: &Scenario, origin: &Server, oracle: &Server) -> Mesh {
    let spec = Spec::of([
        Port::http("web", [origin.address]),
        Port::http("oracle", [oracle.address]),
    ]);
    let mut mesh = Mesh::start(&spec);
    let services = Services::default();
    let upstreams = Arc::new(Callouts::new(mesh.snapshots(), "default", Vec::new()));
    let filters = scenario
        .filters
        .iter()
        .map(|&(module, configuration)| {
            let module = Module::compile(&fs::read(file(module)).unwrap()).unwrap();
            let config = PluginConfig {
                name: scenario.name.into(),
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
    mesh.publish_chains(&spec, Chains::everywhere(chain));
    mesh
}

async fn outcome(stream: TcpStream, ask: &Ask) -> Outcome {
    let mut request = client::request(ask.method, ask.path, full(ask.body));
    for (name, value) in ask.headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let answer = Text::read(H1::new(stream).await.send(request).await).await;
    Outcome {
        status: answer.status.as_u16(),
        headers: told(&answer.headers),
        body: answer.body,
    }
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
    let empty = matches!(status, 204 | 304);
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
