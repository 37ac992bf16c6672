//! Real modules, driven as the proxy does it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, request};

use super::*;
use crate::{
    record::{Destination, FlowProtocol, Peer},
    stream::{
        FilterFactory, FilterState, HeaderLines, HeaderSection, RequestHead, ResponseHead, Step, StreamEnd,
        StreamFilter, StreamInfo, TrafficDirection,
    },
    upstreams::{NoUpstreams, Upstreams},
};

mod beside;
mod callout;
mod context;
mod exchange;
mod foreign;
mod functions;
mod heads;
mod life;
mod observed;
mod property;
mod rpc;
mod rpc_stream;
mod state;
mod tcp;

/// A module that `cargo xtask build --filters` made.
fn filter(name: &str) -> Module {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/wasm/{name}.wasm"));
    let Ok(bytes) = fs::read(&file) else {
        panic!("{} is missing: run `cargo xtask build --filters`", file.display());
    };
    Module::compile(&bytes).expect("a proxy-wasm module")
}

/// A module written as text.
fn text(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("WebAssembly as text")
}

fn config(json: &str) -> PluginConfig {
    PluginConfig {
        name: "test".into(),
        configuration: Bytes::copy_from_slice(json.as_bytes()),
        ..PluginConfig::default()
    }
}

fn plugin(module: &Module, config: PluginConfig) -> Plugin {
    plugin_with(module, config, Arc::new(NoUpstreams))
}

fn plugin_with(module: &Module, config: PluginConfig, upstreams: Arc<dyn Upstreams>) -> Plugin {
    module
        .plugin(config, &Services::default(), upstreams)
        .expect("a plugin")
}

/// Runs as a worker of the proxy does: on one thread, with local tasks.
fn local<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime.block_on(future)
}

fn info() -> Arc<StreamInfo> {
    Arc::new(StreamInfo {
        id: 7,
        connection: 3,
        direction: TrafficDirection::Outbound,
        began: SystemTime::now(),
        source: Arc::new(Peer {
            namespace: "shop".into(),
            service: Some("web".into()),
            account: "web".into(),
        }),
        source_address: SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 40_000)),
        destination: Arc::new(Destination {
            namespace: "shop".into(),
            service: Some("cart".into()),
            account: None,
            address: IpAddr::from([10, 0, 0, 2]),
            port: 8080,
        }),
        original: SocketAddr::from((Ipv4Addr::new(240, 240, 0, 2), 80)),
        protocol: FlowProtocol::Http,
        state: FilterState::default(),
    })
}

/// A filter for one more request.
fn stream(plugin: &Plugin) -> Box<dyn StreamFilter> {
    plugin.stream(&info()).expect("a filter")
}

fn get(path: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().uri(path).header("host", "cart");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

/// The same with its headers in a text.
fn get_text(path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::take(&mut get(path, &[]));
    let host = [("Host", "cart")].into_iter();
    let pairs = host.chain(headers.iter().copied());
    let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    head.headers = HeaderSection::Text(HeaderLines::of(pairs, 0, 0));
    head
}

fn ok() -> ResponseHead {
    ResponseHead::default()
}

fn end() -> StreamEnd {
    StreamEnd {
        status: 200,
        duration: Duration::from_millis(3),
        request_bytes: 10,
        response_bytes: 20,
        failure: None,
    }
}

/// What was answered in the service's place: status and body.
fn answered(step: Step) -> (u16, String) {
    match step {
        Step::Respond(response) => {
            let body = String::from_utf8_lossy(response.body()).into_owned();
            (response.status().as_u16(), body)
        }
        other => panic!("no answer, but {other:?}"),
    }
}

fn goes_on(step: Step) {
    assert!(matches!(step, Step::Continue), "{step:?}");
}

fn waits(step: Step) {
    assert!(matches!(step, Step::Pause), "{step:?}");
}
