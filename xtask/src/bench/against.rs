//! One build of weft beside another, on the same traffic: what a change costs or saves a request, before it is kept. Requests through
//! the proxy, as in `http` and `http2`.
//!
//! Each build has meshes of its own; they take turns.

use std::path::Path;

use anyhow::{Context, Result};
use vm_test::{Lab, Server};

use super::{
    arm::{Arm, Client, Load, Measured, Seconds, undisturbed},
    cpu::Awake,
    found::Found,
    http::{self, CONNECTIONS, FAST, LATENCY_RATE, PLAIN, RATE},
    http2::{self, Protocol},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, ratio},
};
use crate::paths;

/// Differences between two builds are smaller than those between two proxies.
fn rounds(quick: bool) -> Rounds {
    let (least, most, drops) = if quick { (7, 7, 2) } else { (15, 15, 3) };
    Rounds { least, most, drops }
}

/// Which load is put on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// A fixed rate.
    Busy,
    /// A low one on one connection, processors awake.
    Alone,
    /// As many as are answered.
    Full,
}

/// What is compared of each way.
struct Figure {
    what: &'static str,
    put: Put,
    unit: &'static str,
    of: fn(&Measured) -> f64,
}

#[rustfmt::skip]
const FIGURES: [Figure; 5] = [
    Figure { what: "CPU of the proxy a request", put: Put::Busy, unit: "µs CPU", of: |measured| measured.proxy },
    Figure { what: "the same in user space", put: Put::Busy, unit: "µs CPU", of: |measured| measured.user },
    Figure { what: "the same of the whole machine", put: Put::Busy, unit: "µs CPU", of: |measured| measured.machine },
    Figure { what: "p50 on one connection", put: Put::Alone, unit: "µs", of: |measured| measured.p50 },
    Figure { what: "time a request, as many as are answered", put: Put::Full, unit: "µs", of: |measured| 1e6 / measured.rate },
];

/// The generator of HTTP/2 has timers of a millisecond: no latency is told of it.
const PUT_HTTP2: &[Put] = &[Put::Busy];
const PUT_HTTP1: &[Put] = &[Put::Busy, Put::Alone, Put::Full];

struct Against {
    seconds: Seconds,
    /// This one, and the other: the same ways in the same order.
    builds: [Build; 2],
}

/// A build and its meshes.
struct Build {
    ways: Vec<Way>,
    // Ended in this order, the labs last.
    _servers: Vec<Server>,
    _origins: Vec<http2::Origin>,
    _labs: [Lab; 2],
}

/// A way through the proxy.
struct Way {
    arm: Arm,
    connections: usize,
    puts: &'static [Put],
    /// Of each [`Put`], a value a round.
    measured: [Vec<Measured>; 3],
}

/// Compares `this` with `other`.
///
/// # Errors
/// A mesh or a server does not start; an answer was wrong.
pub fn run(this: &Path, other: &Path, quick: bool) -> Result<Found> {
    let mut against = Against {
        seconds: Seconds::new(quick),
        builds: [Build::new("this", this)?, Build::new("other", other)?],
    };
    rounds::run(&mut against, rounds(quick), |line| println!("{line}")).map(Found::of)
}

// === impl Build ===

impl Build {
    fn new(name: &str, weft: &Path) -> Result<Self> {
        let weft = weft
            .canonicalize()
            .with_context(|| format!("find {}", weft.display()))?;
        let lab = |protocol: &str| {
            let lab = Lab::with_binary(&format!("bench-{name}-{protocol}"), weft.clone())?;
            peers::settle(&lab)?;
            Ok::<_, anyhow::Error>(lab)
        };
        let (http1, http2) = (lab("http")?, lab("http2")?);
        let (mut ways, mut origins) = (Vec::new(), Vec::new());
        let servers = http::mesh(&http1)?;
        // The services through the proxy come first.
        for ((service, name), server) in [(PLAIN, "HTTP/1.1"), (FAST, "HTTP/1.1, short-circuit")]
            .into_iter()
            .zip(&servers)
        {
            let arm = Arm {
                name,
                target: http::address(&http1, service)?,
                host: service.to_owned(),
                headers: Vec::new(),
                words: &[],
                proxies: vec![http1.daemon_pid()?],
                origin: server.pid(),
                client: Client::start(&paths::load(), |words| {
                    http1.run("client").account("friend").start(words)
                })?,
            };
            ways.push(Way::new(arm, CONNECTIONS, PUT_HTTP1));
        }
        http2::start(&http2)?;
        for protocol in [Protocol::Http2, Protocol::Grpc] {
            for way in [http2::Way::Weft, http2::Way::WeftFast] {
                let (arm, origin) = http2::meshed(&http2, protocol, way)?;
                ways.push(Way::new(arm, http2::CONNECTIONS, PUT_HTTP2));
                origins.push(origin);
            }
        }
        Ok(Self {
            ways,
            _servers: servers,
            _origins: origins,
            _labs: [http1, http2],
        })
    }
}

// === impl Way ===

impl Way {
    fn new(arm: Arm, connections: usize, puts: &'static [Put]) -> Self {
        Self {
            arm,
            connections,
            puts,
            measured: Default::default(),
        }
    }

    /// Puts one load on; how many processor seconds the host took of it, if it disturbed it.
    fn measure(&mut self, put: Put, seconds: Seconds) -> Result<f64> {
        let (rate, connections) = match put {
            Put::Busy => (Some(RATE), self.connections),
            Put::Alone => (Some(LATENCY_RATE), 1),
            Put::Full => (None, self.connections),
        };
        let load = Load {
            rate,
            connections,
            seconds: seconds.counted,
            short: false,
        };
        let measured = undisturbed(|| self.arm.measure(&load, seconds.warm_up))?;
        self.arm.went_through(&measured)?;
        self.measured[put as usize].push(measured);
        Ok(measured.spent.disturbed())
    }

    fn values(&self, figure: &Figure) -> Vec<f64> {
        self.measured[figure.put as usize].iter().map(figure.of).collect()
    }
}

// === impl Against ===

impl Scenario for Against {
    fn round(&mut self, number: usize) -> Result<f64> {
        let mut stolen = 0.0;
        for put in PUT_HTTP1 {
            let awake = (*put == Put::Alone).then(Awake::new).transpose()?;
            let [this, other] = &mut self.builds;
            for (this, other) in this.ways.iter_mut().zip(&mut other.ways) {
                if !this.puts.contains(put) {
                    continue;
                }
                let turns = if number.is_multiple_of(2) {
                    [this, other]
                } else {
                    [other, this]
                };
                for way in turns {
                    stolen += way.measure(*put, self.seconds)?;
                }
            }
            drop(awake);
        }
        Ok(stolen)
    }

    fn drop_last(&mut self) {
        for way in self.builds.iter_mut().flat_map(|build| &mut build.ways) {
            for measured in &mut way.measured {
                measured.pop();
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let [this, other] = &self.builds;
        let ways = this.ways.iter().zip(&other.ways);
        let rows = ways.flat_map(|(this, other)| {
            let figures = FIGURES.iter().filter(|figure| this.puts.contains(&figure.put));
            figures.map(|figure| {
                let (arm, peer) = (this.values(figure), other.values(figure));
                Row {
                    what: format!("{}: {}", this.arm.name, figure.what),
                    unit: figure.unit,
                    // All are prices: above 1, this one is the better.
                    compared: ratio(&peer, &arm),
                    arm,
                    peer,
                    goal: Goal::Told,
                }
            })
        });
        rows.collect()
    }
}
