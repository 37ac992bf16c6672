use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use weft_adapters::{Destination, EdgeDelta, FlowProtocol, FlowVerdict, Peer, Record, Report, Side};

use super::EdgeTotals;
use crate::admin::api::{EdgeView, EdgesView};

/// An edge without news and without connections for so long is forgotten.
const STALE_AFTER: Duration = Duration::from_secs(600);
/// Most edges kept; the kernel's own table is of this order. What is new beyond is not shown (metrics have it).
const MAX_EDGES: usize = 65_536;
/// Deltas that wait for their reading to be whole. More than the kernel has edges, so a reading never exceeds it.
const MAX_PENDING: usize = 65_536;

/// Totals of all edges since the kernel's tables were made, as of the last complete reading of the kernel's counters.
#[derive(Debug)]
pub struct EdgeStore {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the kernel was read last.
    read: Duration,
    edges: HashMap<Key, Entry>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    reporter: Side,
    source: Arc<Peer>,
    destination: Arc<Destination>,
    protocol: FlowProtocol,
    verdict: FlowVerdict,
}

#[derive(Debug)]
struct Entry {
    totals: EdgeTotals,
    changed: Duration,
}

/// The report adapter that fills an [`EdgeStore`].
#[derive(Debug)]
pub struct EdgeReport {
    store: Arc<EdgeStore>,
    /// Of a reading that is not complete.
    pending: Vec<EdgeDelta>,
}

// === impl EdgeStore ===

impl Default for EdgeStore {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl EdgeStore {
    /// All edges, in no order.
    pub fn view(&self) -> EdgesView {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let edges = state.edges.iter().map(|(key, entry)| EdgeView {
            reporter: key.reporter,
            source: (*key.source).clone(),
            destination: (*key.destination).clone(),
            protocol: key.protocol,
            verdict: key.verdict,
            totals: entry.totals,
        });
        EdgesView {
            read_us: u64::try_from(state.read.as_micros()).unwrap_or(u64::MAX),
            edges: edges.collect(),
            events_dropped: 0,
        }
    }

    fn apply(&self, read: Instant, deltas: impl Iterator<Item = EdgeDelta>) {
        let now = read.saturating_duration_since(self.started);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.read = now;
        for delta in deltas {
            let key = Key {
                reporter: delta.reporter,
                source: Arc::clone(&delta.source),
                destination: Arc::clone(&delta.destination),
                protocol: delta.protocol,
                verdict: delta.verdict,
            };
            if state.edges.len() >= MAX_EDGES && !state.edges.contains_key(&key) {
                continue;
            }
            let entry = state.edges.entry(key).or_insert_with(|| Entry {
                totals: EdgeTotals::default(),
                changed: now,
            });
            entry.totals.add(&delta);
            entry.changed = now;
        }
        state.edges.retain(|key, entry| {
            let is_fresh = now.saturating_sub(entry.changed) < STALE_AFTER;
            is_fresh || entry.totals.open(key.reporter, key.protocol) > 0
        });
    }
}

// === impl EdgeReport ===

impl EdgeReport {
    pub fn new(store: Arc<EdgeStore>) -> Self {
        Self {
            store,
            pending: Vec::new(),
        }
    }
}

impl Report for EdgeReport {
    fn name(&self) -> &str {
        "edges"
    }

    fn report(&mut self, batch: &[Record]) {
        for record in batch {
            match record {
                Record::Edge(delta) if self.pending.len() < MAX_PENDING => self.pending.push((**delta).clone()),
                // A reading whose end was never told: better late than without bound.
                Record::Edge(delta) => {
                    let all = self.pending.drain(..).chain([(**delta).clone()]);
                    self.store.apply(Instant::now(), all);
                }
                Record::EdgesRead(at) => self.store.apply(*at, self.pending.drain(..)),
                Record::Flow(_) => {} // events: `weft flows`
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edges::sample::tests::delta;

    #[test]
    fn a_reading_is_seen_whole_or_not_at_all() {
        let store = Arc::new(EdgeStore::default());
        let mut report = EdgeReport::new(Arc::clone(&store));
        report.report(&[
            Record::Edge(Box::new(delta("a", 3))),
            Record::Edge(Box::new(delta("b", 1))),
        ]);
        assert_eq!(store.view().edges, []);
        let read = Instant::now();
        report.report(&[Record::EdgesRead(read)]);
        report.report(&[Record::Edge(Box::new(delta("a", 4)))]);
        let view = store.view();
        let mut opened: Vec<_> = view.edges.iter().map(|edge| edge.totals.opened).collect();
        opened.sort_unstable();
        assert_eq!(opened, [1, 3]);
        report.report(&[Record::EdgesRead(read + Duration::from_secs(1))]);
        assert_eq!(store.view().read_us - view.read_us, 1_000_000);
        assert!(store.view().edges.iter().any(|edge| edge.totals.opened == 7));
    }

    #[test]
    fn an_edge_goes_ten_minutes_after_its_last_connection() {
        let store = Arc::new(EdgeStore::default());
        let mut report = EdgeReport::new(Arc::clone(&store));
        let start = Instant::now();
        report.report(&[Record::Edge(Box::new(delta("a", 1))), Record::EdgesRead(start)]);
        report.report(&[Record::EdgesRead(start + STALE_AFTER * 2)]);
        assert_eq!(store.view().edges.len(), 1, "its connection lives");
        let closed = EdgeDelta {
            opened: 0,
            closed: 1,
            ..delta("a", 0)
        };
        report.report(&[
            Record::Edge(Box::new(closed)),
            Record::EdgesRead(start + STALE_AFTER * 2),
        ]);
        assert_eq!(store.view().edges.len(), 1);
        report.report(&[Record::EdgesRead(start + STALE_AFTER * 3)]);
        assert_eq!(store.view().edges, []);
    }

    #[test]
    fn an_edge_whose_ends_nobody_sees_goes_ten_minutes_after_its_last_news() {
        let store = Arc::new(EdgeStore::default());
        let mut report = EdgeReport::new(Arc::clone(&store));
        let start = Instant::now();
        let datagrams = EdgeDelta {
            protocol: FlowProtocol::Udp,
            ..delta("a", 1)
        };
        let packets = EdgeDelta {
            reporter: Side::Device,
            ..delta("a", 1)
        };
        report.report(&[
            Record::Edge(Box::new(datagrams)),
            Record::Edge(Box::new(packets)),
            Record::EdgesRead(start),
        ]);
        assert_eq!(store.view().edges.len(), 2);
        report.report(&[Record::EdgesRead(start + STALE_AFTER * 2)]);
        assert_eq!(store.view().edges, []);
    }
}
