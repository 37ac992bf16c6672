//! What users would pick instead: Envoy, haproxy, Envoy twice behind iptables; and the origin that all of them share.

use std::{env, fs, net::Ipv4Addr, path::Path, thread, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vm_test::{
    Lab, Nginx, Running, Server,
    envoy::{self, in_cgroup},
    listens, poll,
};

use crate::paths;

/// What every origin answers, in bytes.
pub const BODY: usize = 1024;

/// `SO_MARK` by which the iptables rules tell the connections of the two Envoys apart (the sidecars' uid in a pod).
const MARK: u32 = 1337;

/// Workers of each proxy: one a processor, as weft has.
pub fn workers() -> String {
    thread::available_parallelism()
        .map_or(1, |count| count.get())
        .to_string()
}

/// nginx outside the mesh.
///
/// # Errors
/// It does not start.
pub fn origin(lab: &Lab, cgroup: &Path, port: u16) -> Result<Server> {
    let nginx = Nginx::service("origin").port(80, port).says(&"x".repeat(BODY));
    nginx.start_by(lab, |words| Running::start(in_cgroup(lab, cgroup, &words)))
}

/// Envoy as an HTTP proxy of one origin; neither stats nor access log.
pub struct Envoy {
    pub port: u16,
    pub origin: u16,
    /// HTTP filters before the router.
    pub filters: Vec<Value>,
    /// Clusters beside the origin's.
    pub clusters: Vec<Value>,
    /// Mark of its connections to the origin.
    pub mark: Option<u32>,
    /// Speaks HTTP/2 to the origin; to clients, whatever they do.
    pub http2: bool,
}

// === impl Envoy ===

impl Envoy {
    pub fn one_hop(port: u16, origin: u16) -> Self {
        Self {
            port,
            origin,
            filters: Vec::new(),
            clusters: Vec::new(),
            mark: None,
            http2: false,
        }
    }

    /// # Errors
    /// It does not start.
    pub fn start(&self, lab: &Lab, cgroup: &Path) -> Result<Running> {
        let running = start_envoy(lab, cgroup, self.port, &self.config())?;
        listening(running, self.port, poll::PATIENCE)
    }

    fn config(&self) -> Value {
        let mut origin = cluster("origin", self.origin);
        if let Some(mark) = self.mark {
            // SOL_SOCKET, SO_MARK
            origin["upstream_bind_config"] = json!({
                "source_address": {"address": "127.0.0.1", "port_value": 0},
                "socket_options": [{"level": 1, "name": 36, "int_value": mark, "state": "STATE_PREBIND"}],
            });
        }
        if self.http2 {
            origin = over_http2(origin);
        }
        let clusters: Vec<&Value> = [&origin].into_iter().chain(&self.clusters).collect();
        json!({
            "stats_config": {"stats_matcher": {"reject_all": true}},
            "static_resources": {
                "listeners": [listener(self.port, &self.filters, &[virtual_host("all", "*", "origin")])],
                "clusters": clusters,
            },
        })
    }
}

/// Envoy with this configuration, which has a listener at this port. It may take a while to listen.
///
/// # Errors
/// It cannot be started.
pub fn start_envoy(lab: &Lab, cgroup: &Path, port: u16, config: &Value) -> Result<Running> {
    let file = lab.work().join(format!("envoy-{port}.json"));
    fs::write(&file, config.to_string()).with_context(|| format!("write {}", file.display()))?;
    let (binary, file, workers) = (envoy::binary()?, file.display().to_string(), workers());
    let binary = binary.display().to_string();
    let words = [
        binary.as_str(),
        "--config-path",
        &file,
        // Without it several would share memory and refuse to start.
        "--disable-hot-restart",
        "--concurrency",
        &workers,
        "--log-level",
        "warning",
    ];
    Running::start(in_cgroup(lab, cgroup, &words))
}

/// A listener of Envoy on loopback that serves these hosts; `filters` are those before the router.
pub fn listener(port: u16, filters: &[Value], hosts: &[Value]) -> Value {
    let extension = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": extension("http.router.v3.Router")},
    });
    let filters: Vec<&Value> = filters.iter().chain([&router]).collect();
    let manager = json!({
        "@type": extension("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "generate_request_id": false,
        "http_filters": filters,
        // Clusters may come later, from a file.
        "route_config": {"validate_clusters": false, "virtual_hosts": hosts},
    });
    json!({
        "address": socket_address(Ipv4Addr::LOCALHOST, port),
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]}],
    })
}

/// Whatever is asked of `domain` goes to `cluster`.
pub fn virtual_host(name: &str, domain: &str, cluster: &str) -> Value {
    json!({"name": name, "domains": [domain], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]})
}

/// A cluster of one endpoint on loopback.
pub fn cluster(name: &str, port: u16) -> Value {
    cluster_of(name, &[Ipv4Addr::LOCALHOST], port)
}

/// A cluster of these endpoints.
pub fn cluster_of(name: &str, addresses: &[Ipv4Addr], port: u16) -> Value {
    let endpoint = |address: &Ipv4Addr| json!({"endpoint": {"address": socket_address(*address, port)}});
    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

/// The same cluster, spoken to in HTTP/2.
pub fn over_http2(mut cluster: Value) -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({options: {
        "@type": format!("type.googleapis.com/{options}"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    cluster
}

fn socket_address(address: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": address.to_string(), "port_value": port}})
}

/// haproxy as an HTTP proxy of one origin, without log.
///
/// # Errors
/// It does not start.
pub fn haproxy(lab: &Lab, cgroup: &Path, port: u16, origin: u16) -> Result<Running> {
    let config = format!(
        "global\n  nbthread {}\n  maxconn 2000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend bench\n  bind 127.0.0.1:{port}\n  default_backend origin\n\
         backend origin\n  server origin 127.0.0.1:{origin}\n",
        workers()
    );
    let file = lab.work().join("haproxy.cfg");
    fs::write(&file, config).context("write haproxy.cfg")?;
    let file = file.display().to_string();
    let words = ["haproxy", "-db", "-f", &file];
    listening(Running::start(in_cgroup(lab, cgroup, &words))?, port, poll::PATIENCE)
}

/// A proxy that copies bytes and does nothing else: the price of the kernel's TCP alone.
///
/// # Errors
/// It does not start.
pub fn relay(lab: &Lab, cgroup: &Path, port: u16, origin: u16) -> Result<Running> {
    let (listen, target) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{origin}"));
    let relay = paths::relay().display().to_string();
    let words = [relay.as_str(), &listen, &target, "--threads", &workers()];
    listening(Running::start(in_cgroup(lab, cgroup, &words))?, port, poll::PATIENCE)
}

/// What a sidecar mesh does on one node: Envoy at the client's side and at the server's, both behind iptables REDIRECT. Returns
/// the port that is redirected to the first. The rules are those of the lab's namespace.
///
/// # Errors
/// Something does not start.
pub fn sidecars(lab: &Lab, cgroup: &Path, port: u16, origin: u16) -> Result<[Running; 2]> {
    let (outbound, inbound) = (15001, 15006);
    let own = MARK.to_string();
    for (mark, to) in [(vec!["!", "--mark", &own], outbound), (vec!["--mark", &own], inbound)] {
        let (dport, to) = (port.to_string(), to.to_string());
        let mut words = vec![
            "iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", &dport, "-m", "mark",
        ];
        words.extend(mark);
        words.extend(["-j", "REDIRECT", "--to-ports", &to]);
        lab.outside(words)?.ok()?;
    }
    let first = Envoy {
        mark: Some(MARK),
        ..Envoy::one_hop(outbound, port)
    };
    let second = Envoy::one_hop(inbound, origin);
    Ok([first.start(lab, cgroup)?, second.start(lab, cgroup)?])
}

/// Waits until it listens, for so long at most.
pub fn listening(mut running: Running, port: u16, bound: Duration) -> Result<Running> {
    let pid = running.pid();
    poll::within(bound, &format!("a listener on port {port}"), || {
        if !running.is_running()? {
            return Ok(false);
        }
        if listens(pid, port)? {
            Ok(true)
        } else {
            bail!("none yet")
        }
    })?
    .then_some(())
    .with_context(|| format!("it ended: {}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// Settings of a lab's namespace that a machine's defaults must not decide: bbr's pacing halves bulk TCP, and short connections
/// need ports.
///
/// # Errors
/// The kernel refuses one.
pub fn settle(lab: &Lab) -> Result<()> {
    for (name, value) in [
        ("tcp_congestion_control", "reno"),
        ("ip_local_port_range", "16384 65535"),
        ("tcp_tw_reuse", "1"),
    ] {
        let write = format!("echo '{value}' > /proc/sys/net/ipv4/{name}");
        lab.outside(["sh", "-c", &write])?.ok()?;
    }
    Ok(())
}

/// Versions of the peers and of this machine, for results of record.
pub fn versions() -> Value {
    let first_line = |words: &[&str]| {
        let mut command = std::process::Command::new(words.first().copied().unwrap_or_default());
        let text = crate::shell::ask(command.args(words.iter().skip(1)));
        text.and_then(|text| text.lines().next().map(str::to_owned))
    };
    // It says which file it is, which means nothing elsewhere.
    let envoy = envoy::binary().ok().and_then(|file| {
        let text = crate::shell::ask(std::process::Command::new(file).arg("--version"))?;
        let (_, version) = text.split_once("version: ")?;
        Some(version.trim().to_owned())
    });
    let processor = fs::read_to_string("/proc/cpuinfo").ok();
    let processor = processor.as_deref().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        line.split_once(": ").map(|(_, name)| name.to_owned())
    });
    json!({
        "haproxy": first_line(&["haproxy", "-v"]),
        "envoy": envoy,
        "kernel": first_line(&["uname", "-r"]),
        "processor": processor,
        "processors": workers(),
        "os": env::consts::OS,
    })
}
