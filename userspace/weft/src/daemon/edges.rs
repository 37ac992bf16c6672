//! The kernel's edge counters as deltas for the reporter.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::{MissedTickBehavior, interval};
use weft_abi::{EdgeCounters, EdgeKey, action, identity, protocol, reporter};
use weft_adapters::{EdgeDelta, FlowProtocol, FlowVerdict, Record, Reporter, Side};
use weft_dataplane::{Edge, KernelError, RuleUse};

use super::{
    engine::{Engine, InForce},
    kernel,
};
use crate::flows::FlowStore;

/// How often counters are read: `/metrics` lags by at most this.
const INTERVAL: Duration = Duration::from_secs(1);
/// An edge without news for so many intervals is removed, or a port scan would fill the table for good. What is counted
/// between the last read and the removal is lost, after ten minutes of nothing.
const STALE_AFTER: u64 = 600;
/// Every so many intervals, records that nobody will read any more are removed.
const SWEEP_EVERY: u64 = 60;

/// Failed calls of the kernel programs, by site and errno.
#[derive(Debug, Clone, Default)]
pub struct KernelMetrics {
    errors: Family<ErrorLabels, Counter>,
    rules: Family<RuleLabels, Counter>,
}

/// How often a rule decided in the kernel, in connections and datagram flows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    kind: String,
    namespace: String,
    name: String,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    site: &'static str,
    errno: u32,
}

// === impl KernelMetrics ===

impl KernelMetrics {
    /// Registers `weft_kernel_errors_total` and `weft_rule_decisions_total`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_kernel_errors",
            "Calls that failed inside the kernel programs",
            self.errors.clone(),
        );
        registry.register(
            "weft_rule_decisions",
            "Connections and datagram flows that a rule decided in the kernel",
            self.rules.clone(),
        );
    }

    /// Takes over the kernel's totals; of rules whose object is known.
    fn update_rules(&self, in_force: &InForce, rules: &[RuleUse]) {
        for rule in rules {
            let Some(object) = in_force.rule(rule.rule) else {
                continue;
            };
            for (verdict, count) in [
                ("allow", rule.counters.allowed),
                ("deny", rule.counters.denied),
                ("audit", rule.counters.audited),
            ] {
                if count > 0 {
                    let counter = self.rules.get_or_create(&RuleLabels {
                        kind: object.kind.clone(),
                        namespace: object.namespace.clone().unwrap_or_default(),
                        name: object.name.clone(),
                        verdict,
                    });
                    counter.inc_by(count.saturating_sub(counter.get()));
                }
            }
        }
    }

    /// Takes over the kernel's totals; gives the number of flow events that were lost.
    fn update(&self, errors: &[KernelError]) -> u64 {
        let mut lost = 0;
        for error in errors {
            let counter = self.errors.get_or_create(&ErrorLabels {
                site: error.site,
                errno: error.errno,
            });
            counter.inc_by(error.count.saturating_sub(counter.get()));
            if error.site == "events_full" {
                lost += error.count;
            }
        }
        lost
    }
}

/// Reads until the daemon stops or hands over.
pub async fn read(reader: Arc<Mutex<Reader>>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // System calls by the thousand: not on a thread that answers DNS.
        let reader = Arc::clone(&reader);
        let work = tokio::task::spawn_blocking(move || reader.lock().unwrap_or_else(PoisonError::into_inner).tick());
        if let Err(error) = work.await {
            tracing::error!(%error, "edges are not read any more");
            return;
        }
    }
}

/// What was read last, kept while nobody reads.
pub struct Reader {
    engine: Arc<Engine>,
    reporter: Reporter,
    flows: Arc<FlowStore>,
    metrics: KernelMetrics,
    /// Counters when last read, and the tick at which they last changed.
    seen: HashMap<EdgeKey, (EdgeCounters, u64)>,
    /// Events that the ring had no room for.
    lost: u64,
    ticks: u64,
}

// === impl Reader ===

impl Reader {
    pub fn new(engine: Arc<Engine>, reporter: Reporter, flows: Arc<FlowStore>, metrics: KernelMetrics) -> Self {
        Self {
            engine,
            reporter,
            flows,
            metrics,
            seen: HashMap::new(),
            lost: 0,
            ticks: 0,
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let tick = self.ticks;
        let dataplane = Arc::clone(&self.engine.dataplane);
        match dataplane.edges() {
            Ok(edges) => self.report(tick, edges),
            Err(error) => tracing::warn!(%error, "edges cannot be read now"),
        }
        match dataplane.kernel_errors() {
            Ok(errors) => {
                let lost = self.metrics.update(&errors);
                self.flows.set_dropped(lost + self.reporter.dropped());
                if lost > self.lost {
                    // Among them may have been listeners that came or went.
                    kernel::refresh_listeners(&self.engine, None);
                    self.lost = lost;
                }
            }
            Err(error) => tracing::warn!(%error, "the programs' error counters cannot be read now"),
        }
        match dataplane.rules() {
            Ok(rules) => self.metrics.update_rules(&self.engine.in_force(), &rules),
            Err(error) => tracing::warn!(%error, "the rules' counters cannot be read now"),
        }
        if let Err(error) = dataplane.refresh_local_addresses() {
            tracing::warn!(%error, "this machine's addresses cannot be told to the kernel now");
        }
        if tick.is_multiple_of(SWEEP_EVERY)
            && let Err(error) = dataplane.sweep()
        {
            tracing::warn!(%error, "stale connection records cannot be removed now");
        }
    }

    fn report(&mut self, tick: u64, edges: Vec<Edge>) {
        let in_force = self.engine.in_force();
        let mut stale = Vec::new();
        for edge in edges {
            let (before, changed) = self.seen.get(&edge.key).copied().unwrap_or_default();
            if before != edge.counters {
                self.seen.insert(edge.key, (edge.counters, tick));
                if let Some(delta) = delta(&in_force, &edge.key, &before, &edge.counters) {
                    self.reporter.record(Record::Edge(delta));
                }
            } else if tick - changed > STALE_AFTER {
                stale.push(edge.key);
            }
        }
        for key in &stale {
            self.seen.remove(key);
        }
        if let Err(error) = self.engine.dataplane.forget_edges(&stale) {
            tracing::warn!(%error, "unused edges cannot be removed now");
        }
    }
}

/// What was added, if it is traffic of the mesh that nobody else reports.
fn delta(in_force: &InForce, key: &EdgeKey, before: &EdgeCounters, now: &EdgeCounters) -> Option<EdgeDelta> {
    // The proxy's own connections are told by its requests, with the true source.
    if before == now || key.source == identity::PROXY || key.destination == identity::PROXY {
        return None;
    }
    if key.reporter == reporter::DEVICE && key.verdict != action::DENY {
        // What passes a device is told by the sockets at its ends, where they are ours.
        return None;
    }
    let port = in_force
        .ports
        .get(&key.service)
        .and_then(|(name, port)| Some((in_force.snapshot.services.get(name)?, *port)));
    let requests = port.is_some_and(|(service, port)| service.ports[port].http) && key.verdict != action::DENY;
    if requests && key.verdict == action::REDIRECT {
        return None;
    }
    let address = port.map_or(std::net::Ipv4Addr::UNSPECIFIED, |(service, _)| service.vip4);
    Some(EdgeDelta {
        reporter: if key.reporter == reporter::SOURCE {
            Side::Source
        } else {
            Side::Destination
        },
        source: in_force.peer(key.source),
        destination: in_force.destination(key.service, key.destination, address.into(), key.port),
        protocol: if key.protocol == protocol::UDP {
            FlowProtocol::Udp
        } else {
            FlowProtocol::Tcp
        },
        verdict: match key.verdict {
            action::DENY => FlowVerdict::Deny,
            action::AUDIT => FlowVerdict::Audit,
            _ => FlowVerdict::Allow,
        },
        opened: now.opened.saturating_sub(before.opened),
        closed: now.closed.saturating_sub(before.closed),
        refused: now.refused.saturating_sub(before.refused),
        reset: now.reset.saturating_sub(before.reset),
        bytes_sent: now.bytes_sent.saturating_sub(before.bytes_sent),
        bytes_received: now.bytes_received.saturating_sub(before.bytes_received),
    })
}
