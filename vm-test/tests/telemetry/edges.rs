//! The daemon's edges beside what programs say that they sent and received.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, poll};

/// One edge as one end tells it, or a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub reporter: &'static str,
    pub source: String,
    pub destination: String,
    pub port: u16,
    pub protocol: &'static str,
    pub verdict: &'static str,
}

/// Everything that can move and is known exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub opened: u64,
    pub closed: u64,
    pub refused: u64,
    pub denied: u64,
    pub resets: u64,
    pub sent: u64,
    pub received: u64,
    /// Samples of the connect time.
    pub connects: u64,
}

pub type Edges = BTreeMap<Key, Counts>;

// === impl Counts ===

impl Counts {
    /// `connections` that opened, closed in order and carried these bytes, as their source tells it.
    pub fn orderly(connections: u64, (sent, received): (u64, u64)) -> Self {
        Self {
            opened: connections,
            closed: connections,
            sent,
            received,
            connects: connections,
            ..Self::default()
        }
    }

    /// The same told by the destination, which does not know how long connecting took.
    pub fn at_destination(self) -> Self {
        Self { connects: 0, ..self }
    }

    pub fn with_resets(self, resets: u64) -> Self {
        Self { resets, ..self }
    }
}

// === impl Key ===

impl Key {
    /// An allowed TCP edge from `client`, told by its source.
    pub fn source(destination: &str, port: u16) -> Self {
        Self {
            reporter: "source",
            source: "client".into(),
            destination: destination.into(),
            port,
            protocol: "tcp",
            verdict: "allow",
        }
    }

    /// An allowed TCP edge told by its destination.
    pub fn destination(source: &str, destination: &str, port: u16) -> Self {
        Self {
            reporter: "destination",
            source: source.into(),
            ..Self::source(destination, port)
        }
    }

    pub fn http(self) -> Self {
        Self {
            protocol: "http",
            ..self
        }
    }

    pub fn udp(self) -> Self {
        Self {
            protocol: "udp",
            ..self
        }
    }

    pub fn by_device(self) -> Self {
        Self {
            reporter: "device",
            ..self
        }
    }

    pub fn denied(self) -> Self {
        Self {
            verdict: "deny",
            ..self
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reporter,
            source,
            destination,
            port,
            protocol,
            verdict,
        } = self;
        write!(
            f,
            "{source} -> {destination}:{port} {protocol} {verdict}, by the {reporter}"
        )
    }
}

/// `GET /v1/edges`, as it is.
pub fn view(lab: &Lab) -> Result<Value> {
    let socket = lab.state().join("weft.sock").display().to_string();
    lab.outside([
        "curl",
        "-sS",
        "--fail",
        "--unix-socket",
        &socket,
        "http://weft/v1/edges",
    ])?
    .ok()?
    .json()
}

fn edges_of(view: &Value) -> Result<Vec<&Value>> {
    Ok(view["edges"].as_array().context("a list of edges")?.iter().collect())
}

/// A number of an edge's totals.
pub fn total(edge: &Value, name: &str) -> Result<u64> {
    edge["totals"][name]
        .as_u64()
        .with_context(|| format!("no number `{name}` in {edge}"))
}

/// Samples of one of its histograms.
pub fn samples(edge: &Value, name: &str) -> Result<u64> {
    let buckets = edge["totals"][name]["buckets"].as_array().context("buckets")?;
    Ok(buckets.iter().filter_map(Value::as_u64).sum())
}

fn key(edge: &Value) -> Result<Key> {
    let one_of = |text: &Value, known: &[&'static str]| {
        let text = text.as_str().unwrap_or_default();
        let found = known.iter().find(|word| **word == text).copied();
        found.with_context(|| format!("`{text}` is none of {known:?}"))
    };
    let name = |peer: &Value| {
        let name = peer["service"].as_str().or(peer["account"].as_str());
        name.unwrap_or("outside").to_owned()
    };
    Ok(Key {
        reporter: one_of(&edge["reporter"], &["source", "destination", "device"])?,
        source: name(&edge["source"]),
        destination: name(&edge["destination"]),
        port: u16::try_from(edge["destination"]["port"].as_u64().context("a port")?)?,
        protocol: one_of(&edge["protocol"], &["tcp", "http", "udp"])?,
        verdict: one_of(&edge["verdict"], &["allow", "deny"])?,
    })
}

/// Waits until the daemon's edges are exactly `wanted`, no more and no fewer.
pub fn expect(lab: &Lab, wanted: &Edges) -> Result<Value> {
    expect_where(lab, wanted, |_| true)
}

/// The same of those that `matter`. Segments cannot be known beforehand: they went both ways wherever bytes of TCP did. A
/// connection has at least one sample of its round trip time.
pub fn expect_where(lab: &Lab, wanted: &Edges, matter: impl Fn(&Key) -> bool) -> Result<Value> {
    poll::until("the edges to be what the programs did", || {
        let view = view(lab)?;
        let mut found = Edges::new();
        for edge in edges_of(&view)? {
            let key = key(edge)?;
            if !matter(&key) {
                continue;
            }
            let counts = Counts {
                opened: total(edge, "opened")?,
                closed: total(edge, "closed")?,
                refused: total(edge, "refused")?,
                denied: total(edge, "denied")?,
                resets: total(edge, "resets")?,
                sent: total(edge, "bytes_sent")?,
                received: total(edge, "bytes_received")?,
                connects: samples(edge, "connect")?,
            };
            let (out, back) = (total(edge, "segments_sent")?, total(edge, "segments_received")?);
            let began = counts.opened > 0 && key.protocol != "udp";
            ensure!(
                (!began || (out > 0 && back > 0)) && (counts.denied == 0 || (out, back) == (0, 0)),
                "{out} segments and {back} back: {edge}"
            );
            ensure!(samples(edge, "rtt")? >= counts.closed, "round trip times: {edge}");
            ensure!(found.insert(key, counts).is_none(), "twice: {edge}");
        }
        let mut wrong = Vec::new();
        for key in wanted.keys().chain(found.keys()) {
            let (want, have) = (wanted.get(key), found.get(key));
            if want != have {
                wrong.push(format!("{key}:\n  wanted {want:?}\n  found  {have:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(view)
    })
}

/// Segments sent again by all ends that tell.
pub fn retransmits(view: &Value) -> Result<u64> {
    edges_of(view)?.into_iter().map(|edge| total(edge, "retransmits")).sum()
}

/// Segments that the ends told of have sent, each told by the end that sent it.
pub fn segments(view: &Value) -> Result<u64> {
    let sent = |edge: &Value| match edge["reporter"].as_str() {
        Some("source") => total(edge, "segments_sent"),
        Some("destination") => total(edge, "segments_received"),
        _ => Ok(0),
    };
    edges_of(view)?.into_iter().map(sent).sum()
}

/// Segments sent again in the lab's network namespace, as the kernel counts them for everybody.
pub fn retransmits_of_kernel(lab: &Lab) -> Result<u64> {
    tcp_of_kernel(lab, "RetransSegs")
}

/// A counter of TCP in the lab's network namespace (RFC 4022 has their names).
pub fn tcp_of_kernel(lab: &Lab, counter: &str) -> Result<u64> {
    let text = lab.outside(["cat", "/proc/net/snmp"])?.ok()?.stdout;
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next().context("names")?, tcp.next().context("values")?);
    let place = names.split(' ').position(|name| name == counter);
    let value = values
        .split(' ')
        .nth(place.with_context(|| format!("no counter {counter}"))?)
        .context("a value")?;
    value.parse().context("a number")
}

/// What a server of `traffic` says that it received and sent over `connections`: as its clients see it, sent and received.
pub fn served(server: &Running, connections: usize) -> Result<(u64, u64)> {
    poll::until("the server to be done with its connections", || {
        let text = server.stdout();
        let told: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["served"].is_object())
            .collect();
        ensure!(
            told.len() == connections,
            "{connections} connections, it told of {told:?}"
        );
        let sum = |name: &str| told.iter().filter_map(|line| line["served"][name].as_u64()).sum();
        Ok((sum("received"), sum("sent")))
    })
}
