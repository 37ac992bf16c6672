//! What a check costs, by where it runs: compiled in, as WebAssembly, or asked of a policy server; and beside each the
//! same check in Envoy.
//!
//! Every arm lets through requests that show one token, refuses others, and is asked with that token. What a check
//! costs is what its arm takes beyond the arm of the same proxy that checks nothing.

mod check;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Running, Server, cgroup::Cgroup, envoy, poll, process, resources};

use self::check::{Check, POLICY_SERVER, TOKEN};
use super::{
    arm::{Arm, Client, Load, Measured, Seconds, undisturbed},
    cpu::{self, Awake},
    http::{RATE, address},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, difference, ratio_of_differences},
};
use crate::paths;

const ORIGIN: u16 = 9001;
/// Of the first Envoy; the others' follow.
const ENVOY: u16 = 9010;

const CONNECTIONS: usize = 32;
const LATENCY_RATE: u32 = 493;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Weft,
    Envoy,
}

/// In the order of [`Adapters::arms`].
const ARMS: [(Proxy, Check); 9] = [
    (Proxy::Weft, Check::Nothing),
    (Proxy::Weft, Check::Native),
    (Proxy::Weft, Check::Wasm),
    (Proxy::Weft, Check::FreshWasm),
    (Proxy::Weft, Check::Remote),
    (Proxy::Envoy, Check::Nothing),
    (Proxy::Envoy, Check::Native),
    (Proxy::Envoy, Check::Wasm),
    (Proxy::Envoy, Check::Remote),
];

/// All are beyond [`Check::Nothing`] of the same proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// CPU a request of the proxy, at the fixed rate.
    Proxy,
    /// CPU a request of the proxy, with as many as are answered.
    ProxyFull,
    /// Of the policy server.
    PolicyServer,
    /// Median latency on one connection.
    P50,
    /// 99th percentile at the fixed rate.
    P99,
}

/// How two arms are put beside each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// The first alone.
    Alone,
    /// How many times the second the first is.
    Times,
    /// How many times the first the second is.
    Cheaper,
}

type Side = (Proxy, Check);

const NATIVE: Side = (Proxy::Weft, Check::Native);
const WASM: Side = (Proxy::Weft, Check::Wasm);
const FRESH: Side = (Proxy::Weft, Check::FreshWasm);
const REMOTE: Side = (Proxy::Weft, Check::Remote);
const RBAC: Side = (Proxy::Envoy, Check::Native);
const THEIR_WASM: Side = (Proxy::Envoy, Check::Wasm);
const THEIR_REMOTE: Side = (Proxy::Envoy, Check::Remote);

/// What, of which figure, ours, whose beside it, and what is to be reached.
#[rustfmt::skip]
const ROWS: [(&str, Figure, Side, Side, Compared, Goal); 21] = [
    ("native, CPU added", Figure::Proxy, NATIVE, RBAC, Compared::Alone, Goal::AtMost(1.0)),
    ("wasm, CPU added", Figure::Proxy, WASM, THEIR_WASM, Compared::Alone, Goal::AtMost(5.0)),
    ("wasm vs. Envoy's wasm, CPU added", Figure::Proxy, WASM, THEIR_WASM, Compared::Cheaper, Goal::AtLeast(3.0)),
    ("as many as are answered: native, CPU added", Figure::ProxyFull, NATIVE, RBAC, Compared::Alone, Goal::AtMost(1.0)),
    ("as many as are answered: wasm, CPU added", Figure::ProxyFull, WASM, THEIR_WASM, Compared::Alone, Goal::AtMost(5.0)),
    ("as many as are answered: wasm vs. Envoy's wasm, CPU added", Figure::ProxyFull, WASM, THEIR_WASM, Compared::Cheaper, Goal::AtLeast(3.0)),
    ("remote vs. wasm, added p50", Figure::P50, REMOTE, WASM, Compared::Times, Goal::AtLeast(20.0)),
    ("wasm, an instance a request, vs. Envoy's wasm, CPU added", Figure::Proxy, FRESH, THEIR_WASM, Compared::Cheaper, Goal::Told),
    ("remote vs. wasm, an instance a request, added p50", Figure::P50, REMOTE, FRESH, Compared::Times, Goal::Told),
    ("native vs. Envoy's RBAC, CPU added", Figure::Proxy, NATIVE, RBAC, Compared::Cheaper, Goal::Told),
    ("remote vs. Envoy's, CPU added to the proxy", Figure::Proxy, REMOTE, THEIR_REMOTE, Compared::Cheaper, Goal::Told),
    ("as many as are answered: wasm, an instance a request, vs. Envoy's wasm, CPU added", Figure::ProxyFull, FRESH, THEIR_WASM, Compared::Cheaper, Goal::Told),
    ("as many as are answered: native vs. Envoy's RBAC, CPU added", Figure::ProxyFull, NATIVE, RBAC, Compared::Cheaper, Goal::Told),
    ("as many as are answered: remote vs. Envoy's, CPU added to the proxy", Figure::ProxyFull, REMOTE, THEIR_REMOTE, Compared::Cheaper, Goal::Told),
    ("remote vs. Envoy's, CPU of the policy server", Figure::PolicyServer, REMOTE, THEIR_REMOTE, Compared::Cheaper, Goal::Told),
    ("native vs. Envoy's RBAC, added p50", Figure::P50, NATIVE, RBAC, Compared::Cheaper, Goal::Told),
    ("wasm vs. Envoy's wasm, added p50", Figure::P50, WASM, THEIR_WASM, Compared::Cheaper, Goal::Told),
    ("remote vs. Envoy's, added p50", Figure::P50, REMOTE, THEIR_REMOTE, Compared::Cheaper, Goal::Told),
    ("native vs. Envoy's RBAC, added p99 at the fixed rate", Figure::P99, NATIVE, RBAC, Compared::Cheaper, Goal::Told),
    ("wasm vs. Envoy's wasm, added p99 at the fixed rate", Figure::P99, WASM, THEIR_WASM, Compared::Cheaper, Goal::Told),
    ("remote vs. Envoy's, added p99 at the fixed rate", Figure::P99, REMOTE, THEIR_REMOTE, Compared::Cheaper, Goal::Told),
];

/// What an arm did, a value a round.
#[derive(Default)]
struct Figures {
    busy: Vec<Measured>,
    /// The policy server's part of it, in microseconds a request.
    policy_server: Vec<f64>,
    full: Vec<Measured>,
    alone: Vec<Measured>,
}

struct Adapters {
    seconds: Seconds,
    arms: Vec<Arm>,
    figures: Vec<Figures>,
    policy_server: i32,
    // Ended in this order, the lab last.
    _proxies: Vec<Running>,
    _servers: Vec<Server>,
    _cgroup: Cgroup,
    _lab: Lab,
}

// === impl Figure ===

impl Figure {
    fn unit(self) -> &'static str {
        match self {
            Self::Proxy | Self::ProxyFull | Self::PolicyServer => "µs CPU",
            Self::P50 | Self::P99 => "µs",
        }
    }

    fn of(self, figures: &Figures) -> Vec<f64> {
        match self {
            Self::Proxy => figures.busy.iter().map(|measured| measured.proxy).collect(),
            Self::ProxyFull => figures.full.iter().map(|measured| measured.proxy).collect(),
            Self::PolicyServer => figures.policy_server.clone(),
            Self::P50 => figures.alone.iter().map(|measured| measured.p50).collect(),
            Self::P99 => figures.busy.iter().map(|measured| measured.p99).collect(),
        }
    }
}

// === impl Compared ===

impl Compared {
    fn of(self, arm: &[f64], peer: &[f64]) -> Vec<f64> {
        match self {
            Self::Alone => arm.to_vec(),
            Self::Times => ratio_of_differences(arm, peer),
            Self::Cheaper => ratio_of_differences(peer, arm),
        }
    }
}

/// # Errors
/// As [`Adapters::new`], or a response was wrong.
pub fn run(quick: bool) -> Result<Vec<Row>> {
    rounds::run(&mut Adapters::new(quick)?, Rounds::new(quick), |line| {
        println!("{line}")
    })
}

// === impl Adapters ===

impl Adapters {
    /// # Errors
    /// A mesh, a server or a peer does not start, or does not refuse what it is to refuse.
    fn new(quick: bool) -> Result<Self> {
        let lab = Lab::new("bench-adapters")?;
        let outside = envoy::foreign_cgroup(&lab)?;
        peers::settle(&lab)?;
        let mut servers = vec![peers::origin(&lab, outside.path(), ORIGIN)?];
        let policy_server = policy_server(&lab, outside.path())?;
        servers.extend(mesh(&lab)?);

        let generator = paths::load();
        let daemon = lab.daemon_pid()?;
        let (mut arms, mut proxies) = (Vec::new(), Vec::new());
        // Behind the Envoys stands the first, behind each service of the mesh one of the others, in the order of the arms.
        let origins: Vec<i32> = servers.iter().map(Server::pid).collect();
        for (((proxy, check), port), of_mesh) in ARMS.into_iter().zip(ENVOY..).zip(1..) {
            let origin = origins[if proxy == Proxy::Weft { of_mesh } else { 0 }];
            arms.push(match proxy {
                Proxy::Weft => {
                    let client = Client::start(&generator, |words| lab.run("client").account("friend").start(words))?;
                    let target = address(&lab, check.service())?;
                    arm((proxy, check), target, (daemon, origin), client)
                }
                Proxy::Envoy => {
                    let (filter, cluster) = check.envoy();
                    let envoy = peers::Envoy {
                        filters: Vec::from_iter(filter),
                        clusters: Vec::from_iter(cluster),
                        ..peers::Envoy::one_hop(port, ORIGIN)
                    };
                    let running = envoy.start(&lab, outside.path())?;
                    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                    let ask = |words: Vec<String>| {
                        let words: Vec<&str> = words.iter().map(String::as_str).collect();
                        let command = envoy::in_cgroup(&lab, outside.path(), &words);
                        Ok(process::output(command, process::BOUND)?.stdout)
                    };
                    in_force(check, target, ask)?;
                    let client = Client::start(&generator, |words| {
                        Running::start(envoy::in_cgroup(&lab, outside.path(), &words))
                    })?;
                    let arm = arm((proxy, check), target, (running.pid(), origin), client);
                    proxies.push(running);
                    arm
                }
            });
        }
        let policy_server_pid = policy_server.pid();
        proxies.push(policy_server);
        Ok(Self {
            seconds: Seconds::new(quick),
            figures: arms.iter().map(|_| Figures::default()).collect(),
            arms,
            policy_server: policy_server_pid,
            _proxies: proxies,
            _servers: servers,
            _cgroup: outside,
            _lab: lab,
        })
    }

    /// A value a round.
    fn figure(&self, figure: Figure, (proxy, check): Side) -> Vec<f64> {
        let of = |check| {
            let mut all = ARMS.iter().zip(&self.figures);
            let found = all.find_map(|(side, figures)| (*side == (proxy, check)).then_some(figures));
            found.map(|figures| figure.of(figures)).unwrap_or_default()
        };
        difference(&of(check), &of(Check::Nothing))
    }
}

impl Scenario for Adapters {
    fn round(&mut self, number: usize) -> Result<f64> {
        let load = |rate: Option<u32>, connections: usize| Load {
            rate,
            connections,
            seconds: self.seconds.counted,
            short: false,
        };
        let (busy, full) = (load(Some(RATE), CONNECTIONS), load(None, CONNECTIONS));
        let alone = load(Some(LATENCY_RATE), 1);
        let mut order: Vec<usize> = (0..ARMS.len()).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        let mut stolen = 0.0;
        for load in [&busy, &full, &alone] {
            // A latency is of processors that are awake; a cost is of processors that rest when they may.
            let awake = (load.connections == 1).then(Awake::new).transpose()?;
            for index in &order {
                let (Some(arm), Some(figures)) = (self.arms.get_mut(*index), self.figures.get_mut(*index)) else {
                    continue;
                };
                let mut judging = Duration::ZERO;
                let measured = undisturbed(|| {
                    let before = cpu::of_process(self.policy_server)?;
                    let measured = arm.measure(load, self.seconds.warm_up)?;
                    judging = cpu::of_process(self.policy_server)?.saturating_sub(before);
                    Ok(measured)
                })?;
                stolen += measured.spent.disturbed();
                match (load.rate, load.connections) {
                    (None, _) => figures.full.push(measured),
                    (_, 1) => figures.alone.push(measured),
                    _ => {
                        let judging = judging.as_secs_f64() * 1e6 / measured.requests as f64;
                        figures.policy_server.push(judging);
                        figures.busy.push(measured);
                    }
                }
            }
            drop(awake);
        }
        Ok(stolen)
    }

    fn drop_last(&mut self) {
        for figures in &mut self.figures {
            figures.busy.pop();
            figures.policy_server.pop();
            figures.full.pop();
            figures.alone.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(what, figure, arm, peer, compared, goal): &(&str, Figure, Side, Side, Compared, Goal)| {
            let (arm, peer) = (self.figure(*figure, *arm), self.figure(*figure, *peer));
            Row {
                what: (*what).to_owned(),
                unit: figure.unit(),
                compared: compared.of(&arm, &peer),
                arm,
                peer,
                goal: *goal,
            }
        };
        ROWS.iter().map(row).collect()
    }
}

/// `pids`: of the proxy, and of the origin.
fn arm((proxy, check): Side, target: SocketAddr, pids: (i32, i32), client: Client) -> Arm {
    Arm {
        name: match (proxy, check) {
            (Proxy::Weft, Check::Nothing) => "weft, no check",
            (Proxy::Weft, Check::Native) => "weft, list",
            (Proxy::Weft, Check::Wasm) => "weft, wasm",
            (Proxy::Weft, Check::FreshWasm) => "weft, wasm, an instance a request",
            (Proxy::Weft, Check::Remote) => "weft, ext_authz",
            (Proxy::Envoy, Check::Nothing) => "Envoy, no check",
            (Proxy::Envoy, Check::Native) => "Envoy, RBAC",
            (Proxy::Envoy, Check::Wasm | Check::FreshWasm) => "Envoy, wasm",
            (Proxy::Envoy, Check::Remote) => "Envoy, ext_authz",
        },
        target,
        host: check.service().to_owned(),
        headers: vec![format!("authorization: Bearer {TOKEN}")],
        words: &[],
        proxies: vec![pids.0],
        origin: pids.1,
        client,
    }
}

/// Speaks ext_authz on loopback, outside the mesh.
fn policy_server(lab: &Lab, cgroup: &Path) -> Result<Running> {
    let (binary, listen) = (
        paths::authz().display().to_string(),
        format!("127.0.0.1:{POLICY_SERVER}"),
    );
    let header = format!("authorization: Bearer {TOKEN}");
    let words = [binary.as_str(), &listen, &header];
    peers::listening(
        Running::start(envoy::in_cgroup(lab, cgroup, &words))?,
        POLICY_SERVER,
        poll::PATIENCE,
    )
}

/// Account `friend` may GET from a service for each check, all through the proxy.
fn mesh(lab: &Lab) -> Result<Vec<Server>> {
    lab.resource("mesh.yaml", resources::DENY)?;
    let checks = || {
        ARMS.into_iter()
            .filter(|(proxy, _)| *proxy == Proxy::Weft)
            .map(|(_, check)| check)
    };
    let mut yaml = resources::route("reads", "/", &["GET"]);
    for check in checks() {
        let service = check.service();
        yaml += &resources::allow(
            &format!("friend-{service}"),
            "friend",
            service,
            ("HTTPRouteGroup", "reads"),
        );
        if let Some(rest) = check.adapter() {
            yaml += &format!(
                "---\napiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {service}}}\n\
                 spec:\n  target: {{services: [{service}]}}\n  {rest}\n"
            );
        }
    }
    lab.resource("access.yaml", &yaml)?;
    // The peers keep no access log either.
    lab.daemon_with(&["--access-log", "off"])?;
    let body = "x".repeat(peers::BODY);
    let servers = checks()
        .zip(8080..)
        .map(|(check, port)| lab.nginx(Nginx::service(check.service()).port(80, port).says(&body)));
    let servers = servers.collect::<Result<_>>()?;
    for check in checks() {
        let ask = |words: Vec<String>| Ok(lab.run("client").account("friend").output(words)?.stdout);
        in_force(check, address(lab, check.service())?, ask)?;
    }
    Ok(servers)
}

/// Waits until the token is let through, and requests without it are not unless nothing checks them. `ask` runs a program
/// and returns what it printed.
fn in_force(check: Check, target: SocketAddr, ask: impl Fn(Vec<String>) -> Result<String>) -> Result<()> {
    let status = |token: &str| -> Result<String> {
        let (url, header) = (format!("http://{target}/"), format!("authorization: Bearer {token}"));
        let words = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-m",
            "5",
            "-H",
            &header,
            &url,
        ];
        ask(words.map(str::to_owned).to_vec()).context("ask with curl")
    };
    poll::until(&format!("check `{}` at {target}", check.service()), || {
        let (known, unknown) = (status(TOKEN)?, status("wrong")?);
        ensure!(known == "200", "the token got {known:?}");
        ensure!(
            unknown == if check == Check::Nothing { "200" } else { "403" },
            "another one got {unknown:?}"
        );
        Ok(())
    })
}
