//! HTTP/1.1, one request after the other, on one node: through weft's proxy with telemetry and an access rule, through the peers
//! without any, and past all of them.
//!
//! Each arm gets a fixed rate on 32 connections, which tells what a request costs; and a low fixed rate on one connection,
//! with processors that never halt, which tells what it adds to the latency. New connections with a request each tell what a
//! connection costs; as many requests as are answered, how far the machine goes.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Running, Server, cgroup::Cgroup, envoy, poll, resources};

use super::{
    arm::{Arm, Client, Load, Measured},
    cpu::Awake,
    peers,
    rounds::{Goal, Rounds, Row, Scenario, difference, ratio},
};
use crate::paths;

const ORIGIN: u16 = 9001;
const ENVOY: u16 = 9010;
const HAPROXY: u16 = 9020;
const SIDECARS: u16 = 9030;

/// A rate that every arm can serve on two processors.
const RATE: u32 = 3000;
const CONNECTIONS: usize = 32;
const LATENCY_RATE: u32 = 500;
const SHORT_RATE: u32 = 1000;

/// Processor time a request below which the proxy was not on the way (it reads, writes, reads and writes), in microseconds.
const PROXIED: f64 = 5.0;

/// Services of the mesh: through the proxy over TCP, through it short-circuited, and past it.
const PLAIN: &str = "plain";
const FAST: &str = "fast";
const DIRECT: &str = "direct";

/// In the order of [`Http::arms`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    NoMesh,
    Weft,
    WeftFast,
    WeftDirect,
    Envoy,
    Haproxy,
    Sidecars,
}

const WAYS: [Way; 7] = [
    Way::NoMesh,
    Way::Weft,
    Way::WeftFast,
    Way::WeftDirect,
    Way::Envoy,
    Way::Haproxy,
    Way::Sidecars,
];

/// What is compared of two ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// Requests a second, as many as are answered.
    Rate,
    /// CPU a request of the proxies, at a fixed rate.
    Proxy,
    /// The same of the whole machine.
    Machine,
    /// CPU of the whole machine a connection with one request.
    Connection,
    /// Median latency on one connection beyond that without a mesh.
    Added,
    /// 99th percentile at the fixed rate.
    P99,
}

/// What, ours, whose beside it, and what is to be reached (bench.md).
#[rustfmt::skip]
const ROWS: [(&str, Figure, Way, Way, Goal); 18] = [
    ("L4 path vs. no mesh, requests", Figure::Rate, Way::WeftDirect, Way::NoMesh, Goal::AtLeast(0.97)),
    ("the same, of the whole machine", Figure::Machine, Way::WeftDirect, Way::NoMesh, Goal::Told),
    ("short connections, L4 vs. no mesh", Figure::Connection, Way::WeftDirect, Way::NoMesh, Goal::AtLeast(0.95)),
    ("HTTP/1.1 vs. Envoy, requests a CPU second of the proxy", Figure::Proxy, Way::Weft, Way::Envoy, Goal::AtLeast(4.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Envoy, Goal::AtLeast(4.0)),
    ("HTTP/1.1 vs. Envoy, added p50", Figure::Added, Way::Weft, Way::Envoy, Goal::AtMost(0.2)),
    ("the same, short-circuit", Figure::Added, Way::WeftFast, Way::Envoy, Goal::AtMost(0.2)),
    ("HTTP/1.1 vs. haproxy, requests a CPU second of the proxy", Figure::Proxy, Way::Weft, Way::Haproxy, Goal::AtLeast(1.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Haproxy, Goal::AtLeast(1.3)),
    ("HTTP/1.1 vs. Envoy twice behind iptables", Figure::Proxy, Way::Weft, Way::Sidecars, Goal::AtLeast(8.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Sidecars, Goal::AtLeast(8.0)),
    ("HTTP/1.1 vs. Envoy, requests", Figure::Rate, Way::Weft, Way::Envoy, Goal::Told),
    ("HTTP/1.1 vs. haproxy, requests", Figure::Rate, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. Envoy, of the whole machine", Figure::Machine, Way::Weft, Way::Envoy, Goal::Told),
    ("HTTP/1.1 vs. haproxy, of the whole machine", Figure::Machine, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. no mesh, of the whole machine", Figure::Machine, Way::Weft, Way::NoMesh, Goal::Told),
    ("HTTP/1.1 vs. haproxy, added p50", Figure::Added, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. Envoy, p99 at the fixed rate", Figure::P99, Way::Weft, Way::Envoy, Goal::Told),
];

/// What an arm did, a value a round.
#[derive(Default)]
struct Figures {
    busy: Vec<Measured>,
    alone: Vec<Measured>,
    short: Vec<Measured>,
    full: Vec<Measured>,
}

pub struct Http {
    seconds: f64,
    arms: Vec<Arm>,
    figures: Vec<Figures>,
    // Ended in this order, the labs last.
    _proxies: Vec<Running>,
    _servers: Vec<Server>,
    _cgroups: Vec<Cgroup>,
    _labs: Vec<Lab>,
}

pub fn rounds(quick: bool) -> Rounds {
    if quick {
        Rounds { least: 3, most: 5 }
    } else {
        Rounds { least: 7, most: 15 }
    }
}

// === impl Figure ===

impl Figure {
    fn unit(self) -> &'static str {
        match self {
            Self::Rate => "/s",
            Self::Proxy | Self::Machine | Self::Connection => "µs CPU",
            Self::Added | Self::P99 => "µs",
        }
    }
}

// === impl Http ===

impl Http {
    /// # Errors
    /// A mesh, a server or a peer does not start.
    pub fn new(quick: bool) -> Result<Self> {
        let lab = Lab::new("bench-http")?;
        let iptables = Lab::new("bench-sidecars")?;
        let (outside, behind) = (envoy::foreign_cgroup(&lab)?, envoy::foreign_cgroup(&iptables)?);
        peers::settle(&lab)?;
        peers::settle(&iptables)?;
        let mut servers = vec![
            peers::origin(&lab, outside.path(), ORIGIN)?,
            peers::origin(&iptables, behind.path(), ORIGIN)?,
        ];
        servers.extend(mesh(&lab)?);
        let envoy = peers::Envoy::one_hop(ENVOY, ORIGIN).start(&lab, outside.path())?;
        let haproxy = peers::haproxy(&lab, outside.path(), HAPROXY, ORIGIN)?;
        let [first, second] = peers::sidecars(&iptables, behind.path(), SIDECARS, ORIGIN)?;

        let generator = paths::load();
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let arm = |name: &'static str, target: SocketAddr, host: &str, proxies: Vec<i32>, client: Client| Arm {
            name,
            target,
            host: host.to_owned(),
            headers: Vec::new(),
            proxies,
            client,
        };
        let foreign = |lab: &Lab, cgroup: &Cgroup| {
            Client::start(&generator, |words| {
                Running::start(envoy::in_cgroup(lab, cgroup.path(), &words))
            })
        };
        let meshed = || Client::start(&generator, |words| lab.run("client").account("friend").start(words));
        let daemon = vec![lab.daemon_pid()?];
        let mut arms = Vec::new();
        for way in WAYS {
            arms.push(match way {
                Way::NoMesh => arm("no mesh", local(ORIGIN), "origin", Vec::new(), foreign(&lab, &outside)?),
                Way::Weft => arm("weft", address(&lab, PLAIN)?, PLAIN, daemon.clone(), meshed()?),
                Way::WeftFast => arm(
                    "weft, short-circuit",
                    address(&lab, FAST)?,
                    FAST,
                    daemon.clone(),
                    meshed()?,
                ),
                Way::WeftDirect => arm("weft, L4", address(&lab, DIRECT)?, DIRECT, Vec::new(), meshed()?),
                Way::Envoy => arm(
                    "Envoy",
                    local(ENVOY),
                    "origin",
                    vec![envoy.pid()],
                    foreign(&lab, &outside)?,
                ),
                Way::Haproxy => arm(
                    "haproxy",
                    local(HAPROXY),
                    "origin",
                    vec![haproxy.pid()],
                    foreign(&lab, &outside)?,
                ),
                Way::Sidecars => {
                    let proxies = vec![first.pid(), second.pid()];
                    let client = foreign(&iptables, &behind)?;
                    arm("Envoy twice, iptables", local(SIDECARS), "origin", proxies, client)
                }
            });
        }
        Ok(Self {
            seconds: if quick { 1.5 } else { 4.0 },
            figures: arms.iter().map(|_| Figures::default()).collect(),
            arms,
            _proxies: vec![envoy, haproxy, first, second],
            _servers: servers,
            _cgroups: vec![outside, behind],
            _labs: vec![lab, iptables],
        })
    }

    fn load(&self, rate: impl Into<Option<u32>>, connections: usize) -> Load {
        Load {
            rate: rate.into(),
            connections,
            seconds: self.seconds,
            short: false,
        }
    }

    /// A value a round.
    fn figure(&self, figure: Figure, way: Way) -> Vec<f64> {
        let figures = self.of(way);
        let (measured, value): (&[Measured], fn(&Measured) -> f64) = match figure {
            Figure::Rate => (&figures.full, |measured| measured.rate),
            Figure::Proxy => (&figures.busy, |measured| measured.proxy),
            Figure::P99 => (&figures.busy, |measured| measured.p99),
            Figure::Connection => (&figures.short, |measured| measured.machine),
            Figure::Machine => (&figures.busy, |measured| measured.machine),
            Figure::Added => return difference(&self.p50(way), &self.p50(Way::NoMesh)),
        };
        measured.iter().map(value).collect()
    }

    fn p50(&self, way: Way) -> Vec<f64> {
        self.of(way).alone.iter().map(|measured| measured.p50).collect()
    }

    fn of(&self, way: Way) -> &Figures {
        // One for each, in the order of the declaration.
        &self.figures[way as usize]
    }
}

impl Scenario for Http {
    fn round(&mut self, number: usize) -> Result<f64> {
        let (busy, alone) = (self.load(RATE, CONNECTIONS), self.load(LATENCY_RATE, 1));
        let short = Load {
            short: true,
            ..self.load(SHORT_RATE, CONNECTIONS)
        };
        let full = self.load(None, CONNECTIONS);
        let mut order: Vec<usize> = (0..WAYS.len()).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        let mut stolen = 0.0;
        for load in [&busy, &alone, &short, &full] {
            // A latency is of processors that are awake; a cost is of processors that rest when they may.
            let awake = (load.connections == 1).then(Awake::new).transpose()?;
            for index in &order {
                let (Some(arm), Some(figures)) = (self.arms.get_mut(*index), self.figures.get_mut(*index)) else {
                    continue;
                };
                let measured = arm.measure(load, 0.5)?;
                ensure!(
                    arm.proxies.is_empty() || measured.proxy > PROXIED,
                    "arm `{}`: its proxy ran {:.1} µs a request: requests went past it",
                    arm.name,
                    measured.proxy
                );
                stolen += measured.stolen;
                let into = match (load.rate, load.short, load.connections) {
                    (None, ..) => &mut figures.full,
                    (_, true, _) => &mut figures.short,
                    (_, _, 1) => &mut figures.alone,
                    _ => &mut figures.busy,
                };
                into.push(measured);
            }
            drop(awake);
        }
        Ok(stolen)
    }

    fn drop_last(&mut self) {
        for figures in &mut self.figures {
            figures.busy.pop();
            figures.alone.pop();
            figures.short.pop();
            figures.full.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(what, figure, way, peer, goal): &(&str, Figure, Way, Way, Goal)| {
            let (arm, peer) = (self.figure(*figure, *way), self.figure(*figure, *peer));
            let compared = match figure {
                // Requests a CPU second are the inverse of CPU a request: the peer's over ours.
                Figure::Proxy | Figure::Machine | Figure::Connection => ratio(&peer, &arm),
                Figure::Rate | Figure::Added | Figure::P99 => ratio(&arm, &peer),
            };
            Row {
                what: (*what).to_owned(),
                unit: figure.unit(),
                arm,
                peer,
                compared,
                goal: *goal,
            }
        };
        ROWS.iter().map(row).collect()
    }
}

/// The mesh of the lab: denied by default; account `friend` may GET from two services through the proxy, and reach a third.
fn mesh(lab: &Lab) -> Result<Vec<Server>> {
    lab.resource("mesh.yaml", resources::DENY)?;
    let through = |name: &str, acceleration: &str| {
        let policy = resources::service_policy(name, &[&format!("acceleration: {acceleration}")]);
        let allow = resources::allow(&format!("friend-{name}"), "friend", name, ("HTTPRouteGroup", "reads"));
        format!("{policy}{allow}")
    };
    let reads = resources::route("reads", "/", &["GET"]);
    let port = resources::tcp_route("port", &[8082]);
    let direct = resources::allow("friend-direct", "friend", DIRECT, ("TCPRoute", "port"));
    let all = [reads, through(PLAIN, "off"), through(FAST, "proxy"), port, direct];
    lab.resource("access.yaml", &all.concat())?;
    // Whatever this kernel's self-test says: the rows say which arm is short-circuited.
    lab.daemon_with(&["--short-circuit", "force"])?;
    let body = "x".repeat(peers::BODY);
    let nginx = |name: &str, port: u16| lab.nginx(Nginx::service(name).port(80, port).says(&body));
    let servers = vec![nginx(PLAIN, 8080)?, nginx(FAST, 8081)?, nginx(DIRECT, 8082)?];
    for name in [PLAIN, FAST, DIRECT] {
        poll::until("the mesh to be in force", || {
            let ask = |account: &str| {
                let url = format!("http://{}/", address(lab, name)?);
                let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", &url];
                Ok::<_, anyhow::Error>(lab.run("client").account(account).output(words)?.stdout)
            };
            let (friend, stranger) = (ask("friend")?, ask("stranger")?);
            ensure!(friend == "200", "{name}: a friend got {friend:?}");
            ensure!(stranger != "200", "{name}: a stranger got {stranger:?}");
            Ok(())
        })?;
    }
    Ok(servers)
}

/// The virtual IP and port of a service.
pub fn address(lab: &Lab, service: &str) -> Result<SocketAddr> {
    let status = lab.status()?;
    let all = status["services"].as_array().context("services")?;
    let found = all
        .iter()
        .find(|found| found["name"] == service)
        .context("the service")?;
    let ip = found["vip4"].as_str().context("its virtual IP")?;
    Ok(SocketAddr::new(ip.parse().context("its virtual IP")?, 80))
}
