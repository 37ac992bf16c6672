//! HTTP/2 and gRPC without TLS, on one node: through weft's proxy with telemetry and an access rule, through Envoy without any,
//! and past both. Both proxies speak HTTP/2 on both sides.
//!
//! Each arm gets two loads on a few connections: a fixed rate, at which most of what a request costs is waking up; and as many
//! as are answered, several at a time on each connection, where most of it is work.
//! A gRPC call sends a message of 1 KiB and is answered by the same; a GET has a body of 1 KiB.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Running, Server, cgroup::Cgroup, envoy, poll, resources};

use super::{
    arm::{Arm, Client, Load, Measured, Seconds, undisturbed},
    found::{ArmFound, Found, Series},
    http::{RATE, address},
    peers,
    rounds::{self, Goal, Rounds, Row, Scenario, ratio},
};
use crate::paths;

pub const CONNECTIONS: usize = 8;
/// Account of whoever may call.
const FRIEND: &str = "friend";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http2,
    Grpc,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    NoMesh,
    Weft,
    WeftFast,
    Envoy,
}

/// What is compared of two ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// CPU a request of the proxy.
    Proxy,
    /// The same, with as many requests as are answered.
    ProxyFull,
    /// The same of the whole machine.
    Machine,
}

/// In the order of [`Http2::arms`].
const ARMS: [(Protocol, Way); 8] = [
    (Protocol::Http2, Way::NoMesh),
    (Protocol::Http2, Way::Weft),
    (Protocol::Http2, Way::WeftFast),
    (Protocol::Http2, Way::Envoy),
    (Protocol::Grpc, Way::NoMesh),
    (Protocol::Grpc, Way::Weft),
    (Protocol::Grpc, Way::WeftFast),
    (Protocol::Grpc, Way::Envoy),
];

/// What, of which protocol and figure, ours, whose beside it, and what is to be reached.
#[rustfmt::skip]
const ROWS: [(&str, Protocol, Figure, Way, Way, Goal); 12] = [
    ("HTTP/2 vs. Envoy, requests a CPU second of the proxy", Protocol::Http2, Figure::Proxy, Way::Weft, Way::Envoy, Goal::AtLeast(3.0)),
    ("the same, short-circuit", Protocol::Http2, Figure::Proxy, Way::WeftFast, Way::Envoy, Goal::AtLeast(3.0)),
    ("as many as are answered: HTTP/2 vs. Envoy, requests a CPU second of the proxy", Protocol::Http2, Figure::ProxyFull, Way::Weft, Way::Envoy, Goal::AtLeast(3.0)),
    ("the same, short-circuit", Protocol::Http2, Figure::ProxyFull, Way::WeftFast, Way::Envoy, Goal::AtLeast(3.0)),
    ("gRPC unary vs. Envoy, requests a CPU second of the proxy", Protocol::Grpc, Figure::Proxy, Way::Weft, Way::Envoy, Goal::AtLeast(3.0)),
    ("the same, short-circuit", Protocol::Grpc, Figure::Proxy, Way::WeftFast, Way::Envoy, Goal::AtLeast(3.0)),
    ("as many as are answered: gRPC unary vs. Envoy, requests a CPU second of the proxy", Protocol::Grpc, Figure::ProxyFull, Way::Weft, Way::Envoy, Goal::AtLeast(3.0)),
    ("the same, short-circuit", Protocol::Grpc, Figure::ProxyFull, Way::WeftFast, Way::Envoy, Goal::AtLeast(3.0)),
    ("HTTP/2 vs. Envoy, of the whole machine", Protocol::Http2, Figure::Machine, Way::Weft, Way::Envoy, Goal::Told),
    ("HTTP/2 vs. no mesh, of the whole machine", Protocol::Http2, Figure::Machine, Way::Weft, Way::NoMesh, Goal::Told),
    ("gRPC unary vs. Envoy, of the whole machine", Protocol::Grpc, Figure::Machine, Way::Weft, Way::Envoy, Goal::Told),
    ("gRPC unary vs. no mesh, of the whole machine", Protocol::Grpc, Figure::Machine, Way::Weft, Way::NoMesh, Goal::Told),
];

/// Who answers.
pub enum Origin {
    Nginx(Server),
    Echo(Running),
}

struct Http2 {
    seconds: Seconds,
    arms: Vec<Arm>,
    /// Of each arm.
    measured: Vec<Figures>,
    // Ended in this order, the lab last.
    _proxies: Vec<Running>,
    _origins: Vec<Origin>,
    _outside: Cgroup,
    _lab: Lab,
}

/// A value a round.
#[derive(Default)]
struct Figures {
    paced: Vec<Measured>,
    full: Vec<Measured>,
}

/// # Errors
/// A mesh, a server or an Envoy does not start; an answer was wrong.
pub fn run(quick: bool) -> Result<Found> {
    let mut http2 = Http2::new(quick)?;
    let rows = rounds::run(&mut http2, Rounds::new(quick), |line| println!("{line}"))?;
    Ok(Found {
        rows,
        arms: http2.arms_found(),
        ..Found::default()
    })
}

// === impl Http2 ===

impl Http2 {
    fn new(quick: bool) -> Result<Self> {
        let lab = Lab::new("bench-http2")?;
        let outside = envoy::foreign_cgroup(&lab)?;
        peers::settle(&lab)?;
        start(&lab)?;
        let (mut origins, mut proxies, mut arms) = (Vec::new(), Vec::new(), Vec::new());
        // The server outside the mesh, which is Envoy's origin, too.
        let mut outsider = 0;
        for (protocol, way) in ARMS {
            if let Way::Weft | Way::WeftFast = way {
                let (arm, origin) = meshed(&lab, protocol, way)?;
                arms.push(arm);
                origins.push(origin);
                continue;
            }
            let port = protocol.port(way);
            let through = if way == Way::Envoy {
                let envoy = peers::Envoy {
                    http2: true,
                    ..peers::Envoy::one_hop(port, protocol.port(Way::NoMesh))
                };
                let envoy = envoy.start(&lab, outside.path())?;
                let pid = envoy.pid();
                proxies.push(envoy);
                vec![pid]
            } else {
                let origin = protocol.origin(&lab, way, Some(&outside))?;
                outsider = origin.pid();
                origins.push(origin);
                Vec::new()
            };
            let client = Client::start(&paths::load(), |words| {
                Running::start(envoy::in_cgroup(&lab, outside.path(), &words))
            })?;
            arms.push(Arm {
                name: protocol.arm(way),
                target: SocketAddr::from(([127, 0, 0, 1], port)),
                host: "origin".to_owned(),
                headers: Vec::new(),
                words: protocol.words(),
                proxies: through,
                origin: outsider,
                client,
            });
        }
        Ok(Self {
            seconds: Seconds::new(quick),
            measured: arms.iter().map(|_| Figures::default()).collect(),
            arms,
            _proxies: proxies,
            _origins: origins,
            _outside: outside,
            _lab: lab,
        })
    }

    /// A value a round.
    fn figure(&self, protocol: Protocol, figure: Figure, way: Way) -> Vec<f64> {
        let arms = ARMS.iter().zip(&self.measured);
        let of = arms.filter(|(arm, _)| **arm == (protocol, way));
        of.flat_map(|(_, figures)| figure.of(figures)).collect()
    }

    fn arms_found(&self) -> Vec<ArmFound> {
        let series = |(protocol, way): (Protocol, Way)| {
            let all = [
                ("CPU of the proxy a request", Figure::Proxy),
                ("CPU of the proxy a request, as many as are answered", Figure::ProxyFull),
                ("CPU of the whole machine a request", Figure::Machine),
            ];
            all.map(|(what, figure)| Series {
                what,
                unit: "µs CPU",
                values: self.figure(protocol, figure, way),
            })
        };
        let arms = self.arms.iter().zip(ARMS);
        arms.map(|(arm, of)| ArmFound {
            name: arm.name,
            series: series(of).into(),
        })
        .collect()
    }
}

impl Scenario for Http2 {
    fn round(&mut self, number: usize) -> Result<f64> {
        let loads = [Some(RATE), None].map(|rate| Load {
            rate,
            connections: CONNECTIONS,
            seconds: self.seconds.counted,
            short: false,
        });
        let mut order: Vec<usize> = (0..ARMS.len()).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        let mut stolen = 0.0;
        for index in order {
            let (Some(arm), Some(into)) = (self.arms.get_mut(index), self.measured.get_mut(index)) else {
                continue;
            };
            for load in &loads {
                let measured = undisturbed(|| arm.measure(load, self.seconds.warm_up))?;
                arm.went_through(&measured)?;
                stolen += measured.spent.disturbed();
                match load.rate {
                    Some(_) => into.paced.push(measured),
                    None => into.full.push(measured),
                }
            }
        }
        Ok(stolen)
    }

    fn drop_last(&mut self) {
        for figures in &mut self.measured {
            figures.paced.pop();
            figures.full.pop();
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(what, protocol, figure, way, peer, goal): (&str, Protocol, Figure, Way, Way, Goal)| {
            let arm = self.figure(protocol, figure, way);
            let peer = self.figure(protocol, figure, peer);
            Row {
                what: what.to_owned(),
                unit: "µs CPU",
                // Requests a CPU second are the inverse of CPU a request: the peer's over ours.
                compared: ratio(&peer, &arm),
                arm,
                peer,
                goal,
            }
        };
        ROWS.into_iter().map(row).collect()
    }
}

// === impl Figure ===

impl Figure {
    /// A value a round.
    fn of(self, figures: &Figures) -> Vec<f64> {
        let (measured, value): (_, fn(&Measured) -> f64) = match self {
            Self::Proxy => (&figures.paced, |measured| measured.proxy),
            Self::ProxyFull => (&figures.full, |measured| measured.proxy),
            Self::Machine => (&figures.paced, |measured| measured.machine),
        };
        measured.iter().map(value).collect()
    }
}

// === impl Protocol ===

impl Protocol {
    /// Where the server of this way listens, and Envoy.
    fn port(self, way: Way) -> u16 {
        let first = match self {
            Self::Http2 => 9001,
            Self::Grpc => 9011,
        };
        first + way as u16
    }

    fn service(self, way: Way) -> &'static str {
        match (self, way) {
            (Self::Http2, Way::WeftFast) => "h2-fast",
            (Self::Http2, _) => "h2",
            (Self::Grpc, Way::WeftFast) => "grpc-fast",
            (Self::Grpc, _) => "grpc",
        }
    }

    fn arm(self, way: Way) -> &'static str {
        match (self, way) {
            (Self::Http2, Way::NoMesh) => "HTTP/2, no mesh",
            (Self::Http2, Way::Weft) => "weft, HTTP/2",
            (Self::Http2, Way::WeftFast) => "weft, HTTP/2, short-circuit",
            (Self::Http2, Way::Envoy) => "Envoy, HTTP/2",
            (Self::Grpc, Way::NoMesh) => "gRPC, no mesh",
            (Self::Grpc, Way::Weft) => "weft, gRPC",
            (Self::Grpc, Way::WeftFast) => "weft, gRPC, short-circuit",
            (Self::Grpc, Way::Envoy) => "Envoy, gRPC",
        }
    }

    /// What the load generator is told.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Http2 => &["--http2", "--streams", "16"],
            Self::Grpc => &["--grpc", "1024", "--path", "/bench.Echo/Say", "--streams", "16"],
        }
    }

    /// What curl is told to speak the same.
    fn curl(self) -> &'static [&'static str] {
        match self {
            Self::Http2 => &[],
            // An empty message.
            Self::Grpc => &[
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                "--data-binary",
                "@empty-message",
            ],
        }
    }

    /// Who answers: outside the mesh in that cgroup, or as a service of it.
    fn origin(self, lab: &Lab, way: Way, outside: Option<&Cgroup>) -> Result<Origin> {
        let port = self.port(way);
        let foreign = |words: &[&str], outside: &Cgroup| Running::start(envoy::in_cgroup(lab, outside.path(), words));
        if let Self::Http2 = self {
            let nginx = Nginx::service(self.service(way)).port(80, port).http2();
            let nginx = nginx.says(&"x".repeat(peers::BODY));
            return Ok(Origin::Nginx(match outside {
                Some(outside) => nginx.start_by(lab, |words| foreign(&words, outside))?,
                None => lab.nginx(nginx)?,
            }));
        }
        let (echo, listen) = (paths::echo().display().to_string(), format!("127.0.0.1:{port}"));
        let words = [echo.as_str(), &listen];
        let started = match outside {
            Some(outside) => foreign(&words, outside),
            None => {
                let run = lab.run(self.service(way)).port(&format!("80:{port}"));
                run.start(words)
            }
        };
        peers::listening(started?, port, poll::PATIENCE).map(Origin::Echo)
    }
}

// === impl Origin ===

impl Origin {
    fn pid(&self) -> i32 {
        match self {
            Self::Nginx(server) => server.pid(),
            Self::Echo(running) => running.pid(),
        }
    }
}

/// Starts a daemon in `lab`, for [`meshed`].
///
/// # Errors
/// It does not start.
pub fn start(lab: &Lab) -> Result<()> {
    lab.resource("mesh.yaml", &mesh())?;
    // Whatever this kernel's self-test says: the rows say which arm is short-circuited.
    lab.daemon_with(&["--short-circuit", "force", "--access-log", "off"])
}

/// A service of the mesh in `lab`, and the arm that asks it.
///
/// # Errors
/// The server or the client does not start.
pub fn meshed(lab: &Lab, protocol: Protocol, way: Way) -> Result<(Arm, Origin)> {
    let origin = protocol.origin(lab, way, None)?;
    let service = protocol.service(way);
    let target = in_force(lab, protocol, service)?;
    let client = lab.run("client").account(FRIEND);
    let arm = Arm {
        name: protocol.arm(way),
        target,
        host: service.to_owned(),
        headers: Vec::new(),
        words: protocol.words(),
        proxies: vec![lab.daemon_pid()?],
        origin: origin.pid(),
        client: Client::start(&paths::load(), |words| client.start(words))?,
    };
    Ok((arm, origin))
}

/// Denied by default; account `friend` may GET from two services and call two, through the proxy.
fn mesh() -> String {
    let mut all = vec![
        resources::DENY.to_owned(),
        resources::route("reads", "/", &["GET"]),
        resources::route("calls", "/bench.Echo/", &["POST"]),
    ];
    for (protocol, rule) in [(Protocol::Http2, "reads"), (Protocol::Grpc, "calls")] {
        for (way, acceleration) in [(Way::Weft, "off"), (Way::WeftFast, "full")] {
            let service = protocol.service(way);
            all.push(resources::service_policy(
                service,
                &[&format!("acceleration: {acceleration}")],
            ));
            let name = format!("friend-{service}");
            all.push(resources::allow(&name, FRIEND, service, ("HTTPRouteGroup", rule)));
        }
    }
    all.concat()
}

/// Waits until a friend is answered over HTTP/2 and a stranger is not; where.
fn in_force(lab: &Lab, protocol: Protocol, service: &str) -> Result<SocketAddr> {
    std::fs::write(lab.work().join("empty-message"), [0; 5]).context("write an empty message")?;
    poll::until("the mesh to be in force", || {
        let target = address(lab, service)?;
        let ask = |account: &str| {
            let url = format!("http://{target}/bench.Echo/Say");
            // A refused call has status 200, and says so in its gRPC status, in a header or a trailer.
            let told = "%{http_version} %{http_code} %header{grpc-status}";
            let words = [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-m",
                "5",
                "-w",
                told,
                "--http2-prior-knowledge",
            ];
            let words = words.iter().chain(protocol.curl()).copied().chain([url.as_str()]);
            let told = lab.run("client").account(account).output(words)?.stdout;
            Ok::<_, anyhow::Error>(told.trim_end().to_owned())
        };
        let (friend, stranger) = (ask(FRIEND)?, ask("stranger")?);
        let answered = match protocol {
            Protocol::Http2 => "2 200",
            Protocol::Grpc => "2 200 0",
        };
        ensure!(friend == answered, "{service}: a friend got {friend:?}");
        ensure!(stranger != friend, "{service}: a stranger got {stranger:?}");
        Ok(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures are found by it, and Envoy's origin.
    #[test]
    fn ways_come_in_order_for_each_protocol() {
        for (index, (protocol, way)) in ARMS.into_iter().enumerate() {
            assert_eq!(protocol as usize * 4 + way as usize, index);
        }
    }
}
