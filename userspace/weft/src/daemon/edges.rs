//! The kernel's edge counters as deltas for the reporter.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::{MissedTickBehavior, interval};
use weft_abi::{EdgeCounters, EdgeKey, RuleCounters, action, identity};
use weft_adapters::{Destination, EdgeDelta, FlowProtocol, FlowVerdict, Peer, Record, Reporter, Side};
use weft_dataplane::{Edge, KernelError, RuleUse};
use weft_policy::ObjectRef;

use super::{
    engine::{Engine, InForce},
    hand_over::{Gate, HandedOver},
    keepers::goes_on,
    kernel,
    names::UNKNOWN,
};
use crate::flows::FlowStore;

/// How often counters are read: `/metrics` lags by at most this.
const INTERVAL: Duration = Duration::from_secs(1);
/// An edge without news and without connections for so many intervals is removed, or a port scan would fill the table for
/// good; and so is a rule whose object is gone, with its metrics. What is counted between the last read and the removal is lost, after ten minutes of nothing.
const STALE_AFTER: u64 = 600;
/// At the start and every so many intervals, records that nobody will read any more are removed: a daemon that never lives
/// that long would let them fill the tables. More often than flows of datagrams become idle in a crowded table.
const SWEEP_EVERY: u64 = 20;

/// What the kernel programs could not do.
#[derive(Debug, Clone, Default)]
pub struct KernelMetrics {
    /// By site and errno.
    errors: Family<ErrorLabels, Counter>,
    rules: Family<RuleLabels, Counter>,
    /// Those errors that an operator asks for by name: events that found the ring full.
    events_dropped: Counter,
}

/// How often a rule decided in the kernel, in connections and datagram flows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    kind: String,
    namespace: String,
    name: String,
    verdict: &'static str,
}

const VERDICTS: [&str; 3] = ["allow", "deny", "audit"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    site: &'static str,
    errno: u32,
}

// === impl RuleLabels ===

impl RuleLabels {
    fn new(object: &ObjectRef, verdict: &'static str) -> Self {
        Self {
            kind: object.kind.to_string(),
            namespace: object.namespace.as_deref().unwrap_or_default().to_owned(),
            name: object.name.clone(),
            verdict,
        }
    }
}

// === impl KernelMetrics ===

impl KernelMetrics {
    /// Registers `weft_kernel_errors_total`, `weft_rule_decisions_total` and `weft_flow_events_dropped_total`.
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
        registry.register(
            "weft_flow_events_dropped",
            "Opens, closes and denials that found the kernel's ring buffer full; counters have them all the same",
            self.events_dropped.clone(),
        );
    }

    /// Takes over the kernel's totals; of rules whose object is known.
    fn update_rules(&self, in_force: &InForce, rules: &[RuleUse]) {
        for rule in rules {
            let Some(object) = in_force.rule(rule.rule) else {
                continue;
            };
            let counted = [rule.counters.allowed, rule.counters.denied, rule.counters.audited];
            for (verdict, count) in VERDICTS.into_iter().zip(counted) {
                if count > 0 {
                    let counter = self.rules.get_or_create(&RuleLabels::new(&object, verdict));
                    counter.inc_by(count.saturating_sub(counter.get()));
                }
            }
        }
    }

    /// Takes rules out that the kernel does not count any more.
    fn forget_rules(&self, in_force: &InForce, rules: &[u32]) {
        for object in rules.iter().filter_map(|rule| in_force.rule(*rule)) {
            for verdict in VERDICTS {
                self.rules.remove(&RuleLabels::new(&object, verdict));
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
        self.events_dropped
            .inc_by(lost.saturating_sub(self.events_dropped.get()));
        lost
    }
}

/// Reads until the daemon stops or hands over.
pub async fn read(reader: Arc<Mutex<Reader>>, gate: Arc<Gate>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // System calls by the thousand: not on a thread that answers DNS.
        let (reader, gate) = (Arc::clone(&reader), Arc::clone(&gate));
        let work = tokio::task::spawn_blocking(move || {
            let _pass = gate.enter()?;
            reader.lock().unwrap_or_else(PoisonError::into_inner).tick();
            Ok::<_, HandedOver>(())
        });
        if !goes_on(work.await) {
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
    seen: HashMap<EdgeKey, Seen>,
    /// Edges of the first reading, which is of what was counted before, that are not told yet; `None`: nothing is read yet.
    history: Option<HashSet<EdgeKey>>,
    rules: Rules,
    /// Events that the ring had no room for.
    lost: u64,
    ticks: u64,
}

/// What is known of an edge.
struct Seen {
    /// When last read.
    counters: EdgeCounters,
    /// Tick at which they last changed.
    changed: u64,
    names: Names,
}

/// Rules by number: what was last read, and the tick at which it last changed.
#[derive(Default)]
struct Rules(HashMap<u32, (RuleCounters, u64)>);

// === impl Rules ===

impl Rules {
    /// Those whose object is gone and which have decided nothing for [`STALE_AFTER`]: no flow of theirs is left to be judged.
    fn stale(&mut self, tick: u64, in_force: &InForce, rules: &[RuleUse]) -> Vec<u32> {
        let mut unused = Vec::new();
        for RuleUse { rule, counters } in rules {
            let (before, changed) = self.0.entry(*rule).or_insert((*counters, tick));
            if before != counters {
                (*before, *changed) = (*counters, tick);
            } else if tick - *changed > STALE_AFTER {
                unused.push(*rule);
            }
        }
        if !unused.is_empty() {
            let is_there = |object: Arc<ObjectRef>| in_force.status(&object).is_some() || object.kind == DEFAULTS;
            unused.retain(|rule| !in_force.rule(*rule).is_some_and(is_there));
        }
        for rule in &unused {
            self.0.remove(rule);
        }
        unused
    }
}

/// Its rules hold where nobody has written one, too.
const DEFAULTS: &str = "MeshConfig";

/// Who an edge is between. Kept: its last counts may come when its workload is gone, and its service with it.
#[derive(Clone)]
struct Names {
    source: Arc<Peer>,
    destination: Arc<Destination>,
    /// Requests are looked at there, and connections to it go by the proxy.
    http: bool,
    proxied: bool,
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
            history: None,
            rules: Rules::default(),
            lost: 0,
            ticks: 0,
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let tick = self.ticks;
        let dataplane = Arc::clone(&self.engine.dataplane);
        match dataplane.edges() {
            Ok(edges) => self.report(tick, Instant::now(), edges),
            Err(error) => tracing::warn!(%error, "edges cannot be read now"),
        }
        match dataplane.kernel_errors() {
            Ok(errors) => {
                // First: whoever sees the metric finds it there.
                self.engine.full_tables.note(&errors, Instant::now());
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
            Ok(rules) => self.count_rules(tick, &rules),
            Err(error) => tracing::warn!(%error, "the rules' counters cannot be read now"),
        }
        if let Err(error) = dataplane.refresh_local_addresses() {
            tracing::warn!(%error, "this machine's addresses cannot be told to the kernel now");
        }
        if tick % SWEEP_EVERY == 1
            && let Err(error) = dataplane.sweep()
        {
            tracing::warn!(%error, "stale connection records cannot be removed now");
        }
    }

    fn count_rules(&mut self, tick: u64, rules: &[RuleUse]) {
        let in_force = self.engine.in_force();
        self.metrics.update_rules(&in_force, rules);
        let stale = self.rules.stale(tick, &in_force, rules);
        match self.engine.dataplane.forget_rules(&stale) {
            Ok(()) => self.metrics.forget_rules(&in_force, &stale),
            Err(error) => tracing::warn!(%error, "counters of rules that are gone cannot be removed now"),
        }
    }

    fn report(&mut self, tick: u64, read: Instant, edges: Vec<Edge>) {
        let in_force = self.engine.in_force();
        let mut stale = Vec::new();
        let history = (self.history).get_or_insert_with(|| edges.iter().map(|edge| edge.key).collect());
        for Edge { key, counters } in edges {
            let seen = self.seen.get(&key);
            let before = seen.map(|seen| seen.counters).unwrap_or_default();
            // One that is new is noted even if nothing is counted yet: its first count may come this moment.
            if seen.is_none() || before != counters {
                let names = Names::of(&in_force, &key, seen.map(|seen| &seen.names));
                let grown = counters.since(&before);
                let told =
                    match delta(&key, &names, &grown, history.contains(&key)).filter(|_| grown != EdgeCounters::ZERO) {
                        // No room: what is not told now is part of the next difference.
                        Some(delta) => self.reporter.offer(Record::Edge(Box::new(delta))),
                        None => true,
                    };
                if told {
                    history.remove(&key);
                    let changed = tick;
                    let seen = Seen {
                        counters,
                        changed,
                        names,
                    };
                    self.seen.insert(key, seen);
                }
            } else if !key.is_overflow()
                && !lives(&key, &counters)
                && seen.is_some_and(|seen| tick - seen.changed > STALE_AFTER)
            {
                stale.push(key);
            }
        }
        // Without room for it `weft top` sees this reading with the next.
        let _ = self.reporter.offer(Record::EdgesRead(read));
        for key in &stale {
            self.seen.remove(key);
        }
        if let Err(error) = self.engine.dataplane.forget_edges(&stale) {
            tracing::warn!(%error, "unused edges cannot be removed now");
        }
    }
}

/// Whether connections of it are open: their last counts are to come. (A denial opens nothing; datagrams and devices close
/// nothing.)
fn lives(key: &EdgeKey, counters: &EdgeCounters) -> bool {
    let sees_ends = kernel::side(key.reporter).sees_ends(kernel::flow_protocol(key.protocol));
    sees_ends && key.verdict != action::DENY && counters.opened > counters.closed
}

// === impl Names ===

impl Names {
    /// As of now; what is not known any more, as of before.
    fn of(in_force: &InForce, key: &EdgeKey, before: Option<&Self>) -> Self {
        let port = in_force
            .ports
            .get(&key.service)
            .and_then(|(name, port)| Some((in_force.snapshot.services.get(name)?, *port)));
        let address = port.map_or(std::net::Ipv4Addr::UNSPECIFIED, |(service, _)| service.vip4);
        let mut names = Self {
            source: in_force.peer(key.source),
            destination: in_force.destination(key.service, key.destination, address.into(), key.port),
            http: port.is_some_and(|(service, port)| service.ports[port].http),
            proxied: port.is_some_and(|(service, port)| service.ports[port].proxied.is_some()),
        };
        if let Some(before) = before {
            let known = |destination: &Destination| (destination.service.is_some(), destination.account.is_some());
            if known(&before.destination) > known(&names.destination) {
                names.destination = Arc::clone(&before.destination);
                (names.http, names.proxied) = (before.http, before.proxied);
            }
            if names.source.account == UNKNOWN && before.source.account != UNKNOWN {
                names.source = Arc::clone(&before.source);
            }
        }
        names
    }
}

/// What was added, in names; `None` where somebody dials the daemon itself.
fn delta(key: &EdgeKey, names: &Names, grown: &EdgeCounters, history: bool) -> Option<EdgeDelta> {
    if key.destination == identity::PROXY {
        return None;
    }
    let denied = key.verdict == action::DENY;
    let proxied = match key.verdict {
        action::REDIRECT => true,
        action::AUDIT => names.proxied,
        _ => key.source == identity::PROXY,
    };
    let reporter = kernel::side(key.reporter);
    // The kernel counts what an end sent, at a device what the source did; this tells what the source did.
    let by_source = |sent, received| match reporter {
        Side::Destination => (received, sent),
        Side::Source | Side::Device | Side::Proxy => (sent, received),
    };
    let (bytes_sent, bytes_received) = by_source(grown.bytes_sent, grown.bytes_received);
    let (segments_sent, segments_received) = by_source(grown.segments_sent, grown.segments_received);
    Some(EdgeDelta {
        reporter,
        source: Arc::clone(&names.source),
        destination: Arc::clone(&names.destination),
        protocol: match kernel::flow_protocol(key.protocol) {
            FlowProtocol::Tcp if proxied && names.http => FlowProtocol::Http,
            other => other,
        },
        verdict: match key.verdict {
            action::DENY => FlowVerdict::Deny,
            action::AUDIT => FlowVerdict::Audit,
            _ => FlowVerdict::Allow,
        },
        history,
        opened: if denied { 0 } else { grown.opened },
        denied: if denied { grown.opened } else { 0 },
        closed: grown.closed,
        refused: grown.refused,
        reset: grown.reset,
        bytes_sent,
        bytes_received,
        segments_sent,
        segments_received,
        retransmits: grown.retransmits,
        connect: grown.connect,
        rtt: grown.rtt,
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use weft_abi::{protocol, reporter};
    use weft_policy::{ObjectState, ObjectStatus, RuleId, Snapshot};

    use super::*;

    fn object(kind: &str, name: &str) -> ObjectRef {
        ObjectRef {
            kind: kind.to_owned().into(),
            namespace: Some("default".into()),
            name: name.to_owned(),
        }
    }

    /// Rules 1 to 3, of which the objects of `there` (in order) are in force.
    fn in_force(there: &[&ObjectRef]) -> InForce {
        let rules = [
            object("TrafficTarget", "kept"),
            object("TrafficTarget", "gone"),
            object("MeshConfig", "mesh"),
        ];
        let statuses = there.iter().map(|object| ObjectStatus {
            object: Arc::new((*object).clone()),
            state: ObjectState::Accepted,
            reason: "".into(),
        });
        let snapshot = Snapshot {
            statuses: statuses.collect(),
            rules: (1..).map(RuleId).zip(rules.map(Arc::new)).collect(),
            ..Snapshot::default()
        };
        InForce {
            snapshot: Arc::new(snapshot),
            ..InForce::default()
        }
    }

    /// From identity 300 to port 80 of 301.
    fn edge(protocol: u8, reporter: u8) -> EdgeKey {
        EdgeKey {
            source: 300,
            destination: 301,
            port: 80,
            protocol,
            verdict: action::ALLOW,
            reporter,
            ..EdgeKey::default()
        }
    }

    #[test]
    fn whoever_tells_of_an_edge_says_what_its_source_sent() {
        let grown = EdgeCounters {
            opened: 1,
            bytes_sent: 10,
            bytes_received: 20,
            ..EdgeCounters::ZERO
        };
        for (reporter, side, bytes) in [
            (reporter::SOURCE, Side::Source, (10, 20)),
            (reporter::DESTINATION, Side::Destination, (20, 10)),
            (reporter::DEVICE, Side::Device, (10, 20)),
        ] {
            let key = edge(protocol::UDP, reporter);
            let told = delta(&key, &Names::of(&InForce::default(), &key, None), &grown, false).expect("an edge");
            assert_eq!((told.reporter, told.protocol), (side, FlowProtocol::Udp));
            assert_eq!(
                (told.opened, (told.bytes_sent, told.bytes_received)),
                (1, bytes),
                "{side:?}"
            );
        }
    }

    /// Else an edge whose ends nobody sees would stay for good.
    #[test]
    fn only_where_ends_are_seen_does_an_edge_live_by_its_connections() {
        let open = EdgeCounters {
            opened: 1,
            ..EdgeCounters::ZERO
        };
        for (key, expect) in [
            (edge(protocol::TCP, reporter::SOURCE), true),
            (edge(protocol::TCP, reporter::DESTINATION), true),
            (edge(protocol::TCP, reporter::DEVICE), false),
            (edge(protocol::UDP, reporter::SOURCE), false),
        ] {
            assert_eq!(lives(&key, &open), expect, "{key:?}");
        }
    }

    fn uses(allowed: [u64; 3]) -> Vec<RuleUse> {
        let one = |(rule, allowed)| RuleUse {
            rule,
            counters: RuleCounters {
                allowed,
                ..RuleCounters::default()
            },
        };
        (1..).zip(allowed).map(one).collect()
    }

    #[test]
    fn a_rule_whose_object_is_gone_is_forgotten_once_it_decides_nothing_any_more() {
        let (kept, gone) = (object("TrafficTarget", "kept"), object("TrafficTarget", "gone"));
        let (both, one) = (in_force(&[&gone, &kept]), in_force(&[&kept]));
        let mut rules = Rules::default();
        let none: Vec<u32> = Vec::new();
        assert_eq!(rules.stale(1, &both, &uses([1, 1, 1])), none);
        assert_eq!(
            rules.stale(STALE_AFTER + 2, &both, &uses([1, 1, 1])),
            none,
            "its object is there"
        );
        // A flow that was allowed by it before it went.
        assert_eq!(rules.stale(STALE_AFTER + 3, &one, &uses([1, 2, 1])), none);
        assert_eq!(rules.stale(2 * STALE_AFTER + 3, &one, &uses([1, 2, 1])), none);
        assert_eq!(rules.stale(2 * STALE_AFTER + 4, &one, &uses([1, 2, 1])), [2]);

        let metrics = KernelMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("encoded");
            text
        };
        metrics.update_rules(&one, &uses([1, 2, 1]));
        assert!(text().contains("name=\"gone\",verdict=\"allow\"} 2"), "{}", text());
        metrics.forget_rules(&one, &[2]);
        assert!(
            !text().contains("\"gone\"") && text().contains("\"kept\""),
            "{}",
            text()
        );
        // It came again, and the kernel counts anew.
        metrics.update_rules(&both, &uses([1, 1, 1]));
        assert!(text().contains("name=\"gone\",verdict=\"allow\"} 1"), "{}", text());
    }
}
