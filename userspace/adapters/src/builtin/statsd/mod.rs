//! Report adapter that sends counters, times and gauges to a statsd, or with tags to a dogstatsd, by UDP.
//!
//! Requests come from request events, connections from the kernel's edges, whether a proxy carried them or not. Nothing is
//! kept but the gauges: a receiver adds up.

use std::{collections::HashMap, fmt::Write, io, net::Ipv6Addr, net::SocketAddr, time::Duration};

use tokio::{
    net::{UdpSocket, lookup_host},
    time::{Instant, timeout},
};
use tracing::warn;
use weft_abi::LatencyHistogram;

use crate::{
    error::AdapterError,
    export::{Export, ExportMetrics, Exporter},
    metrics::ReportMetrics,
    native::{Context, Native, Part, Role},
    record::{EdgeDelta, Flow, FlowEvent, FlowVerdict, Record},
};

mod config;
mod metric;
mod template;

pub use config::{Config, Kind, MetricConfig};
pub use metric::{Label, Metric};
pub use template::NameTemplate;

use metric::Subject;

/// Datagrams that are sent at once at most: bounds what a burst holds in memory.
const MAX_DATAGRAMS: usize = 64;

/// Gauges that are kept: one for each edge with open connections. A connection of further edges is in the counters only.
const MAX_GAUGES: usize = 10_000;

/// How long an address is used before its name is looked up again: a receiver may move.
const RESOLVE_EVERY: Duration = Duration::from_secs(60);

/// Longest look-up of a name.
const RESOLVE_WAIT: Duration = Duration::from_secs(5);

/// What runs in the background.
pub(super) struct Statsd {
    config: Config,
    names: HashMap<Metric, NameTemplate>,
    metrics: ExportMetrics,
    /// Full datagrams, with the number of lines in each; the last may have room.
    datagrams: Vec<(String, u64)>,
    line: String,
    gauges: HashMap<String, i64>,
    socket: Option<(UdpSocket, Instant)>,
    random: u64,
    failing: bool,
}

/// Starts the adapter `name`.
///
/// # Errors
/// [`AdapterError::Config`]: a parameter is out of bounds. [`AdapterError::Background`].
pub fn start(name: &str, config: Config, metrics: &ReportMetrics) -> Result<Exporter, AdapterError> {
    config.validate()?;
    let gather = config.flush_duration;
    let metrics = ExportMetrics::of(name, metrics);
    Exporter::start(name, Statsd::new(config, metrics.clone()), wants, gather, &metrics)
}

/// What there are numbers of.
fn wants(record: &Record) -> bool {
    match record {
        Record::Flow(flow) => matches!(flow.event, FlowEvent::Request | FlowEvent::Deny),
        Record::Edge(_) => true,
        Record::EdgesRead(_) => false,
    }
}

// === impl Statsd ===

impl Statsd {
    fn new(config: Config, metrics: ExportMetrics) -> Self {
        let names = Metric::ALL
            .iter()
            .filter(|metric| config.metrics.is_empty() || config.metrics.contains_key(metric))
            .map(|&metric| {
                let given = config
                    .metrics
                    .get(&metric)
                    .and_then(|metric| metric.name_template.clone());
                let name = given.unwrap_or_else(|| NameTemplate::default_of(metric, config.tags));
                (metric, name)
            })
            .collect();
        Self {
            config,
            names,
            metrics,
            datagrams: Vec::new(),
            line: String::new(),
            gauges: HashMap::new(),
            socket: None,
            random: seed(),
            failing: false,
        }
    }

    fn on_flow(&mut self, flow: &Flow) {
        let subject = Subject::of_flow(flow);
        if flow.verdict == FlowVerdict::Deny {
            self.count(Metric::Denied, &subject, 1);
        }
        if let (FlowEvent::Request, Some(l7)) = (flow.event, &flow.l7) {
            self.count(Metric::Requests, &subject, 1);
            self.sample(Metric::RequestDuration, &subject, l7.duration.as_secs_f64() * 1e3, 1);
            self.sample(Metric::RequestBytes, &subject, l7.request_bytes as f64, 1);
            self.sample(Metric::ResponseBytes, &subject, l7.response_bytes as f64, 1);
        }
    }

    fn on_edge(&mut self, edge: &EdgeDelta) {
        let subject = Subject::of_edge(edge);
        if !edge.history {
            self.count_edge(&subject, edge);
        }
        // Else it would only grow.
        if edge.opened != edge.closed && edge.reporter.sees_ends(edge.protocol) {
            self.gauge(
                &subject,
                i64::try_from(edge.opened)
                    .unwrap_or(i64::MAX)
                    .saturating_sub_unsigned(edge.closed),
            );
        }
    }

    fn count_edge(&mut self, subject: &Subject<'_>, edge: &EdgeDelta) {
        for (metric, grown) in [
            (Metric::ConnectionsOpened, edge.opened),
            (Metric::ConnectionsClosed, edge.closed),
            (Metric::ConnectionsRefused, edge.refused),
            (Metric::ConnectionsDenied, edge.denied),
            (Metric::ConnectionsReset, edge.reset),
            (Metric::SentBytes, edge.bytes_sent),
            (Metric::ReceivedBytes, edge.bytes_received),
            (Metric::Retransmits, edge.retransmits),
        ] {
            if grown > 0 {
                self.count(metric, subject, grown);
            }
        }
        for (metric, grown) in [(Metric::ConnectDuration, &edge.connect), (Metric::Rtt, &edge.rtt)] {
            if grown.count() > 0 {
                self.sample(metric, subject, mean_ms(grown), grown.count());
            }
        }
    }

    fn count(&mut self, metric: Metric, subject: &Subject<'_>, by: u64) {
        if self.is_sampled() && self.begin(metric, subject) {
            let _ = write!(self.line, ":{by}|c");
            self.end(metric, subject, self.config.sampling_rate);
        }
    }

    /// `weight` values that are `value` on average: told as one that stands for all.
    fn sample(&mut self, metric: Metric, subject: &Subject<'_>, value: f64, weight: u64) {
        if self.is_sampled() && self.begin(metric, subject) {
            let sizes = matches!(metric, Metric::RequestBytes | Metric::ResponseBytes);
            let kind = if sizes && self.config.tags { "h" } else { "ms" };
            let _ = write!(self.line, ":{}|{kind}", (value * 1e3).round() / 1e3);
            self.end(metric, subject, self.config.sampling_rate / weight as f64);
        }
    }

    fn gauge(&mut self, subject: &Subject<'_>, by: i64) {
        let metric = Metric::Connections;
        if !self.begin(metric, subject) {
            return;
        }
        let mut key = self.line.clone();
        if self.config.tags {
            template::write_tags(metric.labels(), subject, &mut key);
        }
        let open = self.gauges.get(&key).copied().unwrap_or(0).saturating_add(by).max(0);
        if open == 0 {
            self.gauges.remove(&key);
        } else if self.gauges.len() < MAX_GAUGES || self.gauges.contains_key(&key) {
            self.gauges.insert(key, open);
        } else {
            return;
        }
        let _ = write!(self.line, ":{open}|g");
        self.end(metric, subject, 1.0);
    }

    /// Begins a line; `false` for a metric that is not wanted.
    fn begin(&mut self, metric: Metric, subject: &Subject<'_>) -> bool {
        let Some(name) = self.names.get(&metric) else {
            return false;
        };
        self.line.clear();
        if !self.config.prefix.is_empty() {
            self.line.push_str(self.config.prefix.trim_end_matches('.'));
            self.line.push('.');
        }
        name.write(subject, &mut self.line);
        true
    }

    /// Puts the line into a datagram.
    fn end(&mut self, metric: Metric, subject: &Subject<'_>, rate: f64) {
        if rate < 1.0 {
            let _ = write!(self.line, "|@{}", significant(rate));
        }
        if self.config.tags {
            template::write_tags(metric.labels(), subject, &mut self.line);
        }
        match self.datagrams.last_mut() {
            Some((datagram, lines)) if datagram.len() + 1 + self.line.len() <= self.config.flush_bytes => {
                datagram.push('\n');
                datagram.push_str(&self.line);
                *lines += 1;
            }
            _ => self.datagrams.push((self.line.clone(), 1)),
        }
    }

    fn is_sampled(&mut self) -> bool {
        // xorshift64*: which of many is left out needs no better one.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let share = (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64;
        share < self.config.sampling_rate
    }

    async fn socket(&mut self) -> io::Result<&UdpSocket> {
        if self
            .socket
            .as_ref()
            .is_some_and(|(_, made)| made.elapsed() > RESOLVE_EVERY)
        {
            self.socket = None;
        }
        let (socket, _) = match self.socket.take() {
            Some(socket) => self.socket.insert(socket),
            None => self
                .socket
                .insert((connect(&self.config.address).await?, Instant::now())),
        };
        Ok(socket)
    }
}

impl Export for Statsd {
    fn add(&mut self, record: &Record) {
        match record {
            Record::Flow(flow) => self.on_flow(flow),
            Record::Edge(edge) => self.on_edge(edge),
            Record::EdgesRead(_) => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    fn is_full(&self) -> bool {
        self.datagrams.len() >= MAX_DATAGRAMS
    }

    async fn send(&mut self) {
        for (datagram, lines) in std::mem::take(&mut self.datagrams) {
            let sent = match self.socket().await {
                Ok(socket) => socket.send(datagram.as_bytes()).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(_) => {
                    self.metrics.sent.inc_by(lines);
                    self.failing = false;
                }
                Err(error) => {
                    self.socket = None;
                    self.metrics.failures.inc();
                    self.metrics.dropped.inc_by(lines);
                    if !self.failing {
                        warn!(%error, address = self.config.address, "statsd: lines are lost until it can be reached");
                    }
                    self.failing = true;
                }
            }
        }
    }
}

async fn connect(address: &str) -> io::Result<UdpSocket> {
    let found = timeout(RESOLVE_WAIT, lookup_host(address)).await??.next();
    let receiver = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let any: SocketAddr = if receiver.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(receiver).await?;
    Ok(socket)
}

fn mean_ms(histogram: &LatencyHistogram) -> f64 {
    histogram.sum_us as f64 / histogram.count() as f64 / 1e3
}

/// Six digits: receivers read it as a decimal number, not as a power.
fn significant(rate: f64) -> f64 {
    (rate * 1e6).round().max(1.0) / 1e6
}

/// Differs from start to start; never 0.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("statsd") | 1
}

impl Native for Statsd {
    const NAME: &'static str = "statsd";
    const ABOUT: &'static str = "sends counters, times and gauges to a statsd or dogstatsd";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Report;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        Ok(Part::Report(Box::new(start(context.name, config, context.reports)?)))
    }
}

#[cfg(test)]
mod tests;
