//! The real Envoy, with WebAssembly filters before one origin.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// One listener: its filters, and where requests and calls go.
pub struct Listener<'a> {
    /// Files and configurations of the filters, in order.
    pub filters: Vec<(PathBuf, &'a str)>,
    pub origin: SocketAddr,
    /// The cluster `oracle`.
    pub oracle: SocketAddr,
}

/// A running Envoy. Dropping it kills it; so does the end of the thread that started it.
pub struct Envoy {
    child: Child,
    ports: Vec<u16>,
    log: PathBuf,
    _folder: TempDir,
}

/// `None`: `cargo xtask setup` has not put it there.
pub fn binary() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/envoy/lib");
    let mut versions = fs::read_dir(lib).ok()?.flatten();
    versions.find_map(|version| {
        let file = version.path().join("site-packages/envoy/_bin/envoy");
        file.exists().then_some(file)
    })
}

// === impl Envoy ===

impl Envoy {
    /// Starts it with one HTTP/1.1 listener each, on free ports of 127.0.0.1.
    pub async fn start(binary: &Path, listeners: &[Listener<'_>]) -> Self {
        // Held until all are found, so that they differ.
        let free: Vec<TcpListener> = listeners
            .iter()
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let ports: Vec<u16> = free.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        drop(free);
        let folder = TempDir::new().unwrap();
        let (file, log) = (folder.path().join("envoy.json"), folder.path().join("log"));
        fs::write(&file, config(listeners, &ports).to_string()).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(binary)
            .arg("--config-path")
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut envoy = Self {
            child,
            ports,
            log,
            _folder: folder,
        };
        for index in 0..envoy.ports.len() {
            while TcpStream::connect(envoy.address(index)).await.is_err() {
                assert!(
                    envoy.child.try_wait().unwrap().is_none(),
                    "Envoy ended: {}",
                    envoy.log()
                );
                tokio::task::yield_now().await;
            }
        }
        envoy
    }

    /// Of the n-th listener.
    pub fn address(&self, index: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[index]).into()
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn config(listeners: &[Listener<'_>], ports: &[u16]) -> Value {
    let mut clusters = Vec::new();
    let listening: Vec<Value> = listeners
        .iter()
        .zip(ports)
        .map(|(listener, port)| {
            clusters.push(cluster(&format!("origin-{port}"), listener.origin));
            listening(listener, *port)
        })
        .collect();
    clusters.extend(listeners.first().map(|listener| cluster("oracle", listener.oracle)));
    json!({ "static_resources": { "listeners": listening, "clusters": clusters } })
}

fn listening(listener: &Listener<'_>, port: u16) -> Value {
    let mut filters: Vec<Value> = listener
        .filters
        .iter()
        .enumerate()
        .map(|(index, (file, configuration))| wasm(file, configuration, &format!("{port}-{index}")))
        .collect();
    filters.push(json!({
        "name": "router",
        "typed_config": { "@type": format!("{TYPES}.filters.http.router.v3.Router") },
    }));
    let origin = format!("origin-{port}");
    json!({
        "address": address((Ipv4Addr::LOCALHOST, port).into()),
        "filter_chains": [{ "filters": [{
            "name": "http",
            "typed_config": {
                "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "http",
                "http_filters": filters,
                "route_config": { "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": origin } }],
                }] },
            },
        }] }],
    })
}

fn wasm(file: &Path, configuration: &str, id: &str) -> Value {
    json!({
        "name": format!("wasm-{id}"),
        "typed_config": {
            "@type": format!("{TYPES}.filters.http.wasm.v3.Wasm"),
            "config": {
                "name": format!("wasm-{id}"),
                "configuration": { "@type": "type.googleapis.com/google.protobuf.StringValue", "value": configuration },
                "vm_config": {
                    "vm_id": id,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "local": { "filename": file } },
                },
            },
        },
    })
}

fn cluster(name: &str, to: SocketAddr) -> Value {
    json!({
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
