//! 10,000 services of ten endpoints each: what they take of memory, beside an Envoy that knows the same; and how long it takes
//! until the change of one endpoint is in force.
//!
//! Every round starts its proxies anew. Memory is that of [`memory`](super::memory), once all is in force and nothing is done
//! any more. Then one endpoint of one service is changed again and again, by its file and by `weft apply`, while a client
//! connects to the service every millisecond: in force is a change when it is answered by the new endpoint. What the daemon
//! runs for a change is put beside what it runs in a mesh of ten services: nothing that it does may be for all of them.

mod envoy;
mod moving;
mod resources;

use std::{
    mem, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Host, Hosts, Running, poll};

use self::{
    moving::{How, Moving},
    resources::Size,
};
use super::{
    cpu::{self, Watch},
    memory::{Held, forget_programs, values},
    rounds::{self, Goal, Rounds, Row, Scenario, spread},
};

const SMALL: Size = Size {
    services: 10,
    endpoints: 10,
};
const LARGE: Size = Size {
    services: 10_000,
    endpoints: 10,
};
/// How long a daemon or an Envoy may take until all is in force.
const START: Duration = Duration::from_secs(120);
/// Changes of an endpoint a round, each way; even, so that it ends where it began.
const CHANGES: usize = 10;
const QUICK_CHANGES: usize = 4;
/// How long a daemon is looked at, to see whether it rests.
const LOOK: Duration = Duration::from_millis(100);
/// Part of Envoy's memory, milliseconds, and CPU a change, times that of the small mesh: what the project aims for. The large
/// mesh has 1,000 times as much: a full rebuild would show.
const OF_ENVOY: f64 = 0.25;
const IN_FORCE: f64 = 50.0;
const REBUILD: f64 = 10.0;

/// A value a round: medians over its changes.
#[derive(Default)]
struct Figures {
    /// Milliseconds.
    by_file: Vec<f64>,
    by_apply: Vec<f64>,
    /// Milliseconds of processor time of the daemon, by file.
    cpu: Vec<f64>,
}

struct LargeMesh {
    changes: usize,
    weft: Vec<Held>,
    envoy: Vec<Held>,
    large: Figures,
    small: Figures,
}

/// The first host has the daemon; on the others, outside, are the servers between which endpoints move.
struct Mesh {
    // Ended before the hosts are.
    _servers: Vec<Running>,
    hosts: Hosts,
}

/// # Errors
/// A mesh or an Envoy does not start; a connection failed.
pub fn run(quick: bool) -> Result<Vec<Row>> {
    let (least, most) = if quick { (1, 1) } else { (5, 7) };
    let rounds = Rounds {
        least,
        most,
        drops: usize::from(!quick),
    };
    let mut scenario = LargeMesh {
        changes: if quick { QUICK_CHANGES } else { CHANGES },
        weft: Vec::new(),
        envoy: Vec::new(),
        large: Figures::default(),
        small: Figures::default(),
    };
    rounds::run(&mut scenario, rounds, |line| println!("{line}"))
}

// === impl LargeMesh ===

impl Scenario for LargeMesh {
    fn round(&mut self, _number: usize) -> Result<f64> {
        let watch = Watch::begin()?;
        {
            let mesh = Mesh::start(&LARGE)?;
            // Before anything is asked of it: an answer about so many takes memory, too.
            self.weft.push(Held::at_rest(mesh.lab().daemon_pid()?)?);
            self.envoy.push(envoy::held(mesh.lab(), &LARGE)?);
            mesh.check(&LARGE)?;
            mesh.changes(self.changes, &mut self.large)?;
        }
        Mesh::start(&SMALL)?.changes(self.changes, &mut self.small)?;
        Ok(watch.spent()?.disturbed())
    }

    fn drop_last(&mut self) {
        self.weft.pop();
        self.envoy.pop();
        for figures in [&mut self.large, &mut self.small] {
            figures.by_file.pop();
            figures.by_apply.pop();
            figures.cpu.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let all = |held: &[Held]| values(held, |held| held.with_maps);
        let resident = |held: &[Held]| values(held, |held| held.resident);
        let memory = |what: &str, arm: Vec<f64>, goal| Row::ratio(what, "MiB", arm, all(&self.envoy), goal);
        // The small mesh beside it only tells more.
        let alone = |what: &str, of: fn(&Figures) -> &[f64]| {
            let (large, small) = (of(&self.large).to_vec(), of(&self.small).to_vec());
            Row {
                compared: large.clone(),
                ..Row::ratio(what, "ms", large, small, Goal::AtMost(IN_FORCE))
            }
        };
        let (large, small) = (self.large.cpu.clone(), self.small.cpu.clone());
        vec![
            memory(
                "10,000 services and 100,000 endpoints, with kernel maps, vs. Envoy",
                all(&self.weft),
                Goal::AtMost(OF_ENVOY),
            ),
            memory(
                "10,000 services and 100,000 endpoints, resident, vs. Envoy",
                resident(&self.weft),
                Goal::Told,
            ),
            alone("one endpoint's change in force", |figures| &figures.by_file),
            alone("the same, by `weft apply`", |figures| &figures.by_apply),
            Row::ratio(
                "one endpoint's change, CPU of the daemon, vs. in a mesh of 10 services",
                "ms CPU",
                large,
                small,
                Goal::AtMost(REBUILD),
            ),
        ]
    }
}

// === impl Mesh ===

impl Mesh {
    /// Returns when all is in force and the daemon rests.
    fn start(size: &Size) -> Result<Self> {
        let began = Instant::now();
        let hosts = Hosts::new("bench-large", 5)?;
        let [a, others @ ..] = hosts.all::<5>();
        let servers = others.map(moving::server).into_iter().collect::<Result<_>>()?;
        resources::write(a, size)?;
        let [first, _] = How::File.hosts(&hosts);
        How::File.put(a, first)?;
        forget_programs(a)?;
        a.daemon_unasked(&["--access-log", "off"])?;
        let traffic = a.traffic()?;
        let target = How::File.target();
        let alive = poll::within(START, "the mesh to be in force", || {
            if !a.daemon_lives()? {
                return Ok(false);
            }
            let ask = |account: &str| {
                let probe = a.run("probe").account(account);
                probe.output([traffic.as_str(), "connect", &target])?.json()
            };
            let (friend, stranger) = (ask("friend")?, ask("stranger")?);
            ensure!(friend["ok"] == true, "a friend: {friend}");
            ensure!(stranger["ok"] == false, "a stranger: {stranger}");
            Ok(true)
        });
        let alive = alive.with_context(|| format!("the daemon's log:\n{}", a.log()))?;
        ensure!(alive, "the daemon ended; its log:\n{}", a.log());
        at_rest(a.daemon_pid()?)?;
        println!(
            "mesh with {} services: in force after {:.1} s",
            size.services,
            began.elapsed().as_secs_f64()
        );
        Ok(Self {
            _servers: servers,
            hosts,
        })
    }

    /// The one with the daemon.
    fn lab(&self) -> &Host {
        self.hosts.host(0)
    }

    /// Whether all that was written is in force.
    fn check(&self, size: &Size) -> Result<()> {
        let status = self.lab().status()?;
        let services = status["services"].as_array().context("services")?;
        let endpoints = |service: &Value| {
            let ports = service["ports"].as_array()?;
            let of = |port: &Value| port["endpoints"].as_array().map_or(0, Vec::len);
            Some(ports.iter().map(of).sum::<usize>())
        };
        let endpoints: usize = services.iter().filter_map(endpoints).sum();
        ensure!(
            services.len() > size.services && endpoints > size.services * size.endpoints,
            "{} services with {endpoints} endpoints are in force",
            services.len()
        );
        Ok(())
    }

    /// Changes endpoints, one after the other: there, back again, and so on.
    fn changes(&self, changes: usize, into: &mut Figures) -> Result<()> {
        let pid = self.lab().daemon_pid()?;
        for how in [How::File, How::Apply] {
            let [first, second] = how.hosts(&self.hosts);
            how.put(self.lab(), first)?;
            let mut moving = Moving::start(self.lab(), how)?;
            let (mut took, mut ran) = (Vec::new(), Vec::new());
            for to in [second, first].into_iter().cycle().take(changes) {
                let before = at_rest(pid)?;
                took.push(moving.change(to)?);
                ran.push(milliseconds(at_rest(pid)?.saturating_sub(before)));
            }
            let took = spread(&took).median;
            match how {
                How::File => {
                    into.by_file.push(took);
                    into.cpu.push(spread(&ran).median);
                }
                How::Apply => into.by_apply.push(took),
            }
        }
        Ok(())
    }
}

/// Waits until a process does next to nothing; its processor time then.
fn at_rest(pid: i32) -> Result<Duration> {
    let mut before = cpu::of_process(pid)?;
    poll::within(START, "the daemon to rest", || {
        thread::sleep(LOOK);
        let now = cpu::of_process(pid)?;
        let ran = now.saturating_sub(mem::replace(&mut before, now));
        ensure!(ran < LOOK / 10, "it ran {ran:?} in {LOOK:?}");
        Ok(now)
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rounds::Verdict;

    #[test]
    fn a_change_is_judged_by_itself_and_its_price_beside_the_small_mesh() {
        let verdicts = |by_file: f64, cpu: f64| {
            let figures = |cpu: f64| Figures {
                by_file: vec![by_file],
                by_apply: vec![20.0],
                cpu: vec![cpu],
            };
            let held = |mib: f64| {
                vec![Held {
                    resident: mib,
                    with_maps: mib + 10.0,
                }]
            };
            let scenario = LargeMesh {
                changes: 1,
                weft: held(50.0),
                envoy: held(250.0),
                large: figures(cpu),
                small: figures(2.0),
            };
            let rows = scenario.rows();
            let judged = rows
                .iter()
                .map(Row::verdict)
                .filter(|verdict| *verdict != Verdict::Told);
            judged.collect::<Vec<_>>()
        };
        assert_eq!(verdicts(45.0, 15.0), [Verdict::Pass; 4]);
        let (pass, short) = (Verdict::Pass, Verdict::FallsShort);
        assert_eq!(verdicts(60.0, 25.0), [pass, short, pass, short]);
    }

    #[test]
    fn a_process_that_waits_is_at_rest() -> Result<()> {
        let mut command = std::process::Command::new("sleep");
        command.arg("60");
        let waiting = Running::start(command)?;
        at_rest(waiting.pid()).map(drop)
    }
}
