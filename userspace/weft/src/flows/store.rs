use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::broadcast;
use weft_adapters::{Flow, Record, Report};

use super::FlowQuery;
use crate::admin::api::FlowCounts;

/// Flow records kept for `weft flows`. At some 300 bytes each (240, the path of a request, and names that many share) this is about
/// 3 MB; where clients write as much as is told ([`weft_adapters::MAX_TOLD`]) 60. More would show further back.
pub const FLOWS_KEPT: usize = 10_000;

/// Flows that a follower may be behind before it loses some. Larger: more memory is held by a reader that stalls.
const FOLLOWER_BUFFER: usize = 4_096;

/// The last [`FLOWS_KEPT`] flows, and everybody who waits for the next one.
#[derive(Debug)]
pub struct FlowStore {
    /// The lock orders pushes and subscriptions: a follower sees every flow once, kept or new.
    kept: Mutex<VecDeque<Arc<Flow>>>,
    next: broadcast::Sender<News>,
    seen: AtomicU64,
    lagged: Arc<AtomicU64>,
    dropped: AtomicU64,
    /// One of so many connections is reported by the kernel.
    sample: u32,
}

/// What followers are told.
#[derive(Debug, Clone)]
enum News {
    Flow(Arc<Flow>),
    Dropped(u64),
}

/// The report adapter that fills a [`FlowStore`].
#[derive(Debug)]
pub struct FlowReport(Arc<FlowStore>);

/// Receives the flows that match its query, as they happen.
#[derive(Debug)]
pub struct Follower {
    query: FlowQuery,
    next: broadcast::Receiver<News>,
    lagged: Arc<AtomicU64>,
}

/// What a [`Follower`] was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Flow(Arc<Flow>),
    /// The follower was too slow: so many flows (of any kind) passed by unseen.
    Lagged(u64),
    /// So many flows were lost before they reached the store.
    Dropped(u64),
}

// === impl FlowStore ===

impl Default for FlowStore {
    fn default() -> Self {
        Self::new(1)
    }
}

impl FlowStore {
    /// `sample`: one of so many connections gets its open and its close reported.
    pub fn new(sample: u32) -> Self {
        let (next, _) = broadcast::channel(FOLLOWER_BUFFER);
        Self {
            kept: Mutex::default(),
            next,
            seen: AtomicU64::new(0),
            lagged: Arc::default(),
            dropped: AtomicU64::new(0),
            sample,
        }
    }

    pub fn push(&self, flow: Arc<Flow>) {
        self.push_all([&flow]);
    }

    /// Several, under one lock.
    fn push_all<'f>(&self, flows: impl IntoIterator<Item = &'f Arc<Flow>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody comes while the lock is held.
        let is_followed = self.next.receiver_count() > 0;
        for flow in flows {
            if kept.len() == FLOWS_KEPT {
                kept.pop_front();
            }
            kept.push_back(Arc::clone(flow));
            self.seen.fetch_add(1, Ordering::Relaxed);
            if is_followed {
                // It fails if the last one went, which is well.
                let _ = self.next.send(News::Flow(Arc::clone(flow)));
            }
        }
    }

    /// The kept flows that match, oldest first.
    pub fn query(&self, query: &FlowQuery) -> Vec<Arc<Flow>> {
        select(&self.kept.lock().unwrap_or_else(PoisonError::into_inner), query)
    }

    /// The kept flows that match, and all that follow them, without a gap between.
    pub fn follow(&self, query: FlowQuery) -> (Vec<Arc<Flow>>, Follower) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let past = select(&kept, &query);
        (
            past,
            Follower {
                query,
                next: self.next.subscribe(),
                lagged: Arc::clone(&self.lagged),
            },
        )
    }

    /// Tells the store, and who follows, what was lost before it got here (a total, not a difference).
    pub fn set_dropped(&self, total: u64) {
        let before = self.dropped.swap(total, Ordering::Relaxed);
        if total > before {
            let _ = self.next.send(News::Dropped(total - before));
        }
    }

    pub fn counts(&self) -> FlowCounts {
        FlowCounts {
            kept: self.kept.lock().unwrap_or_else(PoisonError::into_inner).len() as u64,
            seen: self.seen.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            sample: self.sample,
        }
    }
}

fn select(kept: &VecDeque<Arc<Flow>>, query: &FlowQuery) -> Vec<Arc<Flow>> {
    let newest_first = kept.iter().rev().filter(|flow| query.matches(flow));
    let mut selected: Vec<_> = newest_first.take(query.last.unwrap_or(FLOWS_KEPT)).cloned().collect();
    selected.reverse();
    selected
}

// === impl Follower ===

impl Follower {
    /// The next flow that matches; `None` when the store is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            match self.next.recv().await {
                Ok(News::Flow(flow)) if self.query.matches(&flow) => return Some(Followed::Flow(flow)),
                Ok(News::Flow(_)) => {}
                Ok(News::Dropped(lost)) => return Some(Followed::Dropped(lost)),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.lagged.fetch_add(missed, Ordering::Relaxed);
                    return Some(Followed::Lagged(missed));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

// === impl FlowReport ===

impl FlowReport {
    pub fn new(store: Arc<FlowStore>) -> Self {
        Self(store)
    }
}

impl Report for FlowReport {
    fn name(&self) -> &str {
        "flows"
    }

    fn report(&mut self, batch: &[Record]) {
        self.0.push_all(batch.iter().filter_map(|record| match record {
            Record::Flow(flow) => Some(flow),
            Record::Edge(_) | Record::EdgesRead(_) => None, // counters: the metrics endpoint's business
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::query::tests::{denied, flow};

    #[test]
    fn the_oldest_flow_makes_room() {
        let store = FlowStore::default();
        for _ in 0..FLOWS_KEPT {
            store.push(flow());
        }
        store.push(denied());
        assert_eq!(store.query(&FlowQuery::default()).len(), FLOWS_KEPT);
        assert_eq!(store.counts().seen, FLOWS_KEPT as u64 + 1);
        assert_eq!(
            *store.query(&FlowQuery {
                last: Some(1),
                ..FlowQuery::default()
            })[0],
            *denied()
        );
    }

    #[tokio::test]
    async fn a_follower_sees_past_and_future_once() {
        let store = FlowStore::default();
        store.push(flow());
        let (past, mut follower) = store.follow(FlowQuery::default());
        store.push(denied());
        assert_eq!(past, [flow()]);
        assert_eq!(follower.next().await, Some(Followed::Flow(denied())));
        drop(store);
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed() {
        let store = FlowStore::default();
        let (_, mut follower) = store.follow(FlowQuery::default());
        for _ in 0..FOLLOWER_BUFFER + 3 {
            store.push(flow());
        }
        assert_eq!(follower.next().await, Some(Followed::Lagged(3)));
        assert_eq!(follower.next().await, Some(Followed::Flow(flow())));
        assert_eq!(store.counts().lagged, 3);
    }

    #[tokio::test]
    async fn a_follower_is_told_what_was_lost() {
        let store = FlowStore::default();
        store.set_dropped(2);
        let (_, mut follower) = store.follow(FlowQuery::default());
        store.set_dropped(2);
        store.set_dropped(7);
        store.push(flow());
        assert_eq!(follower.next().await, Some(Followed::Dropped(5)));
        assert_eq!(follower.next().await, Some(Followed::Flow(flow())));
        assert_eq!(store.counts().dropped, 7);
    }

    #[test]
    fn reports_flows_and_leaves_edges() {
        let store = Arc::new(FlowStore::default());
        FlowReport::new(Arc::clone(&store)).report(&[Record::Flow(flow())]);
        assert_eq!(store.counts().kept, 1);
    }
}
