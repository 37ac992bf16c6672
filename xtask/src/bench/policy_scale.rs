//! What a connect costs in a small mesh and in a large one: the tables are hashes, so it should be the same.
//!
//! Two labs at once, each with a daemon, a server and a client that connects to it by its virtual IP; one has ten policy
//! entries and the server's service, the other 100,000 entries and 10,000 services beside it. Rounds alternate. A connect
//! is reset at once (SO_LINGER 0), so that no port runs out. Beside the wall time of connect(), the kernel's own count of
//! nanoseconds a run of `weft_connect4` (BPF_ENABLE_STATS, on during the rounds of that row only).

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, poll, process::BOUND, resources};

use super::rounds::{Goal, Row};

/// Sources times ports of the one TrafficTarget that makes the entries.
const SMALL: (usize, u16, usize) = (2, 5, 0);
const LARGE: (usize, u16, usize) = (100, 1000, 10_000);
const SERVICES_A_FILE: usize = 1000;
const SERVER_PORT: u16 = 7007;
/// What the project aims for.
const GOAL: f64 = 1.2;

struct Mesh {
    lab: Lab,
    _server: Running,
    target: String,
}

pub fn run(quick: bool) -> Result<Vec<Row>> {
    let (rounds, connects) = if quick { (3, 2_000) } else { (15, 20_000) };
    let small = Mesh::start("10", SMALL)?;
    let large = Mesh::start("100000", LARGE)?;
    let (mut wall, mut program) = (<[Vec<f64>; 2]>::default(), <[Vec<f64>; 2]>::default());
    for _ in 0..rounds {
        wall[0].push(large.connect(connects)?);
        wall[1].push(small.connect(connects)?);
    }
    for _ in 0..rounds {
        program[0].push(large.program(connects)?);
        program[1].push(small.program(connects)?);
    }
    println!("{rounds} rounds of {connects} connects an arm; the peer is the small mesh");
    let [large, small] = program;
    let program = Row::ratio("weft_connect4, a run", "ns", large, small, Goal::AtMost(GOAL));
    let [large, small] = wall;
    let wall = Row::ratio("connect(), wall", "ns", large, small, Goal::Told);
    Ok(vec![program, wall])
}

// === impl Mesh ===

impl Mesh {
    fn start(name: &str, (sources, ports, services): (usize, u16, usize)) -> Result<Self> {
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
        Ok(Self {
            lab,
            _server: server,
            target,
        })
    }

    fn client(&self, connects: u32) -> Result<Running> {
        let words = [
            self.lab.traffic()?,
            "connect-many".into(),
            self.target.clone(),
            connects.to_string(),
        ];
        self.lab.run("friend-0").start(words)
    }

    /// Nanoseconds a connect().
    fn connect(&self, connects: u32) -> Result<f64> {
        let told = self.client(connects)?.finish(BOUND)?.ok()?.json()?;
        ensure!(told["failed"] == 0, "{told}");
        told["ns"].as_f64().context("nanoseconds")
    }

    /// Nanoseconds a run of the program while the client connects: the doctor counts all runs during its canary's.
    fn program(&self, connects: u32) -> Result<f64> {
        let client = self.client(connects)?;
        let doctor: Value = self.lab.weft(["doctor", "-o", "json"])?.ok()?.json()?;
        client.finish(BOUND)?.ok()?;
        let hooks = doctor["hooks"].as_array().context("hooks")?;
        let hook = hooks
            .iter()
            .find(|hook| hook["name"] == "weft_connect4")
            .context("weft_connect4")?;
        hook["ns_per_run"].as_f64().context("it ran")
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
