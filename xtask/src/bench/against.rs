//! One build of weft beside another, on the same traffic: what a change costs or saves a request, before it is kept. Requests
//! through the proxy, as in `http` and `http2`.
//!
//! Each build has meshes of its own; they take turns.

use std::path::Path;

use anyhow::Result;
use vm_test::{Lab, Server};

use super::{
    arm::{Arm, Load, Measured, Seconds, undisturbed},
    cpu::Awake,
    found::Found,
    http::{self, CONNECTIONS, LATENCY_RATE, RATE},
    http2::{self, Protocol},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, ratio},
};

/// Differences between two builds are smaller than those between two proxies.
const ROUNDS: Rounds = Rounds {
    least: 15,
    most: 15,
    drops: 3,
};

/// Which load is put on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A fixed rate.
    Fixed,
    /// A low one on one connection, processors awake.
    Alone,
    /// As many as are answered.
    Full,
}

/// What is compared.
struct Figure {
    what: &'static str,
    kind: Kind,
    unit: &'static str,
    of: fn(&Measured) -> f64,
}

#[rustfmt::skip]
const FIGURES: [Figure; 6] = [
    Figure { what: "CPU of the proxy a request, fixed rate", kind: Kind::Fixed, unit: "µs CPU", of: |measured| measured.proxy },
    Figure { what: "CPU of the machine a request, fixed rate", kind: Kind::Fixed, unit: "µs CPU", of: |measured| measured.machine },
    Figure { what: "p50 on one connection", kind: Kind::Alone, unit: "µs", of: |measured| measured.p50 },
    Figure { what: "CPU of the proxy a request, full load", kind: Kind::Full, unit: "µs CPU", of: |measured| measured.proxy },
    Figure { what: "of that in user space, full load", kind: Kind::Full, unit: "µs CPU", of: |measured| measured.user },
    Figure { what: "time between two answers, full load", kind: Kind::Full, unit: "µs", of: |measured| 1e6 / measured.rate },
];

const OF_HTTP1: &[Kind] = &[Kind::Fixed, Kind::Alone, Kind::Full];
/// The generator of HTTP/2 has timers of a millisecond: no latency is told of it.
const OF_HTTP2: &[Kind] = &[Kind::Fixed, Kind::Full];

struct Against {
    seconds: Seconds,
    /// This one, and the other: the same ways in the same order.
    builds: [Build; 2],
}

/// A build and its meshes.
struct Build {
    measures: Vec<Measures>,
    // Ended in this order, the labs last.
    _servers: Vec<Server>,
    _origins: Vec<http2::Origin>,
    _labs: [Lab; 2],
}

/// What came of a way through the proxy.
struct Measures {
    arm: Arm,
    connections: usize,
    kinds: &'static [Kind],
    /// Of each [`Kind`], a value a round.
    measured: [Vec<Measured>; 3],
}

/// Compares the weft under test with `other`.
///
/// # Errors
/// A mesh or a server does not start; an answer was wrong.
pub fn run(other: &Path, quick: bool) -> Result<Found> {
    let mut against = Against {
        seconds: Seconds::new(quick),
        builds: [
            Build::new(Lab::new)?,
            Build::new(|name| Lab::with_binary(name, other.to_owned()))?,
        ],
    };
    rounds::run(&mut against, ROUNDS, |line| println!("{line}")).map(Found::of)
}

// === impl Build ===

impl Build {
    fn new(lab: impl Fn(&str) -> Result<Lab>) -> Result<Self> {
        let (http1, http2) = (lab("bench-against-http")?, lab("bench-against-http2")?);
        peers::settle(&http1)?;
        peers::settle(&http2)?;
        let (mut measures, mut origins) = (Vec::new(), Vec::new());
        let servers = http::mesh(&http1)?;
        let daemon = http1.daemon_pid()?;
        let ways = ["weft, HTTP/1.1", "weft, HTTP/1.1, short-circuit"];
        // The services through the proxy come first.
        for ((name, service), server) in ways.into_iter().zip(http::SERVICES).zip(&servers) {
            let arm = http::meshed(&http1, name, service, vec![daemon], server.pid())?;
            measures.push(Measures::new(arm, CONNECTIONS, OF_HTTP1));
        }
        http2::start(&http2)?;
        for protocol in [Protocol::Http2, Protocol::Grpc] {
            for way in [http2::Way::Weft, http2::Way::WeftFast] {
                let (arm, origin) = http2::meshed(&http2, protocol, way)?;
                measures.push(Measures::new(arm, http2::CONNECTIONS, OF_HTTP2));
                origins.push(origin);
            }
        }
        Ok(Self {
            measures,
            _servers: servers,
            _origins: origins,
            _labs: [http1, http2],
        })
    }
}

// === impl Measures ===

impl Measures {
    fn new(arm: Arm, connections: usize, kinds: &'static [Kind]) -> Self {
        Self {
            arm,
            connections,
            kinds,
            measured: Default::default(),
        }
    }

    /// Puts one load on; how many processor seconds the host took of it, if it disturbed it.
    fn measure(&mut self, kind: Kind, seconds: Seconds) -> Result<f64> {
        let (rate, connections) = match kind {
            Kind::Fixed => (Some(RATE), self.connections),
            Kind::Alone => (Some(LATENCY_RATE), 1),
            Kind::Full => (None, self.connections),
        };
        let load = Load {
            rate,
            connections,
            seconds: seconds.counted,
            short: false,
        };
        let measured = undisturbed(|| self.arm.measure(&load, seconds.warm_up))?;
        self.arm.went_through(&measured)?;
        self.measured[kind as usize].push(measured);
        Ok(measured.spent.disturbed())
    }

    fn values(&self, figure: &Figure) -> Vec<f64> {
        self.measured[figure.kind as usize].iter().map(figure.of).collect()
    }
}

// === impl Against ===

impl Scenario for Against {
    fn round(&mut self, number: usize) -> Result<f64> {
        let mut stolen = 0.0;
        for kind in OF_HTTP1 {
            let awake = (*kind == Kind::Alone).then(Awake::new).transpose()?;
            let [this, other] = &mut self.builds;
            for (this, other) in this.measures.iter_mut().zip(&mut other.measures) {
                if !this.kinds.contains(kind) {
                    continue;
                }
                let turns = if number.is_multiple_of(2) {
                    [this, other]
                } else {
                    [other, this]
                };
                for measures in turns {
                    stolen += measures.measure(*kind, self.seconds)?;
                }
            }
            drop(awake);
        }
        Ok(stolen)
    }

    fn drop_last(&mut self) {
        for measures in self.builds.iter_mut().flat_map(|build| &mut build.measures) {
            for measured in &mut measures.measured {
                measured.pop();
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let [this, other] = &self.builds;
        let ways = this.measures.iter().zip(&other.measures);
        let rows = ways.flat_map(|(this, other)| {
            let figures = FIGURES.iter().filter(|figure| this.kinds.contains(&figure.kind));
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
