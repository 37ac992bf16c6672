//! From the request path to the report adapters without ever waiting.
//!
//! ```text
//! worker 0  Reporter --try_send--> ring 0 --+
//! worker 1  Reporter --try_send--> ring 1 --+--> reporter thread --batches--> prometheus, stdio, flows, ...
//! kernel    Reporter --try_send--> ring 2 --+
//! ```
//! A ring is a bounded queue; a worker that finds its own full drops the record and counts it. The thread sleeps while
//! all rings are empty and is woken by the first record; it then waits [`GATHER`] so that a busy mesh is
//! reported in batches instead of one wake-up a request.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing::{error, warn};

use crate::{error::AdapterError, metrics::ReportMetrics, record::Record};

/// Records a ring holds: a burst of 8192 requests of one worker within [`GATHER`] (400,000 a second) is not
/// lost. Costs about a megabyte a ring; a larger one only hides an adapter that is too slow.
pub const RING_CAPACITY: usize = 8192;

/// Records handed over at once; bounds the memory of a batch, not of the queue.
pub const BATCH_MAX: usize = 1024;

/// How long the thread lets records gather after it found few. Longer saves wake-ups, and makes `weft flows --follow`
/// and `/metrics` lag by as much.
pub const GATHER: Duration = Duration::from_millis(20);

/// What adapters together get to write out their last records at shutdown. Less than what the daemon gives the reporter,
/// so that a receiver that is gone does not make a shutdown look like a failure.
pub const FLUSH_WAIT: Duration = Duration::from_millis(1500);

/// Longest sleep of an idle thread: a backstop, should a wake-up ever get lost.
const IDLE: Duration = Duration::from_secs(1);

/// An adapter that is told what happened. Runs on the reporter's thread and must not wait for a network there (see
/// [`crate::export`]): rings would fill up and records be dropped for all, though requests are never held up.
pub trait Report: Send {
    fn name(&self) -> &str;

    /// Some records, oldest first within each worker.
    fn report(&mut self, batch: &[Record]);

    /// At shutdown: write out what is buffered, or begin to.
    fn flush(&mut self) {}

    /// Last call: returns when what was flushed is written out, and at `deadline`.
    fn wait(&mut self, _deadline: Instant) {}
}

/// One worker's way in. Clones share the worker's ring.
#[derive(Debug, Clone)]
pub struct Reporter {
    ring: SyncSender<Record>,
    shared: Arc<Shared>,
    dropped: Counter,
}

/// The thread that drains the rings. Dropping it ends the thread without waiting for it.
#[derive(Debug)]
pub struct ReporterThread {
    control: ReporterControl,
    done: Receiver<()>,
}

/// Adds and takes away adapters while the thread runs. Clones are the same.
#[derive(Debug, Clone)]
pub struct ReporterControl {
    changes: Sender<Change>,
    shared: Arc<Shared>,
    metrics: ReportMetrics,
}

/// An adapter that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReporterId(u64);

enum Change {
    /// In the place of the other, if that is still there.
    Add(Told, Option<ReporterId>),
    Remove(ReporterId),
}

/// An adapter of the thread.
struct Told {
    /// Of one that was added while the thread runs.
    id: Option<ReporterId>,
    adapter: Box<dyn Report>,
    /// Its panics. Made when it comes, so that the series of one that is gone does not come again.
    failed: Counter,
}

#[derive(Debug, Default)]
struct Shared {
    /// The thread found every ring empty and sleeps, or is about to.
    asleep: AtomicBool,
    stop: AtomicBool,
    last_id: AtomicU64,
    thread: OnceLock<Thread>,
}

/// State of the thread itself.
struct Drain {
    rings: Vec<Receiver<Record>>,
    /// The ring to begin with, so that a busy one does not starve the others.
    first: usize,
    adapters: Vec<Told>,
    changes: Receiver<Change>,
    batch: Vec<Record>,
    shared: Arc<Shared>,
    delivered: Counter,
}

// === impl Reporter ===

impl Reporter {
    /// Hands a record over. Never blocks and never allocates; a full ring (or an ended reporter) drops the record and
    /// counts it in `weft_report_dropped_total`.
    pub fn record(&self, record: Record) {
        if !self.offer(record) {
            self.dropped.inc();
        }
    }

    /// The same for what can be told later: `false` if there was no room, and nothing is counted.
    #[must_use]
    pub fn offer(&self, record: Record) -> bool {
        if self.ring.try_send(record).is_err() {
            return false;
        }
        // Either we see `asleep` here, or the thread sees the record in the look it takes after setting it.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.shared.wake();
        }
        true
    }

    /// Records of all workers that were lost so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}

// === impl ReporterThread ===

impl ReporterThread {
    /// Starts the thread with `rings` rings, one a worker (plus one for whoever reads the kernel's events).
    ///
    /// # Errors
    /// [`AdapterError::Thread`]: the system gave no thread.
    pub fn start(
        adapters: Vec<Box<dyn Report>>,
        rings: usize,
        metrics: ReportMetrics,
    ) -> Result<(Self, Vec<Reporter>), AdapterError> {
        let shared = Arc::new(Shared::default());
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..rings).map(|_| sync_channel(RING_CAPACITY)).unzip();
        let (finished, done) = sync_channel(1);
        let (change, changes) = channel();
        let drain = Drain {
            rings: receivers,
            first: 0,
            adapters: adapters
                .into_iter()
                .map(|adapter| Told::new(None, adapter, &metrics))
                .collect(),
            changes,
            batch: Vec::with_capacity(BATCH_MAX),
            shared: shared.clone(),
            delivered: metrics.delivered.clone(),
        };
        let handle = thread::Builder::new()
            .name("weft-report".to_owned())
            .spawn(move || {
                drain.run();
                // Whoever waits may be gone already.
                let _ = finished.send(());
            })
            .map_err(|source| AdapterError::Thread { source })?;
        // Set once, here; a record that comes before is found by the thread's first look.
        let _ = shared.thread.set(handle.thread().clone());
        let reporters = senders
            .into_iter()
            .map(|ring| Reporter {
                ring,
                shared: shared.clone(),
                dropped: metrics.dropped_for_all(),
            })
            .collect();
        let control = ReporterControl {
            changes: change,
            shared,
            metrics,
        };
        Ok((Self { control, done }, reporters))
    }

    /// Adds and takes away adapters.
    pub fn control(&self) -> ReporterControl {
        self.control.clone()
    }

    /// Delivers what is queued, flushes every adapter, and ends the thread. Blocks for `deadline` at most.
    ///
    /// # Errors
    /// [`AdapterError::ShutdownDeadline`]: an adapter holds the thread up; it is left behind.
    pub fn shutdown(self, deadline: Duration) -> Result<(), AdapterError> {
        self.control.stop();
        match self.done.recv_timeout(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(AdapterError::ShutdownDeadline {
                deadline_ms: deadline.as_millis(),
            }),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

impl Drop for ReporterThread {
    fn drop(&mut self) {
        self.control.stop();
    }
}

// === impl ReporterControl ===

impl ReporterControl {
    /// From now on `adapter` is told, too. After the thread's end it is dropped.
    pub fn add(&self, adapter: Box<dyn Report>) -> ReporterId {
        self.put(adapter, None)
    }

    /// The same in the place of an earlier one, which is flushed and dropped: what was recorded before is told to one of the two.
    pub fn replace(&self, earlier: ReporterId, adapter: Box<dyn Report>) -> ReporterId {
        self.put(adapter, Some(earlier))
    }

    /// It is told what comes with the next batch, flushed, and dropped; nobody waits for that.
    pub fn remove(&self, id: ReporterId) {
        self.change(Change::Remove(id));
    }

    fn put(&self, adapter: Box<dyn Report>, earlier: Option<ReporterId>) -> ReporterId {
        let id = ReporterId(self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        self.change(Change::Add(Told::new(Some(id), adapter, &self.metrics), earlier));
        id
    }

    fn change(&self, change: Change) {
        // A thread that has ended has dropped all of them.
        let _ = self.changes.send(change);
        self.shared.wake();
    }

    /// The thread ends when it has told all that was recorded before.
    fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

// === impl Told ===

impl Told {
    fn new(id: Option<ReporterId>, adapter: Box<dyn Report>, metrics: &ReportMetrics) -> Self {
        let failed = metrics
            .failed
            .get_or_create(&[("adapter", adapter.name().to_owned())])
            .clone();
        Self { id, adapter, failed }
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(told, earlier) => f
                .debug_tuple("Add")
                .field(&told.id)
                .field(&told.adapter.name())
                .field(earlier)
                .finish(),
            Self::Remove(id) => f.debug_tuple("Remove").field(id).finish(),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn wake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

// === impl Drain ===

impl Drain {
    fn run(mut self) {
        loop {
            // Read before the rings: what was queued before the stop is then seen by the pass below.
            let stop = self.shared.stop.load(Ordering::SeqCst);
            match self.pass() {
                BATCH_MAX => {}
                0 if stop => break,
                0 => self.sleep(),
                _ if stop => {}
                _ => thread::park_timeout(GATHER),
            }
        }
        for told in &mut self.adapters {
            told.adapter.flush();
        }
        let deadline = Instant::now() + FLUSH_WAIT;
        for told in &mut self.adapters {
            told.adapter.wait(deadline);
        }
    }

    /// Takes in those that come; says who is to go.
    fn change(&mut self) -> Vec<ReporterId> {
        let mut gone = Vec::new();
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Add(told, earlier) => {
                    self.remove(earlier.as_slice());
                    self.adapters.push(told);
                }
                Change::Remove(id) => gone.push(id),
            }
        }
        gone
    }

    /// What they send in the background goes on without them.
    fn remove(&mut self, gone: &[ReporterId]) {
        if gone.is_empty() {
            return;
        }
        self.adapters.retain_mut(|told| {
            let goes = told.id.is_some_and(|id| gone.contains(&id));
            if goes {
                told.adapter.flush();
            }
            !goes
        });
    }

    /// Takes at most [`BATCH_MAX`] records and reports them; says how many. Who comes or goes does so in between.
    fn pass(&mut self) -> usize {
        for offset in 0..self.rings.len() {
            let index = (self.first + offset) % self.rings.len();
            while self.batch.len() < BATCH_MAX
                && let Ok(record) = self.rings[index].try_recv()
            {
                self.batch.push(record);
            }
        }
        self.first = (self.first + 1) % self.rings.len().max(1);
        // After the rings were read: what was recorded when an adapter was there is told to it.
        let gone = self.change();
        let found = self.batch.len();
        if found > 0 {
            self.deliver();
            self.batch.clear();
        }
        self.remove(&gone);
        found
    }

    /// One bad adapter must not take the others with it: one that panics is told nothing any more.
    fn deliver(&mut self) {
        let batch = &self.batch;
        self.adapters.retain_mut(|Told { adapter, failed, .. }| {
            let outcome = catch_unwind(AssertUnwindSafe(|| adapter.report(batch)));
            if outcome.is_err() {
                error!(
                    adapter = adapter.name(),
                    "report adapter panicked; it is out of service until it is changed or the next start"
                );
                failed.inc();
            }
            outcome.is_ok()
        });
        self.delivered.inc_by(self.batch.len() as u64);
    }

    fn sleep(&mut self) {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.pass() == 0 && !self.shared.stop.load(Ordering::SeqCst) {
            thread::park_timeout(IDLE);
        }
        self.shared.asleep.store(false, Ordering::Relaxed);
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if thread::panicking() {
            warn!("the reporter thread ended by a panic; nothing is reported any more");
        }
    }
}

#[cfg(test)]
mod tests;
