//! The real Envoy, with WebAssembly filters before one origin.

use std::{
    env, fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// What a listener and its origin speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    /// With prior knowledge.
    Http2,
    /// Bytes.
    Tcp,
}

/// One listener: its filters, and where requests and calls go.
pub struct Listener<'a> {
    pub speaks: Speaks,
    /// Files and configurations of the filters, in order.
    pub filters: Vec<(PathBuf, &'a str)>,
    pub origin: SocketAddr,
    /// The cluster `oracle`.
    pub oracle: SocketAddr,
}

/// A running Envoy. Dropping it kills it; so does the end of the thread that started it.
pub struct Envoy {
    child: Child,
    held: Vec<TcpSocket>,
    log: PathBuf,
    _folder: TempDir,
}

/// `None`: `cargo xtask setup` has not put it there, which is said past the capture of libtest.
///
/// # Panics
/// Under `cargo xtask test`, which sets the variable: there nothing is skipped.
pub fn binary() -> Option<PathBuf> {
    let binary = installed();
    if binary.is_none() {
        let needs = "needs Envoy: `cargo xtask setup` installs it";
        assert!(
            env::var_os("WEFT_TEST_NO_SKIP").is_none(),
            "it must not be skipped, and {needs}"
        );
        // Nothing can be done about a terminal that is gone.
        let _ = io::stderr().write_all(format!("skipped: a comparison with Envoy {needs}\n").as_bytes());
    }
    binary
}

fn installed() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/envoy/lib");
    let mut versions = fs::read_dir(lib).ok()?.flatten();
    versions.find_map(|version| {
        let file = version.path().join("site-packages/envoy/_bin/envoy");
        file.exists().then_some(file)
    })
}

// === impl Envoy ===

impl Envoy {
    /// Starts it with these listeners, on free ports of 127.0.0.1.
    pub async fn start(binary: &Path, listeners: &[Listener<'_>]) -> Self {
        // Bound, so that nobody else gets the ports, and not listening: Envoy binds beside them.
        let hold = |_| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseport(true).unwrap();
            socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            socket
        };
        let held: Vec<TcpSocket> = listeners.iter().map(hold).collect();
        let ports: Vec<u16> = held.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
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
            held,
            log,
            _folder: folder,
        };
        for index in 0..listeners.len() {
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
        self.held[index].local_addr().unwrap()
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
            let mut origin = cluster(&format!("origin-{port}"), listener.origin);
            if listener.speaks == Speaks::Http2 {
                origin["typed_extension_protocol_options"] = http2();
            }
            clusters.push(origin);
            listening(listener, *port)
        })
        .collect();
    clusters.extend(listeners.first().map(|listener| cluster("oracle", listener.oracle)));
    json!({ "static_resources": { "listeners": listening, "clusters": clusters } })
}

fn listening(listener: &Listener<'_>, port: u16) -> Value {
    let layer = match listener.speaks {
        Speaks::Http1 | Speaks::Http2 => "http",
        Speaks::Tcp => "network",
    };
    let mut filters: Vec<Value> = listener
        .filters
        .iter()
        .enumerate()
        .map(|(index, (file, configuration))| wasm(layer, file, configuration, &format!("{port}-{index}")))
        .collect();
    let origin = format!("origin-{port}");
    let filters = match listener.speaks {
        Speaks::Http1 | Speaks::Http2 => vec![http(filters, &origin)],
        Speaks::Tcp => {
            filters.push(json!({
                "name": "tcp",
                "typed_config": {
                    "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
                    "stat_prefix": "tcp",
                    "cluster": origin,
                },
            }));
            filters
        }
    };
    json!({
        "address": address((Ipv4Addr::LOCALHOST, port).into()),
        "enable_reuse_port": true,
        "filter_chains": [{ "filters": filters }],
    })
}

/// It finds out by itself which HTTP a client speaks.
fn http(mut filters: Vec<Value>, origin: &str) -> Value {
    filters.push(json!({
        "name": "router",
        "typed_config": { "@type": format!("{TYPES}.filters.http.router.v3.Router") },
    }));
    json!({
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
    })
}

/// Of a cluster that is asked so.
fn http2() -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({ options: {
        "@type": format!("type.googleapis.com/{options}"),
        "explicit_http_config": { "http2_protocol_options": {} },
    } })
}

fn wasm(layer: &str, file: &Path, configuration: &str, id: &str) -> Value {
    json!({
        "name": format!("wasm-{id}"),
        "typed_config": {
            "@type": format!("{TYPES}.filters.{layer}.wasm.v3.Wasm"),
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
