use std::collections::{HashMap, HashSet};

use serde::Serialize;
use weft_adapters::{Destination, FlowProtocol, FlowVerdict, Peer, Side};

use super::{EdgeTotals, LatencyTotals};
use crate::admin::api::{EdgeView, EdgesView};

/// What happened between two looks. Its JSON is that of `weft top -o json`: names and meaning of its fields stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Time between the two looks.
    pub seconds: f64,
    /// Flow events lost since the programs were loaded; counters miss nothing.
    pub events_dropped: u64,
    /// Every edge, told by everyone who saw it: its ends, and a device between them.
    pub edges: Vec<Row>,
}

/// One edge as one of its ends told it, or a device between them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub reporter: Side,
    pub source: Peer,
    pub destination: Destination,
    pub protocol: FlowProtocol,
    pub verdict: FlowVerdict,
    /// Connections that live; 0 where nobody sees them end (datagrams, a device).
    pub open: u64,
    /// Connections established, or flows of datagrams begun, a second, like the following during the sample.
    pub opened_per_second: f64,
    /// From source to destination.
    pub sent_per_second: f64,
    /// From destination to source.
    pub received_per_second: f64,
    pub connect_us: Quantiles,
    pub rtt_us: Quantiles,
    /// Since the kernel's tables were made: they outlive daemons.
    pub total: Counts,
}

/// Of the sample, or if it has none, since the kernel's tables were made. `None`: not measured yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    pub p50: Option<u64>,
    pub p99: Option<u64>,
}

/// The counters of an edge without its histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub opened: u64,
    pub closed: u64,
    pub refused: u64,
    pub denied: u64,
    pub resets: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub segments_sent: u64,
    pub segments_received: u64,
    pub retransmits: u64,
    pub connect_samples: u64,
    pub rtt_samples: u64,
}

/// What tells two edges of a view apart.
type Key<'a> = (Side, &'a Peer, &'a Destination, FlowProtocol, FlowVerdict);

// === impl Sample ===

impl Sample {
    /// The rates between two looks; the second must be the later one.
    pub fn between(before: &EdgesView, now: &EdgesView) -> Self {
        let seconds = now.read_us.saturating_sub(before.read_us) as f64 / 1e6;
        let known: HashMap<Key<'_>, &EdgeTotals> = before.edges.iter().map(|edge| (key(edge), &edge.totals)).collect();
        let nothing = EdgeTotals::default();
        let edges = now.edges.iter().map(|edge| {
            let grown = edge.totals.since(known.get(&key(edge)).unwrap_or(&&nothing));
            Row::new(edge, &grown, seconds)
        });
        Self {
            seconds,
            events_dropped: now.events_dropped,
            edges: edges.collect(),
        }
    }

    /// One row an edge: what its destination tells is left out where its source tells it, too, and what a device tells where
    /// an end does. What a device denied no end has seen.
    pub fn once_each(&self) -> Vec<&Row> {
        let told_by = |side: Side| self.edges.iter().filter(move |row| row.reporter == side);
        let by_source: HashSet<_> = told_by(Side::Source).map(names).collect();
        let by_ends: HashSet<_> = told_by(Side::Source)
            .chain(told_by(Side::Destination))
            .filter(|row| row.verdict != FlowVerdict::Deny)
            .map(workloads)
            .collect();
        self.edges
            .iter()
            .filter(|row| match row.reporter {
                Side::Source => true,
                Side::Destination | Side::Proxy => !by_source.contains(&names(row)),
                Side::Device => row.verdict == FlowVerdict::Deny || !by_ends.contains(&workloads(row)),
            })
            .collect()
    }
}

fn names(row: &Row) -> (&Peer, (&str, Option<&str>, Option<&str>)) {
    let to = &row.destination;
    let names = (to.namespace.as_str(), to.service.as_deref(), to.account.as_deref());
    (&row.source, names)
}

/// Not by service: of what is reached by its own address a device may know one where the end does not.
fn workloads(row: &Row) -> (&Peer, &str, Option<&str>, bool) {
    let to = &row.destination;
    (
        &row.source,
        to.namespace.as_str(),
        to.account.as_deref(),
        row.protocol.is_tcp(),
    )
}

fn key(edge: &EdgeView) -> Key<'_> {
    (
        edge.reporter,
        &edge.source,
        &edge.destination,
        edge.protocol,
        edge.verdict,
    )
}

// === impl Row ===

impl Row {
    fn new(edge: &EdgeView, grown: &EdgeTotals, seconds: f64) -> Self {
        let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let total = &edge.totals;
        Self {
            reporter: edge.reporter,
            source: edge.source.clone(),
            destination: edge.destination.clone(),
            protocol: edge.protocol,
            verdict: edge.verdict,
            open: total.open(edge.reporter, edge.protocol),
            opened_per_second: rate(grown.opened),
            sent_per_second: rate(grown.bytes_sent),
            received_per_second: rate(grown.bytes_received),
            connect_us: Quantiles::of(&grown.connect, &total.connect),
            rtt_us: Quantiles::of(&grown.rtt, &total.rtt),
            total: Counts {
                opened: total.opened,
                closed: total.closed,
                refused: total.refused,
                denied: total.denied,
                resets: total.resets,
                bytes_sent: total.bytes_sent,
                bytes_received: total.bytes_received,
                segments_sent: total.segments_sent,
                segments_received: total.segments_received,
                retransmits: total.retransmits,
                connect_samples: total.connect.count(),
                rtt_samples: total.rtt.count(),
            },
        }
    }
}

// === impl Quantiles ===

impl Quantiles {
    fn of(sample: &LatencyTotals, since_start: &LatencyTotals) -> Self {
        let samples = if sample.count() > 0 { sample } else { since_start };
        Self {
            p50: samples.quantile(0.5),
            p99: samples.quantile(0.99),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use weft_abi::{LatencyHistogram, latency_bucket};
    use weft_adapters::EdgeDelta;

    use super::*;

    /// From default/`source` to default/web, told by the source: so many connections, 100 µs each, 10 bytes there and
    /// 2,000 back.
    pub fn delta(source: &str, opened: u32) -> EdgeDelta {
        let mut times = LatencyHistogram::default();
        (times.sum_us, times.buckets[latency_bucket(100)]) = (100 * u64::from(opened), opened);
        let opened = u64::from(opened);
        EdgeDelta {
            reporter: Side::Source,
            source: Arc::new(Peer {
                namespace: "default".into(),
                service: None,
                account: source.into(),
            }),
            destination: Arc::new(Destination {
                namespace: "default".into(),
                service: Some("web".into()),
                account: Some("web".into()),
                address: Ipv4Addr::new(240, 240, 7, 9).into(),
                port: 80,
            }),
            protocol: FlowProtocol::Tcp,
            verdict: FlowVerdict::Allow,
            history: false,
            opened,
            closed: 0,
            refused: 0,
            denied: 0,
            reset: 0,
            bytes_sent: 10 * opened,
            bytes_received: 2_000 * opened,
            segments_sent: opened,
            segments_received: opened,
            retransmits: 0,
            connect: times,
            rtt: times,
        }
    }

    /// A look at `deltas` added up, `seconds` after the start.
    pub fn view(seconds: u64, deltas: &[EdgeDelta]) -> EdgesView {
        let edges = deltas.iter().map(|delta| {
            let mut totals = EdgeTotals::default();
            totals.add(delta);
            EdgeView {
                reporter: delta.reporter,
                source: (*delta.source).clone(),
                destination: (*delta.destination).clone(),
                protocol: delta.protocol,
                verdict: delta.verdict,
                totals,
            }
        });
        EdgesView {
            read_us: seconds * 1_000_000,
            edges: edges.collect(),
            events_dropped: 0,
        }
    }

    #[test]
    fn rates_are_those_of_the_time_between() {
        let before = view(10, &[delta("a", 4)]);
        let now = view(12, &[delta("a", 24), delta("new", 6)]);
        let sample = Sample::between(&before, &now);
        let rates: Vec<_> = sample
            .edges
            .iter()
            .map(|row| (row.opened_per_second, row.sent_per_second, row.received_per_second))
            .collect();
        assert_eq!(rates, [(10.0, 100.0, 20_000.0), (3.0, 30.0, 6_000.0)]);
        assert_eq!((sample.edges[0].total.opened, sample.edges[0].open), (24, 24));
        let p50 = sample.edges[0].connect_us.p50.expect("samples");
        assert!((65..=128).contains(&p50), "{p50}");
    }

    #[test]
    fn no_time_is_no_rate() {
        let look = view(1, &[delta("a", 4)]);
        let sample = Sample::between(&look, &look);
        assert_eq!(sample.edges[0].opened_per_second, 0.0);
        assert!(
            sample.edges[0].rtt_us.p99.is_some(),
            "times are then those since the start"
        );
    }

    #[test]
    fn an_edge_that_both_ends_tell_is_shown_once() {
        let mut other_end = delta("a", 4);
        other_end.reporter = Side::Destination;
        other_end.destination = Arc::new(Destination {
            port: 8080,
            ..(*other_end.destination).clone()
        });
        let mut stranger = other_end.clone();
        stranger.source = Arc::new(Peer {
            namespace: "unknown".into(),
            service: None,
            account: "unknown".into(),
        });
        let look = view(1, &[delta("a", 4), other_end, stranger]);
        let sample = Sample::between(&look, &look);
        let shown: Vec<_> = sample
            .once_each()
            .into_iter()
            .map(|row| (row.reporter, row.source.account.as_str()))
            .collect();
        assert_eq!(shown, [(Side::Source, "a"), (Side::Destination, "unknown")]);
    }

    #[test]
    fn what_a_device_tells_is_shown_where_no_end_tells_it() {
        let by = |reporter, source| EdgeDelta {
            reporter,
            ..delta(source, 1)
        };
        let mut by_address = by(Side::Destination, "remote");
        by_address.destination = Arc::new(Destination {
            service: None,
            ..(*by_address.destination).clone()
        });
        let denied = EdgeDelta {
            verdict: FlowVerdict::Deny,
            denied: 1,
            ..by(Side::Device, "remote")
        };
        let datagrams = EdgeDelta {
            protocol: FlowProtocol::Udp,
            ..by(Side::Device, "remote")
        };
        let edges = [
            by_address,
            by(Side::Device, "remote"),
            denied,
            datagrams,
            by(Side::Device, "forwarded"),
        ];
        let look = view(1, &edges);
        let sample = Sample::between(&look, &look);
        let shown: Vec<_> = sample
            .once_each()
            .into_iter()
            .map(|row| (row.reporter, row.source.account.as_str(), row.protocol, row.verdict))
            .collect();
        let (tcp, udp) = (FlowProtocol::Tcp, FlowProtocol::Udp);
        let expected = [
            (Side::Destination, "remote", tcp, FlowVerdict::Allow),
            (Side::Device, "remote", tcp, FlowVerdict::Deny),
            (Side::Device, "remote", udp, FlowVerdict::Allow),
            (Side::Device, "forwarded", tcp, FlowVerdict::Allow),
        ];
        assert_eq!(shown, expected);
    }
}
