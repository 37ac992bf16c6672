//! `cargo xtask soak`: mixed traffic for a long time, while policies change and daemons die, everything checked.

mod client;
mod gauges;
mod judge;
mod mesh;
mod report;
mod stats;
mod stream;
mod timeline;
mod trouble;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use vm_test::{Hosts, leak, poll, soak::Random};

use self::{
    client::{Talking, lock},
    gauges::Gauges,
    judge::Judge,
    trouble::{Done, Stop},
};
use crate::{
    build, paths, preflight,
    setup::{self, Scope},
};

/// Mixed traffic between three hosts while policies change every second and a daemon is killed and upgraded; everything is
/// checked. Needs root.
///
/// Short and kept TCP connections, bulk both ways, UDP and HTTP, past the proxy and through it, short-circuited or not, on one
/// host and between two, IPv4 and IPv6. Wrong are: a byte, a verdict that fits no policy that may have been in force, a kept connection that outlives
/// its denial, and a map, descriptors or memory that grow. Exit 0 only if nothing is. Runs in network namespaces and cgroups of
/// its own and removes everything, also after Ctrl-C.
#[derive(clap::Args)]
pub struct Args {
    /// How long traffic runs.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Repeats sizes, pauses and order of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Soaks `target/debug/weft`, which is built sooner and runs slower.
    #[arg(long)]
    debug: bool,
    /// Only kills the daemon and never replaces it by `--take-over`.
    #[arg(long)]
    no_upgrade: bool,
}

/// Between two rows, and between two looks at what must not grow.
const ROW: Duration = Duration::from_secs(5);
/// Until everything is as it will be: allocators, pools, edges, one kill and one upgrade. At most half of the time.
const WARM_UP: Duration = Duration::from_secs(60);

pub fn run(args: &Args) -> Result<()> {
    preflight::kernel("soak")?;
    let tools = setup::ensure(Scope::Traffic)?;
    let weft = if args.debug {
        build::debug(&tools)?;
        paths::weft_debug()
    } else {
        build::release(&tools)?;
        paths::weft()
    };
    build::traffic()?;
    vm_test::interrupt::on_signals()?;
    let seed = args.seed.unwrap_or_else(vm_test::soak::now);
    let upgrades = if args.no_upgrade {
        ""
    } else {
        " and replaced by `weft daemon --take-over` in turn"
    };
    println!(
        "seed {seed}; {} minutes; the flapper is denied and allowed on hosts a and b every second; a's daemon is killed{upgrades} \
         about every 20 s; b's lives from start to end",
        args.minutes
    );

    let before = leak::Snapshot::take().context("list what is on this machine before")?;
    let hosts = Hosts::with_binary("soak", 3, &weft)?;
    let result = soak(&hosts, args, seed);
    if !matches!(result, Ok(true)) && poll::check_interrupt().is_ok() {
        let [a, b, _] = hosts.all();
        [a, b].iter().for_each(|host| host.print_log());
    }
    drop(hosts);
    let gone = leak::nothing_since(&before).context("cleaning up did not remove everything");
    let held = result.with_context(|| format!("the soak of seed {seed} ended early"))?;
    gone?;
    ensure!(held, "not all held (seed {seed})");
    println!("\nclean: all held, nothing is left behind (seed {seed})");
    Ok(())
}

/// Whether all held.
fn soak(hosts: &Hosts, args: &Args, seed: u64) -> Result<bool> {
    let mut random = Random::new(seed);
    let [a, b, _] = hosts.all();
    let _servers = mesh::start(hosts)?;
    for (index, host) in [a, b].into_iter().enumerate() {
        trouble::allow(host, index)?;
    }
    let clients = mesh::clients(hosts)?;
    mesh::await_served(hosts, &clients)?;
    let streams: usize = clients.iter().map(|client| client.streams.len()).sum();
    println!("{} clients keep up {streams} streams", clients.len());

    let length = Duration::from_secs(args.minutes * 60);
    let judge = Arc::new(Mutex::new(Judge::new(vm_test::soak::now())));
    let mut clients = client::start(hosts, clients, length.as_secs(), &mut random, &judge)?;
    let (done, stop) = (Done::default(), Stop::default());
    let gauges = thread::scope(|scope| {
        let (judge, done, stop) = (&*judge, &done, &stop);
        let mut threads = Vec::new();
        for (index, host) in [a, b].into_iter().enumerate() {
            threads.push(scope.spawn(move || trouble::flap(host, index, judge, done, stop)));
        }
        let upgrade = !args.no_upgrade;
        let mut random = Random::new(random.draw());
        threads.push(scope.spawn(move || trouble::trouble(a, 0, upgrade, &mut random, judge, done, stop)));
        let result = watch(hosts, length, &mut clients, judge, done, || {
            threads.iter().any(|thread| thread.is_finished())
        });
        stop.set();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread of the soak panicked"))??;
        }
        result
    })?;
    // What they say last is judged by what was done until now.
    let silent: Vec<Vec<String>> = clients.iter_mut().map(Talking::end).collect::<Result<_>>()?;
    let silent = silent.concat();
    let forgotten = gauges::await_forgotten(&[a, b]);
    let held = report::tables(&lock(&judge), &done, &gauges);
    // Connections that are kept are open whenever somebody looks.
    let short_circuited = gauges[0].newest("rx") > 0;
    if !short_circuited {
        println!("  ✗ nothing is short-circuited on host a");
    }
    for stream in &silent {
        println!("  ✗ never tried: {stream}");
    }
    if let Err(error) = &forgotten {
        println!("  ✗ {error:#}");
    }
    Ok(held && short_circuited && silent.is_empty() && forgotten.is_ok())
}

/// Rows and samples until time is up.
fn watch(
    hosts: &Hosts,
    length: Duration,
    clients: &mut [Talking],
    judge: &Mutex<Judge>,
    done: &Done,
    ended: impl Fn() -> bool,
) -> Result<[Gauges; 2]> {
    let [a, b, _] = hosts.all();
    let start = Instant::now();
    let warm_up = WARM_UP.min(length / 2);
    let mut gauges = <[Gauges; 2]>::default();
    for number in 0.. {
        let next = start + ROW * (number + 1);
        if next > start + length {
            break;
        }
        while Instant::now() < next {
            poll::check_interrupt()?;
            clients.iter_mut().try_for_each(Talking::check)?;
            if ended() {
                bail!("what is done to the mesh has ended");
            }
            thread::sleep(Duration::from_millis(100));
        }
        let under_way = lock(judge).hosts[0]
            .troubles
            .last()
            .is_some_and(|trouble| trouble.end.is_none());
        // Asking for its number would wait for the end of a hand-over.
        let pid = if under_way { None } else { a.daemon_pid().ok() };
        gauges[0].sample(a, pid, start.elapsed(), warm_up)?;
        gauges[1].sample(b, b.daemon_pid().ok(), start.elapsed(), warm_up)?;
        report::row(number as usize, start.elapsed(), &lock(judge), done, &gauges);
    }
    Ok(gauges)
}
