//! As many bytes over one TCP connection as go, on one node: past weft's proxy with an access rule and telemetry, over TCP and
//! short-circuited, and without any mesh.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use vm_test::{Lab, Running, cgroup::Cgroup, envoy, poll, resources};

use super::{
    cpu::{Spent, Watch},
    http::address,
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, ratio},
};
use crate::paths;

const NO_MESH: u16 = 9001;
/// Services, and where their receivers listen.
const PLAIN: (&str, u16) = ("bulk", 8080);
const FAST: (&str, u16) = ("bulk-fast", 8081);
const MIB: f64 = 1024.0 * 1024.0;

/// In the order of [`Bulk::arms`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    NoMesh,
    Weft,
    WeftFast,
}

struct Arm {
    name: &'static str,
    target: SocketAddr,
    sender: Running,
    /// Lines that it said.
    told: usize,
    /// A value a round: MiB a second, and processor milliseconds of the whole machine a GiB.
    rate: Vec<f64>,
    machine: Vec<f64>,
}

#[derive(Deserialize)]
struct Sent {
    bytes: u64,
    seconds: f64,
}

struct Bulk {
    seconds: f64,
    arms: [Arm; 3],
    // Ended in this order, the lab last.
    _receivers: [Running; 3],
    _outside: Cgroup,
    lab: Lab,
}

/// # Errors
/// A mesh or a receiver does not start; a byte was lost.
pub fn run(quick: bool) -> Result<Vec<Row>> {
    rounds::run(&mut Bulk::new(quick)?, Rounds::new(quick), |line| println!("{line}"))
}

// === impl Bulk ===

impl Bulk {
    fn new(quick: bool) -> Result<Self> {
        let lab = Lab::new("bench-bulk")?;
        let outside = envoy::foreign_cgroup(&lab)?;
        peers::settle(&lab)?;
        lab.resource("mesh.yaml", &mesh())?;
        // Whatever this kernel's self-test says: the rows say which arm is short-circuited.
        lab.daemon_with(&["--short-circuit", "force", "--access-log", "off"])?;
        let bulk = paths::bulk().display().to_string();
        let receiver = |port: u16, start: &dyn Fn(&[&str]) -> Result<Running>| {
            let listen = format!("127.0.0.1:{port}");
            let started = start(&[bulk.as_str(), "receive", listen.as_str()])?;
            peers::listening(started, port, poll::PATIENCE)
        };
        let foreign = |words: &[&str]| Running::start(envoy::in_cgroup(&lab, outside.path(), words));
        let meshed = |(service, port): (&str, u16)| {
            let run = lab.run(service).port(&format!("80:{port}"));
            receiver(port, &|words: &[&str]| run.start(words.iter().copied()))
        };
        let receivers = [receiver(NO_MESH, &foreign)?, meshed(PLAIN)?, meshed(FAST)?];
        for (service, _) in [PLAIN, FAST] {
            in_force(&lab, service, &bulk)?;
        }
        let arm = |name: &'static str, target: SocketAddr, sender: Running| Arm {
            name,
            target,
            sender,
            told: 0,
            rate: Vec::new(),
            machine: Vec::new(),
        };
        let send = [bulk.as_str(), "send"];
        let friend = || lab.run("client").account("friend").start(send);
        let arms = [
            arm("no mesh", ([127, 0, 0, 1], NO_MESH).into(), foreign(&send)?),
            arm("weft, L4", address(&lab, PLAIN.0)?, friend()?),
            arm("weft, L4, short-circuit", address(&lab, FAST.0)?, friend()?),
        ];
        Ok(Self {
            seconds: if quick { 0.5 } else { 3.0 },
            arms,
            _receivers: receivers,
            _outside: outside,
            lab,
        })
    }

    fn of(&self, way: Way) -> &Arm {
        // One for each, in the order of the declaration.
        &self.arms[way as usize]
    }
}

impl Scenario for Bulk {
    fn round(&mut self, number: usize) -> Result<f64> {
        let mut order = [Way::NoMesh, Way::Weft, Way::WeftFast];
        if number % 2 == 1 {
            order.reverse();
        }
        let mut disturbed = 0.0;
        for way in order {
            let carried = self.lab.loopback_bytes()?;
            let (sent, spent) = self.arms[way as usize].load(self.seconds)?;
            let carried = self.lab.loopback_bytes()?.saturating_sub(carried);
            ensure!(
                (carried < sent.bytes / 2) == (way == Way::WeftFast),
                "arm `{}`: the loopback device carried {carried} of {} bytes",
                self.of(way).name,
                sent.bytes
            );
            disturbed += spent.disturbed();
        }
        Ok(disturbed)
    }

    fn drop_last(&mut self) {
        for arm in &mut self.arms {
            arm.rate.pop();
            arm.machine.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let rate = |what: &str, way, goal| {
            let (arm, peer) = (self.of(way).rate.clone(), self.of(Way::NoMesh).rate.clone());
            Row::ratio(what, "MiB/s", arm, peer, goal)
        };
        let machine = |what: &str, way| {
            let (arm, peer) = (self.of(way).machine.clone(), self.of(Way::NoMesh).machine.clone());
            Row {
                what: what.to_owned(),
                unit: "ms CPU",
                compared: ratio(&peer, &arm),
                arm,
                peer,
                goal: Goal::Told,
            }
        };
        vec![
            rate("L4 path vs. no mesh, throughput", Way::Weft, Goal::AtLeast(0.97)),
            rate("the same, short-circuit", Way::WeftFast, Goal::AtLeast(1.3)),
            machine("L4 path vs. no mesh, of the whole machine a GiB", Way::Weft),
            machine("the same, short-circuit", Way::WeftFast),
        ]
    }
}

// === impl Arm ===

impl Arm {
    fn load(&mut self, seconds: f64) -> Result<(Sent, Spent)> {
        let watch = Watch::begin()?;
        self.sender.say(&format!("{} {seconds}", self.target))?;
        self.told += 1;
        let line = self.sender.line(self.told);
        let line = line.with_context(|| format!("arm `{}`", self.name))?;
        let sent: Sent = serde_json::from_str(&line).with_context(|| format!("weft-bulk said {line}"))?;
        let spent = watch.spent()?;
        let mib = sent.bytes as f64 / MIB;
        self.rate.push(mib / sent.seconds);
        self.machine.push(spent.busy.as_secs_f64() * 1e3 / (mib / 1024.0));
        Ok((sent, spent))
    }
}

/// Denied by default; account `friend` may reach both services, past the proxy.
fn mesh() -> String {
    let allow = |(service, _): (&str, u16)| {
        resources::allow(&format!("friend-{service}"), "friend", service, ("TCPRoute", "ports"))
    };
    [
        resources::DENY.to_owned(),
        resources::tcp_route("ports", &[PLAIN.1, FAST.1]),
        allow(PLAIN),
        allow(FAST),
        resources::service_policy(FAST.0, &["acceleration: full"]),
    ]
    .concat()
}

/// Waits until a friend reaches the service and a stranger does not.
fn in_force(lab: &Lab, service: &str, bulk: &str) -> Result<()> {
    poll::until("the mesh to be in force", || {
        let line = format!("{} 0", address(lab, service)?);
        let reaches = |account: &str| {
            let script = ["sh", "-c", "echo \"$1\" | \"$0\" send", bulk, &line];
            Ok::<_, anyhow::Error>(lab.run("client").account(account).output(script)?.code == 0)
        };
        let (friend, stranger) = (reaches("friend")?, reaches("stranger")?);
        ensure!(
            friend && !stranger,
            "{service}: a friend {friend}, a stranger {stranger}"
        );
        Ok(())
    })
}
