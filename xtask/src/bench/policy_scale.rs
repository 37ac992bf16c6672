//! What a connect costs in a small mesh and in a large one: the tables are hashes, so it should be the same.
//!
//! Two labs at once, each with a daemon, a server and a client that connects to it by its virtual IP; one has ten policy
//! entries and the server's service, the other 100,000 entries and 10,000 services beside it. They take turns. A connect
//! is reset at once (SO_LINGER 0), so that no port runs out. Clients are started once and connect when they are told to:
//! what is counted from there until they are done are their own connects, by the median of the clock around connect() and by the
//! kernel's nanoseconds a run of `weft_connect4` (BPF_ENABLE_STATS, on meanwhile).

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, poll, resources, runs::Counting};

use super::{
    cpu::Watch,
    rounds::{self, Goal, Rounds, Row, Scenario},
};

/// Sources times ports of the one TrafficTarget that makes the entries, and services beside the server's.
const SMALL: (usize, u16, usize) = (2, 5, 0);
const LARGE: (usize, u16, usize) = (100, 1000, 10_000);
const SERVICES_A_FILE: usize = 1000;
const SERVER_PORT: u16 = 7007;
/// What the project aims for.
const GOAL: f64 = 1.2;
/// Connects of a client in a round.
const CONNECTS: u64 = 20_000;
const QUICK_CONNECTS: u64 = 2_000;
/// Name of `weft_connect4`'s pin.
const PROGRAM: &str = "connect4";
/// Runs of the program that were none of the client's may be this part of them: less than shows.
const OTHERS: u64 = 100;

struct PolicyScale {
    connects: u64,
    large: Mesh,
    small: Mesh,
}

/// A mesh, and what a connect in it took, a value a round.
struct Mesh {
    client: Running,
    /// Lines that it said.
    told: usize,
    _server: Running,
    lab: Lab,
    /// Nanoseconds of the middle one.
    wall: Vec<f64>,
    program: Vec<f64>,
}

pub fn run(quick: bool) -> Result<Vec<Row>> {
    let rounds = if quick {
        Rounds::new(quick)
    } else {
        Rounds {
            least: 15,
            most: 21,
            drops: 3,
        }
    };
    let connects = if quick { QUICK_CONNECTS } else { CONNECTS };
    let mut both = PolicyScale {
        connects,
        small: Mesh::start("10", SMALL, connects)?,
        large: Mesh::start("100000", LARGE, connects)?,
    };
    println!("{connects} connects an arm and round; the peer is the small mesh");
    rounds::run(&mut both, rounds, |line| println!("{line}"))
}

// === impl PolicyScale ===

impl Scenario for PolicyScale {
    fn round(&mut self, number: usize) -> Result<f64> {
        let watch = Watch::begin()?;
        let mut order = [&mut self.large, &mut self.small];
        if number % 2 == 1 {
            order.reverse();
        }
        for mesh in order {
            mesh.measure(self.connects)?;
        }
        Ok(watch.spent()?.disturbed())
    }

    fn drop_last(&mut self) {
        for mesh in [&mut self.large, &mut self.small] {
            mesh.wall.pop();
            mesh.program.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |what: &str, of: fn(&Mesh) -> &[f64]| {
            let (large, small) = (of(&self.large).to_vec(), of(&self.small).to_vec());
            Row::ratio(what, "ns", large, small, Goal::AtMost(GOAL))
        };
        vec![
            row("connect(), wall, p50", |mesh| &mesh.wall),
            row("weft_connect4, a run", |mesh| &mesh.program),
        ]
    }
}

// === impl Mesh ===

impl Mesh {
    fn start(name: &str, (sources, ports, services): (usize, u16, usize), connects: u64) -> Result<Self> {
        let began = Instant::now();
        let lab = Lab::new(&format!("policy-{name}"))?;
        lab.daemon()?;
        lab.resource("access.yaml", &access(sources, ports))?;
        let names: Vec<String> = (0..services)
            .map(|n| resources::service(&format!("filler-{n}"), 80, "tcp"))
            .collect();
        for (number, file) in names.chunks(SERVICES_A_FILE).enumerate() {
            lab.resource(&format!("services-{number}.yaml"), &file.concat())?;
        }
        let traffic = lab.traffic()?;
        let port = format!("7:{SERVER_PORT}");
        let mut server = lab
            .run("echo")
            .port(&port)
            .start([traffic.as_str(), "serve-close", "127.0.0.1:7007"])?;
        server.line(1)?;
        let target = poll::until("the mesh to be in force", || {
            let status = lab.status()?;
            let all = status["services"].as_array().context("services")?;
            ensure!(all.len() > services, "{} services", all.len());
            let echo = all.iter().find(|service| service["name"] == "echo").context("echo")?;
            let target = format!("{}:7", echo["vip4"].as_str().context("its virtual IP")?);
            let told = lab
                .run("friend-0")
                .output([traffic.clone(), "connect".into(), target.clone()])?;
            ensure!(told.json()?["ok"] == true, "{}", told.stdout);
            let told = lab
                .run("stranger")
                .output([traffic.clone(), "connect".into(), target.clone()])?;
            ensure!(told.json()?["ok"] == false, "strangers are not denied yet");
            Ok(target)
        })?;
        println!(
            "mesh with {} entries, {services} services: in force after {:.1} s",
            sources * usize::from(ports),
            began.elapsed().as_secs_f64()
        );
        let mut client =
            lab.run("friend-0")
                .start([traffic.as_str(), "connect-many", &target, &connects.to_string()])?;
        client.line(1)?;
        Ok(Self {
            client,
            told: 1,
            _server: server,
            lab,
            wall: Vec::new(),
            program: Vec::new(),
        })
    }

    /// Has the client connect, which is all that it does in between.
    fn measure(&mut self, connects: u64) -> Result<()> {
        let (counting, bpffs) = (Counting::new()?, self.lab.bpffs());
        let before = counting.runs(&bpffs, PROGRAM)?;
        self.client.say("")?;
        self.told += 1;
        let told: Value = serde_json::from_str(&self.client.line(self.told)?).context("what the client told")?;
        let ran = counting.runs(&bpffs, PROGRAM)?.since(before);
        ensure!(told["failed"] == 0, "{told}");
        ensure!(
            (connects..=connects + connects / OTHERS).contains(&ran.count),
            "weft_connect4 ran {} times at {connects} connects",
            ran.count
        );
        self.wall.push(told["ns"].as_f64().context("nanoseconds")?);
        self.program.push(ran.time.as_nanos() as f64 / ran.count as f64);
        Ok(())
    }
}

fn access(sources: usize, ports: u16) -> String {
    // The server's own is among them in both meshes.
    let ports: Vec<u16> = (0..ports).map(|n| SERVER_PORT + n).collect();
    let sources: String = (0..sources)
        .map(|n| format!("  - {{kind: ServiceAccount, name: friend-{n}, namespace: default}}\n"))
        .collect();
    format!(
        "{}{}---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: many, namespace: default}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: echo, namespace: default}}\n  sources:\n{sources}\
         \x20 rules:\n  - {{kind: TCPRoute, name: many}}\n",
        resources::DENY,
        resources::tcp_route("many", &ports),
    )
}
