//! What a run of the kernel programs costs that are on the way of every connection or packet, by the kernel's own clock
//! (BPF_ENABLE_STATS, on meanwhile: nothing else is measured here).
//!
//! `weft_connect4` runs at connects of a client on a host, `weft_sk_msg` at sends between a client there and the proxy, and the
//! programs at the device (tc) at packets of a client on another host. Programs are found by their names: no other daemon is to
//! be at work on the machine.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{
    Host, Hosts, Nginx, Running, Server, poll, resources,
    runs::{Counting, Runs},
};

use super::{
    arm::{Arm, Client, Load},
    http::{CONNECTIONS, RATE, address},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario},
};
use crate::paths;

/// Each, and the nanoseconds a run that the project aims for.
const PROGRAMS: [(&str, f64); 4] = [
    ("weft_connect4", 1000.0),
    ("weft_tc_in", 150.0),
    ("weft_tc_out", 150.0),
    ("weft_sk_msg", 200.0),
];
/// Less is no price.
const LEAST_RUNS: u64 = 500;
/// Connects of a round.
const CONNECTS: u64 = 5000;
/// Services on the daemon's host: reached past the proxy from elsewhere, and through it, short-circuited, from there.
const PLAIN: (&str, u16) = ("plain", 8080);
const FAST: (&str, u16) = ("fast", 8081);

struct Programs {
    seconds: f64,
    remote: Arm,
    local: Arm,
    connects: Running,
    /// Lines that it said.
    told: usize,
    /// A value a round, for each of [`PROGRAMS`].
    ns: [Vec<f64>; PROGRAMS.len()],
    // Ended before the hosts are.
    _servers: [Server; 2],
    _hosts: Hosts,
}

/// # Errors
/// A mesh or a server does not start; an answer was wrong; a program did not run.
pub fn run(quick: bool) -> Result<Vec<Row>> {
    rounds::run(&mut Programs::new(quick)?, Rounds::new(quick), |line| {
        println!("{line}")
    })
}

// === impl Programs ===

impl Programs {
    fn new(quick: bool) -> Result<Self> {
        let hosts = Hosts::new("bench-programs", 2)?;
        let [a, b] = hosts.all();
        b.resource("mesh.yaml", &mesh(a))?;
        b.daemon_with(&[
            "--inbound",
            "netns",
            "--device",
            "eth0",
            "--short-circuit",
            "force",
            "--access-log",
            "off",
        ])?;
        let body = "x".repeat(peers::BODY);
        let nginx = |(name, port): (&str, u16)| b.nginx(Nginx::service(name).port(80, port).says(&body));
        let servers = [nginx(PLAIN)?, nginx(FAST)?];
        let remote = SocketAddr::from((b.v4(), PLAIN.1));
        let local = address(b, FAST.0)?;
        in_force(a, b, remote, local)?;
        let generator = paths::load();
        let arm = |name, target, host: &str, server: &Server, client| Arm {
            name,
            target,
            host: host.to_owned(),
            headers: Vec::new(),
            words: &[],
            proxies: Vec::new(),
            origin: server.pid(),
            client,
        };
        let outside = Client::start(&generator, |words| Running::start(a.command(words)))?;
        let meshed = Client::start(&generator, |words| b.run("client").account("friend").start(words))?;
        let traffic = b.traffic()?;
        let count = CONNECTS.to_string();
        let target = address(b, PLAIN.0)?.to_string();
        let mut connects =
            b.run("client")
                .account("friend")
                .start([traffic.as_str(), "connect-many", &target, &count])?;
        connects.line(1)?;
        Ok(Self {
            seconds: if quick { 0.25 } else { 2.0 },
            remote: arm("from another host", remote, PLAIN.0, &servers[0], outside),
            local: arm("short-circuit", local, FAST.0, &servers[1], meshed),
            connects,
            told: 1,
            ns: PROGRAMS.map(|_| Vec::new()),
            _servers: servers,
            _hosts: hosts,
        })
    }
}

impl Scenario for Programs {
    /// Time that the host takes from others is not in these figures but by chance: no round is dropped.
    fn round(&mut self, _number: usize) -> Result<f64> {
        let load = Load {
            rate: Some(RATE),
            connections: CONNECTIONS,
            seconds: self.seconds,
            short: false,
        };
        let counting = Counting::new()?;
        let before = ran(&counting)?;
        self.remote.measure(&load, 0.0)?;
        self.local.measure(&load, 0.0)?;
        self.connects.say("")?;
        self.told += 1;
        let told: Value = serde_json::from_str(&self.connects.line(self.told)?).context("what the client told")?;
        ensure!(told["failed"] == 0, "{told}");
        let after = ran(&counting)?;
        for (index, (name, _)) in PROGRAMS.iter().enumerate() {
            let ran = after[index].since(before[index]);
            ensure!(ran.count >= LEAST_RUNS, "{name} ran {} times", ran.count);
            self.ns[index].push(ran.time.as_nanos() as f64 / ran.count as f64);
        }
        Ok(0.0)
    }

    fn drop_last(&mut self) {
        for ns in &mut self.ns {
            ns.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let programs = PROGRAMS.iter().zip(&self.ns);
        let row = |((name, goal), ns): (&(&str, f64), &Vec<f64>)| {
            Row::alone(&format!("{name}, a run"), "ns", ns.clone(), Goal::AtMost(*goal))
        };
        programs.map(row).collect()
    }
}

/// Of each of [`PROGRAMS`], so far.
fn ran(counting: &Counting) -> Result<Vec<Runs>> {
    PROGRAMS.iter().map(|(name, _)| counting.named(name)).collect()
}

/// Account `peer` on host `a` may connect to one service of the other host; account `friend` there may as well, and GET from
/// the other.
fn mesh(a: &Host) -> String {
    [
        resources::DENY.to_owned(),
        resources::workload("peer", "peer", "peer", &a.addresses()),
        resources::tcp_route("port", &[PLAIN.1]),
        resources::allow("peer-plain", "peer", PLAIN.0, ("TCPRoute", "port")),
        resources::allow("friend-plain", "friend", PLAIN.0, ("TCPRoute", "port")),
        resources::route("reads", "/", &["GET"]),
        resources::allow("friend-fast", "friend", FAST.0, ("HTTPRouteGroup", "reads")),
        resources::service_policy(FAST.0, &["acceleration: proxy"]),
    ]
    .concat()
}

/// Waits until those are answered who may be.
fn in_force(a: &Host, b: &Host, remote: SocketAddr, local: SocketAddr) -> Result<()> {
    let curl = |target: SocketAddr| {
        let url = format!("http://{target}/");
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "1", &url].map(str::to_owned)
    };
    poll::until("the mesh to be in force", || {
        let peer = a.outside(curl(remote))?.stdout;
        let friend = b.run("client").account("friend").output(curl(local))?.stdout;
        let stranger = b.run("client").account("stranger").output(curl(local))?.stdout;
        ensure!(
            peer == "200" && friend == "200" && stranger != "200",
            "from another host {peer:?}, a friend {friend:?}, a stranger {stranger:?}"
        );
        Ok(())
    })
}
