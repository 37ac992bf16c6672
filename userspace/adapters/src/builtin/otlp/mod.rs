//! Report adapter that sends spans of requests and metrics of requests and connections by OTLP, the protocol of OpenTelemetry.
//!
//! See this folder's README for the page an operator reads.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use prost::Message;
use tracing::warn;

use crate::{
    error::AdapterError,
    export::{Export, ExportMetrics, Exporter},
    grpc::Channel,
    metrics::ReportMetrics,
    native::{Context, Native, Part, Role},
    post::Poster,
    record::{FlowEvent, Record},
    tls::Alpn,
    trace::Demand,
};

mod config;
mod numbers;
mod proto;
mod spans;

pub use config::{Config, DEFAULT_FLUSH_DURATION, DEFAULT_SAMPLE_PROBABILITY, DEFAULT_TIMEOUT, Protocol, Signal};

use numbers::Numbers;
use proto::{
    ExportMetricsRequest, ExportResponse, ExportTraces, KeyValue, METRICS, Resource, ResourceMetrics, ResourceSpans,
    Scope, ScopeMetrics, ScopeSpans, Span, TRACES,
};

/// Spans that are sent at once at most: OpenTelemetry's batch size.
const MAX_SPANS: usize = 512;

/// What runs in the background.
pub(super) struct Otlp {
    config: Config,
    headers: HeaderMap,
    resource: Resource,
    wire: Wire,
    metrics: ExportMetrics,
    spans: Option<Vec<Span>>,
    numbers: Option<Numbers>,
    /// Records that are in `numbers`, and not in `spans`.
    counted: u64,
    /// Since when `numbers` grows, in nanoseconds since 1970.
    start: u64,
    failing: bool,
    _traced: Option<Demand>,
}

enum Wire {
    Grpc(Channel),
    Http(Box<Posters>),
}

struct Posters {
    traces: Poster,
    metrics: Poster,
}

/// Starts the adapter `name`. From now on requests carry traces, if it is to send them.
///
/// # Errors
/// [`AdapterError::Config`]: a parameter is out of bounds. [`AdapterError::Background`].
pub fn start(name: &str, config: Config, metrics: &ReportMetrics) -> Result<Exporter, AdapterError> {
    config.validate()?;
    let metrics = ExportMetrics::of(name, metrics);
    let gather = config.flush_duration;
    let wants = match (config.has(Signal::Traces), config.has(Signal::Metrics)) {
        (true, false) => is_sampled,
        _ => is_counted,
    };
    Exporter::start(name, Otlp::new(config, metrics.clone())?, wants, gather, &metrics)
}

fn is_sampled(record: &Record) -> bool {
    record.trace().is_some_and(|(.., trace)| trace.sampled)
}

/// Of these all sampled ones are some.
fn is_counted(record: &Record) -> bool {
    match record {
        Record::Flow(flow) => flow.event == FlowEvent::Request,
        Record::Edge(_) => true,
        Record::EdgesRead(_) => false,
    }
}

// === impl Otlp ===

impl Otlp {
    fn new(config: Config, metrics: ExportMetrics) -> Result<Self, AdapterError> {
        let wire = match config.protocol {
            Protocol::Grpc => Wire::Grpc(Channel::new(config.server()?)),
            Protocol::Http => {
                let tls = config.tls(Alpn::Http1)?;
                Wire::Http(Box::new(Posters {
                    traces: Poster::new(config.url(Signal::Traces)?, tls.clone(), config.timeout),
                    metrics: Poster::new(config.url(Signal::Metrics)?, tls, config.timeout),
                }))
            }
        };
        let named = config.resource.contains_key("service.name");
        let name = (!named).then(|| KeyValue::text("service.name", "weft"));
        let given = config
            .resource
            .iter()
            .map(|(key, value)| KeyValue::text(key, value.as_str()));
        Ok(Self {
            headers: config.header_map()?,
            resource: Resource {
                attributes: name.into_iter().chain(given).collect(),
            },
            wire,
            metrics,
            spans: config.has(Signal::Traces).then(Vec::new),
            numbers: config.has(Signal::Metrics).then(Numbers::default),
            counted: 0,
            start: now(),
            failing: false,
            _traced: config
                .has(Signal::Traces)
                .then(|| Demand::new(config.sample_probability)),
            config,
        })
    }

    async fn send_spans(&mut self) {
        let Some(spans) = self
            .spans
            .as_mut()
            .filter(|spans| !spans.is_empty())
            .map(std::mem::take)
        else {
            return;
        };
        let count = spans.len() as u64;
        let message = ExportTraces {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans,
                }],
            }],
        };
        let limit = self.config.timeout;
        let sent = match &mut self.wire {
            Wire::Grpc(channel) => call(channel, TRACES, &self.headers, &message, limit).await,
            Wire::Http(posters) => post(&mut posters.traces, &self.headers, &message).await,
        };
        self.tell(count, sent);
    }

    async fn send_numbers(&mut self) {
        let now = now();
        let Some(numbers) = &mut self.numbers else { return };
        let metrics = numbers.take(self.start, now);
        self.start = now;
        let count = std::mem::take(&mut self.counted);
        if metrics.is_empty() {
            return;
        }
        let message = ExportMetricsRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope()),
                    metrics,
                }],
            }],
        };
        let limit = self.config.timeout;
        let sent = match &mut self.wire {
            Wire::Grpc(channel) => call(channel, METRICS, &self.headers, &message, limit).await,
            Wire::Http(posters) => post(&mut posters.metrics, &self.headers, &message).await,
        };
        self.tell(count, sent);
    }

    /// `sent`: how many of the message's parts the receiver did not want.
    fn tell(&mut self, count: u64, sent: Result<u64, String>) {
        match sent {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                self.metrics.sent.inc_by(count - rejected);
                self.metrics.dropped.inc_by(rejected);
                self.failing = false;
            }
            Err(why) => {
                self.metrics.failures.inc();
                self.metrics.dropped.inc_by(count);
                if !self.failing {
                    warn!(
                        why,
                        endpoint = self.config.endpoint,
                        "otlp: spans and metrics are lost until it takes them"
                    );
                }
                self.failing = true;
            }
        }
    }
}

impl Export for Otlp {
    fn add(&mut self, record: &Record) {
        let mut is_span = false;
        if let (Some(spans), Some((flow, l7, trace))) = (&mut self.spans, record.trace())
            && trace.sampled
        {
            spans.push(spans::span(flow, l7, trace));
            is_span = true;
        }
        let Some(numbers) = &mut self.numbers else { return };
        let has_room = match record {
            Record::Flow(flow) => flow.l7.as_ref().is_none_or(|l7| numbers.on_request(flow, l7)),
            Record::Edge(edge) => numbers.on_edge(edge),
            Record::EdgesRead(_) => true,
        };
        // Each record is told of once.
        if is_span {
            return;
        }
        if has_room {
            self.counted += 1;
        } else {
            self.metrics.dropped.inc();
        }
    }

    fn is_empty(&self) -> bool {
        self.counted == 0 && self.spans.as_ref().is_none_or(Vec::is_empty)
    }

    fn is_full(&self) -> bool {
        self.spans.as_ref().is_some_and(|spans| spans.len() >= MAX_SPANS)
    }

    async fn send(&mut self) {
        self.send_spans().await;
        self.send_numbers().await;
    }
}

async fn call(
    channel: &Channel,
    method: &'static str,
    headers: &HeaderMap,
    message: &impl Message,
    limit: Duration,
) -> Result<u64, String> {
    let answer: Result<ExportResponse, _> = channel.call(method, headers, message, limit).await;
    answer.map(rejected).map_err(|error| error.to_string())
}

async fn post(poster: &mut Poster, headers: &HeaderMap, message: &impl Message) -> Result<u64, String> {
    let answer = poster
        .post("application/x-protobuf", headers, message.encode_to_vec().into())
        .await
        .map_err(|error| error.to_string())?;
    // Whoever says success, and something else beside, took it all.
    Ok(ExportResponse::decode(answer).map(rejected).unwrap_or_default())
}

fn rejected(answer: ExportResponse) -> u64 {
    let partial = answer.partial_success.unwrap_or_default();
    u64::try_from(partial.rejected).unwrap_or_default()
}

fn scope() -> Scope {
    Scope {
        name: "weft".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn now() -> u64 {
    spans::nanos(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

// === impl Config ===

impl Config {
    fn has(&self, signal: Signal) -> bool {
        self.signals.contains(&signal)
    }
}

impl Native for Otlp {
    const NAME: &'static str = "otlp";
    const ABOUT: &'static str = "sends spans and metrics by OTLP, the protocol of OpenTelemetry";
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
