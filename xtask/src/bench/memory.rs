//! Memory: of an idle proxy, and of one that holds 10,000 connections, each of which has had an answer.
//!
//! Every round starts its proxies anew, from the disk. Memory is what a process has resident (`VmRSS`, which counts shared pages too) and the kernel's
//! maps that it holds (`memlock` of their descriptors, which is what the kernel charges for them): Envoy has none.

mod from_disk;
mod maps;

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Running, envoy, poll, resources};

pub use self::from_disk::forget_programs;
use self::maps::Maps;
use super::{
    arm::{Arm, Client, Load},
    http::address,
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, ratio},
};
use crate::paths;

const ORIGIN: u16 = 9001;
const ENVOY: u16 = 9010;
const CONNECTIONS: usize = 10_000;
/// New connections a second until all are open.
const RATE: u32 = 1000;
const SERVICE: &str = "held";
/// How long resident memory has to stay within so many MiB to be that of a process at rest: weft's allocator gives back within a second
/// or two what is free, its start code goes before.
const REST: Duration = Duration::from_secs(3);
const STEADY: f64 = 0.1;
const BOUND: Duration = Duration::from_secs(60);
/// How often memory is looked at under load.
const LOOK: Duration = Duration::from_millis(50);
/// MiB that an idle proxy may take, and the part of Envoy's that one under load may: what the project aims for.
const IDLE: f64 = 12.0;
const OF_ENVOY: f64 = 0.25;

/// Of a process, in MiB.
#[derive(Clone, Copy, Default)]
pub struct Held {
    pub resident: f64,
    pub with_maps: f64,
}

/// A value a round.
#[derive(Default)]
struct Figures {
    idle: Vec<Held>,
    loaded: Vec<Held>,
}

#[derive(Default)]
struct Memory {
    weft: Figures,
    envoy: Figures,
}

/// # Errors
/// A mesh, a server or a peer does not start; an answer was wrong.
pub fn run(quick: bool) -> Result<Vec<Row>> {
    // Memory is not spread as times are, and is not the host's to take: no round is dropped.
    let (least, most) = if quick { (1, 1) } else { (5, 7) };
    let rounds = Rounds { least, most, drops: 0 };
    rounds::run(&mut Memory::default(), rounds, |line| println!("{line}"))
}

// === impl Held ===

impl Held {
    /// What process `pid` has once that stays as it is: after a start, or a change, both peers give back what they needed for it.
    ///
    /// # Errors
    /// It is gone, or goes on taking and giving.
    pub fn at_rest(pid: i32) -> Result<Self> {
        let (mut last, mut since) = (resident(pid)?, Instant::now());
        poll::within(BOUND, "memory to stay as it is", || {
            let now = resident(pid)?;
            if (now - last).abs() > STEADY {
                (last, since) = (now, Instant::now());
            }
            ensure!(since.elapsed() >= REST, "{now:.1} MiB are resident");
            Self::of(pid, &Maps::of(pid)?)
        })
    }

    fn of(pid: i32, maps: &Maps) -> Result<Self> {
        let resident = resident(pid)?;
        Ok(Self {
            resident,
            with_maps: resident + maps.mib(),
        })
    }

    /// The greater of each.
    fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            with_maps: self.with_maps.max(other.with_maps),
        }
    }
}

// === impl Memory ===

impl Scenario for Memory {
    fn round(&mut self, number: usize) -> Result<f64> {
        let lab = Lab::new("bench-memory")?;
        let outside = envoy::foreign_cgroup(&lab)?;
        peers::settle(&lab)?;
        forget_programs(&lab)?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let reads = resources::route("reads", "/", &["GET"]);
        let allow = resources::allow("friend", "friend", SERVICE, ("HTTPRouteGroup", "reads"));
        lab.resource("access.yaml", &format!("{reads}{allow}"))?;
        lab.daemon_with(&["--access-log", "off"])?;
        let body = "x".repeat(peers::BODY);
        let server = lab.nginx(Nginx::service(SERVICE).port(80, 8080).says(&body))?;
        let origin = peers::origin(&lab, outside.path(), ORIGIN)?;
        let peer = peers::Envoy::one_hop(ENVOY, ORIGIN).start(&lab, outside.path())?;
        let (daemon, target) = (lab.daemon_pid()?, address(&lab, SERVICE)?);
        for (figures, pid) in [(&mut self.weft, daemon), (&mut self.envoy, peer.pid())] {
            figures.idle.push(Held::at_rest(pid)?);
        }

        let generator = paths::load();
        let meshed = Client::start(&generator, |words| lab.run("client").account("friend").start(words))?;
        let foreign = Client::start(&generator, |words| {
            Running::start(envoy::in_cgroup(&lab, outside.path(), &words))
        })?;
        let local = ([127, 0, 0, 1], ENVOY).into();
        let ours = arm("weft", target, SERVICE, (daemon, server.pid()), meshed);
        let theirs = arm("Envoy", local, "origin", (peer.pid(), origin.pid()), foreign);
        let mut turns = [(&mut self.weft, daemon, ours), (&mut self.envoy, peer.pid(), theirs)];
        if number % 2 == 1 {
            turns.reverse();
        }
        for (figures, pid, arm) in turns {
            figures.loaded.push(loaded(pid, arm)?);
        }
        Ok(0.0)
    }

    fn drop_last(&mut self) {
        for figures in [&mut self.weft, &mut self.envoy] {
            figures.idle.pop();
            figures.loaded.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let resident = |held: &[Held]| values(held, |held| held.resident);
        let all = |held: &[Held]| values(held, |held| held.with_maps);
        let maps = |held: &[Held]| values(held, |held| held.with_maps - held.resident);
        let row = |what: &str, arm: Vec<f64>, peer: &[Held], compared: Vec<f64>, goal: Goal| Row {
            what: what.to_owned(),
            unit: "MiB",
            arm,
            peer: all(peer),
            compared,
            goal,
        };
        let alone = |what: &str, arm: Vec<f64>, goal: Goal| row(what, arm.clone(), &self.envoy.idle, arm, goal);
        let beside = |what: &str, arm: Vec<f64>, peer: &[Held], goal: Goal| {
            let compared = ratio(&arm, &all(peer));
            row(what, arm, peer, compared, goal)
        };
        let (weft, envoy) = (&self.weft, &self.envoy);
        vec![
            alone("idle, with kernel maps", all(&weft.idle), Goal::AtMost(IDLE)),
            alone("idle, resident", resident(&weft.idle), Goal::Told),
            beside(
                "idle, kernel maps, vs. Envoy's all",
                maps(&weft.idle),
                &envoy.idle,
                Goal::Told,
            ),
            beside(
                "10,000 connections, with kernel maps, vs. Envoy",
                all(&weft.loaded),
                &envoy.loaded,
                Goal::AtMost(OF_ENVOY),
            ),
            beside(
                "10,000 connections, resident, vs. Envoy",
                resident(&weft.loaded),
                &envoy.loaded,
                Goal::Told,
            ),
        ]
    }
}

/// A figure of each.
pub fn values(held: &[Held], figure: impl Fn(&Held) -> f64) -> Vec<f64> {
    held.iter().map(figure).collect()
}

/// `pids`: of the proxy, and of the origin.
fn arm(name: &'static str, target: std::net::SocketAddr, host: &str, pids: (i32, i32), client: Client) -> Arm {
    Arm {
        name,
        target,
        host: host.to_owned(),
        headers: Vec::new(),
        words: &[],
        proxies: vec![pids.0],
        origin: pids.1,
        client,
    }
}

/// The most memory that process `pid` had while all connections were opened, one after the other, and each had an answer.
fn loaded(pid: i32, mut arm: Arm) -> Result<Held> {
    // Before it has a descriptor a connection, all of which would have to be looked at for maps.
    let maps = Maps::of(pid)?;
    let load = Load {
        rate: Some(RATE),
        connections: CONNECTIONS,
        seconds: CONNECTIONS as f64 / f64::from(RATE) + 1.0,
        short: false,
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = Held::default();
            while !over.load(Ordering::Relaxed) {
                most = most.max(Held::of(pid, &maps)?);
                thread::sleep(LOOK);
            }
            Ok(most)
        });
        let measured = arm.measure(&load, 0.0);
        over.store(true, Ordering::Relaxed);
        let most = looking
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the look at memory failed"));
        measured.and(most)
    })
}

/// MiB of a process in memory.
fn resident(pid: i32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = kib
        .with_context(|| format!("no VmRSS in {file}"))?
        .parse()
        .context("VmRSS")?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rounds::Verdict;

    #[test]
    fn goals_are_of_resident_memory_and_kernel_maps_together() {
        let held = |resident: f64, maps: f64| {
            vec![Held {
                resident,
                with_maps: resident + maps,
            }]
        };
        let verdicts = |idle, loaded| {
            let weft = Figures { idle, loaded };
            let envoy = Figures {
                idle: held(60.0, 0.0),
                loaded: held(200.0, 0.0),
            };
            let rows = Memory { weft, envoy }.rows();
            let judged = rows
                .iter()
                .map(Row::verdict)
                .filter(|verdict| *verdict != Verdict::Told);
            judged.collect::<Vec<_>>()
        };
        assert_eq!(verdicts(held(7.0, 4.0), held(40.0, 9.0)), [Verdict::Pass; 2]);
        assert_eq!(verdicts(held(11.0, 4.0), held(49.0, 9.0)), [Verdict::FallsShort; 2]);
    }
}
