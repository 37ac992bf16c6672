//! Memory: of an idle proxy, and of one that holds 10,000 connections, each of which has had an answer.
//!
//! Every round starts its proxies anew. Resident memory is of the process (`VmRSS`, which counts shared pages too); the kernel's maps
//! are weft's alone and are added to its part (`memlock` of the descriptors, which is what the kernel charges for them).

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use vm_test::{Lab, Nginx, Running, envoy, resources};

use super::{
    arm::{Arm, Client, Load},
    http::address,
    peers,
    rounds::{Goal, Row},
};
use crate::paths;

const ORIGIN: u16 = 9001;
const ENVOY: u16 = 9010;
const CONNECTIONS: usize = 10_000;
/// New connections a second until all are open.
const RATE: u32 = 1000;
const SERVICE: &str = "held";
/// How often memory is looked at under load.
const LOOK: Duration = Duration::from_millis(50);
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Default)]
struct Figures {
    idle: Vec<f64>,
    held: Vec<f64>,
}

pub fn run(quick: bool) -> Result<Vec<Row>> {
    let rounds = if quick { 1 } else { 3 };
    let (mut weft, mut maps, mut envoy) = (Figures::default(), Vec::new(), Figures::default());
    for number in 1..=rounds {
        round(&mut weft, &mut maps, &mut envoy)?;
        println!("round {number} of {rounds}");
    }
    let idle = Row {
        what: "idle, resident".to_owned(),
        unit: "MiB",
        compared: weft.idle.clone(),
        arm: weft.idle.clone(),
        peer: envoy.idle.clone(),
        goal: Goal::AtMost(12.0),
    };
    let with_maps: Vec<f64> = weft.held.iter().zip(&maps).map(|(held, maps)| held + maps).collect();
    Ok(vec![
        idle,
        Row::ratio(
            "idle, kernel maps, vs. Envoy's all",
            "MiB",
            maps,
            envoy.idle,
            Goal::Told,
        ),
        Row::ratio(
            "10,000 connections, resident, vs. Envoy",
            "MiB",
            weft.held,
            envoy.held.clone(),
            Goal::AtMost(0.25),
        ),
        Row::ratio("the same with kernel maps", "MiB", with_maps, envoy.held, Goal::Told),
    ])
}

fn round(weft: &mut Figures, maps: &mut Vec<f64>, envoy_figures: &mut Figures) -> Result<()> {
    let lab = Lab::new("bench-memory")?;
    let outside = envoy::foreign_cgroup(&lab)?;
    peers::settle(&lab)?;
    lab.resource("mesh.yaml", resources::DENY)?;
    let reads = resources::route("reads", "/", &["GET"]);
    let allow = resources::allow("friend", "friend", SERVICE, ("HTTPRouteGroup", "reads"));
    lab.resource("access.yaml", &format!("{reads}{allow}"))?;
    lab.daemon_with(&["--access-log", "off"])?;
    let body = "x".repeat(peers::BODY);
    let server = lab.nginx(Nginx::service(SERVICE).port(80, 8080).says(&body))?;
    let origin = peers::origin(&lab, outside.path(), ORIGIN)?;
    let peer = peers::Envoy::one_hop(ENVOY, ORIGIN).start(&lab, outside.path())?;
    let daemon = lab.daemon_pid()?;
    let target = address(&lab, SERVICE)?;
    weft.idle.push(resident(daemon)?);
    maps.push(kernel_maps(daemon)?);
    envoy_figures.idle.push(resident(peer.pid())?);

    let generator = paths::load();
    let meshed = Client::start(&generator, |words| lab.run("client").account("friend").start(words))?;
    weft.held.push(held(
        daemon,
        arm("weft", target, SERVICE, (daemon, server.pid()), meshed),
    )?);
    let foreign = Client::start(&generator, |words| {
        Running::start(envoy::in_cgroup(&lab, outside.path(), &words))
    })?;
    let target = ([127, 0, 0, 1], ENVOY).into();
    envoy_figures.held.push(held(
        peer.pid(),
        arm("Envoy", target, "origin", (peer.pid(), origin.pid()), foreign),
    )?);
    Ok(())
}

/// `pids`: of the proxy, and of the origin.
fn arm(name: &'static str, target: std::net::SocketAddr, host: &str, pids: (i32, i32), client: Client) -> Arm {
    Arm {
        name,
        target,
        host: host.to_owned(),
        headers: Vec::new(),
        proxies: vec![pids.0],
        origin: pids.1,
        client,
    }
}

/// The most memory that process `pid` had while all connections were opened, one after the other, and each had an answer.
fn held(pid: i32, mut arm: Arm) -> Result<f64> {
    let load = Load {
        rate: Some(RATE),
        connections: CONNECTIONS,
        seconds: CONNECTIONS as f64 / f64::from(RATE) + 1.0,
        short: false,
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !over.load(Ordering::Relaxed) {
                most = most.max(resident(pid)?);
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

/// MiB of the kernel maps a process holds, each once.
fn kernel_maps(pid: i32) -> Result<f64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut of_map = std::collections::BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            of_map.insert(id, bytes);
        }
    }
    Ok(of_map.values().sum::<u64>() as f64 / MIB)
}
