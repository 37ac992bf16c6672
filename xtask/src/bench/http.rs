//! HTTP/1.1, one request after the other, on one node: through weft's proxy with telemetry and an access rule, through the peers
//! without any, and past all of them.
//!
//! Each arm gets a fixed rate on 32 connections, which tells what a request costs; and a low fixed rate on one connection,
//! with processors that never halt, which tells what it adds to the latency. New connections with a request each tell what a
//! connection costs; as many requests as are answered, how far the machine goes, and what a request costs where nobody
//! has to be woken for it.

mod rows;

use std::{net::SocketAddr, path::Path, thread};

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Running, Server, cgroup::Cgroup, envoy, poll, process, resources};

use self::rows::{Figure, ROWS, SERIES, WAYS, Way};
use super::{
    arm::{Arm, Client, Load, Measured, Seconds, undisturbed},
    cpu::Awake,
    flame,
    found::{ArmFound, Found, Program, Series},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, difference, ratio, ratio_of_differences},
};
use crate::{paths, wrk::Answered};

const ORIGIN: u16 = 9001;
const ENVOY: u16 = 9010;
const HAPROXY: u16 = 9020;
const SIDECARS: u16 = 9030;
const RELAY: u16 = 9040;

/// A rate that every arm can serve on two processors. None of these rates has a large divisor in common with the kernel's ticks (100
/// to 1,000 a second): requests would come at the same few moments between two of them.
pub const RATE: u32 = 1990;
pub const CONNECTIONS: usize = 32;
pub const LATENCY_RATE: u32 = 247;
const SHORT_RATE: u32 = 990;

/// Services of the mesh: through the proxy over TCP, through it short-circuited, past it over TCP, and past it short-circuited.
const PLAIN: &str = "plain";
const FAST: &str = "fast";
const DIRECT: &str = "direct";
const DIRECT_FAST: &str = "direct-fast";
pub const SERVICES: [&str; 4] = [PLAIN, FAST, DIRECT, DIRECT_FAST];

/// What an arm did, a value a round.
#[derive(Default)]
struct Figures {
    busy: Vec<Measured>,
    alone: Vec<Measured>,
    short: Vec<Measured>,
    full: Vec<Measured>,
}

pub struct Http {
    seconds: Seconds,
    arms: Vec<Arm>,
    figures: Vec<Figures>,
    /// Requests a second that wrk counts without a mesh, a value a round.
    wrk: Vec<f64>,
    // Ended in this order, the labs last.
    _proxies: Vec<Running>,
    _servers: Vec<Server>,
    cgroups: Vec<Cgroup>,
    labs: Vec<Lab>,
}

/// Runs it, and looks where the time went.
///
/// # Errors
/// A mesh, a server or a peer does not start; an answer was wrong.
pub fn run(quick: bool, flames: Option<&Path>) -> Result<Found> {
    let mut http = Http::new(quick)?;
    let rows = rounds::run(&mut http, Rounds::new(quick), |line| println!("{line}"))?;
    let programs = http.programs()?;
    if let Some(folder) = flames {
        http.flames(folder)?;
    }
    Ok(Found {
        rows,
        arms: http.arms_found(),
        programs,
        ..Found::default()
    })
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
        let relay = peers::relay(&lab, outside.path(), RELAY, ORIGIN)?;
        let [first, second] = peers::sidecars(&iptables, behind.path(), SIDECARS, ORIGIN)?;

        let generator = paths::load();
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let origins: Vec<i32> = servers.iter().map(Server::pid).collect();
        let arm = |name: &'static str, target: SocketAddr, proxies: Vec<i32>, client: Client| Arm {
            name,
            target,
            host: "origin".to_owned(),
            headers: Vec::new(),
            words: &[],
            proxies,
            origin: origins[usize::from(target.port() == SIDECARS)],
            client,
        };
        let foreign = |lab: &Lab, cgroup: &Cgroup| {
            Client::start(&generator, |words| {
                Running::start(envoy::in_cgroup(lab, cgroup.path(), &words))
            })
        };
        // The services' servers stand behind the two origins, in the order of the mesh.
        let meshed = |name, index: usize, proxies| meshed(&lab, name, SERVICES[index], proxies, origins[2 + index]);
        let daemon = vec![lab.daemon_pid()?];
        let mut arms = Vec::new();
        for way in WAYS {
            arms.push(match way {
                Way::NoMesh => arm("no mesh", local(ORIGIN), Vec::new(), foreign(&lab, &outside)?),
                Way::Weft => meshed("weft", 0, daemon.clone())?,
                Way::WeftFast => meshed("weft, short-circuit", 1, daemon.clone())?,
                Way::WeftDirect => meshed("weft, L4", 2, Vec::new())?,
                Way::WeftDirectFast => meshed("weft, L4, short-circuit", 3, Vec::new())?,
                Way::Envoy => arm("Envoy", local(ENVOY), vec![envoy.pid()], foreign(&lab, &outside)?),
                Way::Haproxy => arm("haproxy", local(HAPROXY), vec![haproxy.pid()], foreign(&lab, &outside)?),
                Way::Relay => arm(
                    "bytes copied",
                    local(RELAY),
                    vec![relay.pid()],
                    foreign(&lab, &outside)?,
                ),
                Way::Sidecars => {
                    let proxies = vec![first.pid(), second.pid()];
                    let client = foreign(&iptables, &behind)?;
                    arm("Envoy twice, iptables", local(SIDECARS), proxies, client)
                }
            });
        }
        Ok(Self {
            seconds: Seconds::new(quick),
            figures: arms.iter().map(|_| Figures::default()).collect(),
            wrk: Vec::new(),
            arms,
            _proxies: vec![envoy, haproxy, relay, first, second],
            _servers: servers,
            cgroups: vec![outside, behind],
            labs: vec![lab, iptables],
        })
    }

    fn load(&self, rate: impl Into<Option<u32>>, connections: usize) -> Load {
        Load {
            rate: rate.into(),
            connections,
            seconds: self.seconds.counted,
            short: false,
        }
    }

    /// A value a round.
    fn figure(&self, figure: Figure, way: Way) -> Vec<f64> {
        let figures = self.of(way);
        let (measured, value): (&[Measured], fn(&Measured) -> f64) = match figure {
            Figure::Rate => (&figures.full, |measured| measured.rate),
            Figure::Proxy => (&figures.busy, |measured| measured.proxy),
            Figure::ProxyFull => (&figures.full, |measured| measured.proxy),
            Figure::User => (&figures.busy, |measured| measured.user),
            Figure::Origin => (&figures.busy, |measured| measured.origin),
            Figure::P99 => (&figures.busy, |measured| measured.p99),
            Figure::Alone => (&figures.alone, |measured| measured.p50),
            Figure::Connection => (&figures.short, |measured| measured.machine),
            Figure::Machine => (&figures.busy, |measured| measured.machine),
            Figure::Added => return difference(&self.p50(way), &self.p50(Way::NoMesh)),
        };
        measured.iter().map(value).collect()
    }

    fn arms_found(&self) -> Vec<ArmFound> {
        let series = |way: Way| {
            SERIES.iter().map(move |(what, figure)| Series {
                what,
                unit: figure.unit(),
                values: self.figure(*figure, way),
            })
        };
        let arms = self.arms.iter().zip(WAYS);
        arms.map(|(arm, way)| ArmFound {
            name: arm.name,
            series: series(way).collect(),
        })
        .collect()
    }

    /// What a run of each kernel program costs while requests go through the proxy short-circuited: the doctor lets the kernel
    /// count during its canary, and the canary's own runs are few.
    fn programs(&mut self) -> Result<Vec<Program>> {
        let load = self.load(RATE, CONNECTIONS);
        let (Some(lab), Some(arm)) = (self.labs.first(), self.arms.get_mut(Way::WeftFast as usize)) else {
            return Ok(Vec::new());
        };
        let doctor = thread::scope(|scope| {
            let loading = scope.spawn(|| arm.measure(&load, 0.0));
            let doctor = lab.weft(["doctor", "-o", "json"])?.ok()?.json()?;
            loading
                .join()
                .map_err(|_| anyhow::anyhow!("the load under the doctor failed"))??;
            Ok::<_, anyhow::Error>(doctor)
        })?;
        let hooks = doctor["hooks"].as_array().context("the doctor's hooks")?;
        let of = |hook: &serde_json::Value| {
            Some(Program {
                name: hook["name"].as_str()?.to_owned(),
                ns: hook["ns_per_run"].as_f64()?,
            })
        };
        Ok(hooks.iter().filter_map(of).collect())
    }

    /// A flame graph of weft's proxy, over TCP and short-circuited, under as many requests as it answers.
    fn flames(&mut self, folder: &Path) -> Result<()> {
        let (load, warm_up) = (self.load(None, CONNECTIONS), self.seconds.warm_up);
        for (way, file) in [
            (Way::Weft, "http-flame.svg"),
            (Way::WeftFast, "http-flame-short-circuit.svg"),
        ] {
            let (Some(lab), Some(arm)) = (self.labs.first(), self.arms.get_mut(way as usize)) else {
                continue;
            };
            let pid = *arm.proxies.first().context("an arm through the proxy")?;
            let title = format!("HTTP/1.1, {}: processor time of the daemon", arm.name);
            let (seconds, scratch) = (load.seconds, lab.work());
            thread::scope(|scope| {
                let loading = scope.spawn(|| arm.measure(&load, warm_up));
                let drawn = flame::draw(&title, pid, seconds, &scratch, &folder.join(file));
                loading
                    .join()
                    .map_err(|_| anyhow::anyhow!("the load under perf failed"))??;
                drawn
            })?;
        }
        Ok(())
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
                let mut carried = 0;
                let lab = self.labs.first().context("the lab of the mesh")?;
                let outside = self.cgroups.first().context("the cgroup outside the mesh")?;
                // Before weft-load and after it, in turns.
                let beside_wrk = load.rate.is_none() && *index == Way::NoMesh as usize;
                if beside_wrk && !number.is_multiple_of(2) {
                    self.wrk.push(by_wrk(lab, outside, self.seconds.counted)?);
                }
                let measured = undisturbed(|| {
                    let before = lab.loopback_bytes()?;
                    let measured = arm.measure(load, self.seconds.warm_up)?;
                    carried = lab.loopback_bytes()?.saturating_sub(before);
                    Ok(measured)
                })?;
                // Handshakes and first requests go over the device in any case.
                ensure!(
                    arm.host != DIRECT_FAST || load.short || is_past_tcp(carried, measured.requests),
                    "arm `{}`: the loopback device carried {carried} bytes for {} requests: they were not short-circuited",
                    arm.name,
                    measured.requests
                );
                arm.went_through(&measured)?;
                stolen += measured.spent.disturbed();
                let into = match (load.rate, load.short, load.connections) {
                    (None, ..) => &mut figures.full,
                    (_, true, _) => &mut figures.short,
                    (_, _, 1) => &mut figures.alone,
                    _ => &mut figures.busy,
                };
                into.push(measured);
                if beside_wrk && number.is_multiple_of(2) {
                    self.wrk.push(by_wrk(lab, outside, self.seconds.counted)?);
                }
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
        self.wrk.pop();
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(what, figure, way, peer, goal): &(&str, Figure, Way, Way, Goal)| {
            let (arm, peer) = (self.figure(*figure, *way), self.figure(*figure, *peer));
            let compared = match figure {
                // Requests a CPU second are the inverse of CPU a request: the peer's over ours.
                Figure::Proxy | Figure::ProxyFull | Figure::Machine | Figure::Connection => ratio(&peer, &arm),
                Figure::Added => ratio_of_differences(&arm, &peer),
                _ => ratio(&arm, &peer),
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
        let (load, wrk) = (self.figure(Figure::Rate, Way::NoMesh), self.wrk.clone());
        let generator = Row::ratio("weft-load vs. wrk, no mesh, requests", "/s", load, wrk, Goal::Told);
        ROWS.iter().map(row).chain([generator]).collect()
    }
}

/// The arm that asks a service of `lab`'s [`mesh`] as account `friend`: `proxies` are on the way, and `origin` answers.
///
/// # Errors
/// There is no such service, or the client does not start.
pub fn meshed(lab: &Lab, name: &'static str, service: &str, proxies: Vec<i32>, origin: i32) -> Result<Arm> {
    Ok(Arm {
        name,
        target: address(lab, service)?,
        host: service.to_owned(),
        headers: Vec::new(),
        words: &[],
        proxies,
        origin,
        client: Client::start(&paths::load(), |words| lab.run("client").account("friend").start(words))?,
    })
}

/// The mesh of the lab, and the servers of [`SERVICES`] in their order: denied by default; account `friend` may GET from two services
/// through the proxy, and reach two past it.
///
/// # Errors
/// A daemon or a server does not start, or the mesh is not in force.
pub fn mesh(lab: &Lab) -> Result<Vec<Server>> {
    lab.resource("mesh.yaml", resources::DENY)?;
    let through = |name: &str, acceleration: &str| {
        let policy = resources::service_policy(name, &[&format!("acceleration: {acceleration}")]);
        let allow = resources::allow(&format!("friend-{name}"), "friend", name, ("HTTPRouteGroup", "reads"));
        format!("{policy}{allow}")
    };
    let reads = resources::route("reads", "/", &["GET"]);
    let ports = resources::tcp_route("ports", &[8082, 8083]);
    let past = |name: &str| resources::allow(&format!("friend-{name}"), "friend", name, ("TCPRoute", "ports"));
    let all = [
        reads,
        through(PLAIN, "off"),
        through(FAST, "full"),
        ports,
        past(DIRECT),
        past(DIRECT_FAST),
        resources::service_policy(DIRECT_FAST, &["acceleration: full"]),
    ];
    lab.resource("access.yaml", &all.concat())?;
    // Whatever this kernel's self-test says: the rows say which arm is short-circuited.
    // The peers keep no access log either.
    lab.daemon_with(&["--short-circuit", "force", "--access-log", "off"])?;
    let body = "x".repeat(peers::BODY);
    let nginx = |name: &str, port: u16| lab.nginx(Nginx::service(name).port(80, port).says(&body));
    let servers = SERVICES.into_iter().zip(8080..).map(|(name, port)| nginx(name, port));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    for name in SERVICES {
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

/// Requests a second as wrk counts them without a mesh, on as many connections and as many threads as the load generator has.
fn by_wrk(lab: &Lab, outside: &Cgroup, seconds: f64) -> Result<f64> {
    let (connections, duration) = (format!("-c{CONNECTIONS}"), format!("-d{:.0}", seconds.ceil()));
    let url = format!("http://127.0.0.1:{ORIGIN}/");
    let words = ["wrk", "-t1", &connections, &duration, "-H", "Host: origin", &url];
    let command = envoy::in_cgroup(lab, outside.path(), &words);
    let said = process::output(command, process::BOUND)?.ok()?.stdout;
    Ok(Answered::read(&said)?.rate)
}

/// Whether the bodies of so many responses cannot have gone over the loopback device.
fn is_past_tcp(carried: u64, requests: u64) -> bool {
    carried < requests * peers::BODY as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_on_the_device_are_not_short_circuited() {
        assert!(is_past_tcp(0, 1000) && is_past_tcp(200_000, 1000));
        assert!(!is_past_tcp(1000 * (1024 + 66), 1000));
    }
}
