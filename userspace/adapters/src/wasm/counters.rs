//! What a plugin cost and what went wrong, told by instance and added up when asked.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Of one instance: only its thread writes, so that no cache line is fought for.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub callbacks: Count,
    /// From the first callback of those that come together to their end, with what the host does between them.
    pub callback_nanoseconds: Count,
    pub streams: Count,
    pub traps: Count,
    pub deadlines: Count,
    pub memory_refusals: Count,
    pub local_responses: Count,
    pub call_outs: Count,
    pub refused_calls: Count,
    pub unfit_headers: Count,
    /// Bytes of linear memory at the moment.
    pub memory: AtomicUsize,
}

/// A number that one thread counts and others read.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

/// All instances of a plugin.
#[derive(Debug, Default)]
pub(super) struct AllCounters(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    living: Vec<Arc<Counters>>,
    /// Sums of the instances that are gone.
    gone: Stats,
}

/// Sums over all instances that a plugin has or had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instances that live.
    pub instances: usize,
    /// Linear memory of these, bytes.
    pub memory: usize,
    /// Calls into the module.
    pub callbacks: u64,
    /// Time spent in them, and by the host between those that come together.
    pub callback_time: Duration,
    /// Requests and connections that a filter was made for.
    pub streams: u64,
    /// Callbacks that ended in a trap, deadlines included.
    pub traps: u64,
    /// Callbacks that were ended for they took too long.
    pub deadlines: u64,
    /// Times the module asked for more memory than it may have.
    pub memory_refusals: u64,
    /// Answers that the module gave in the service's place: its denies.
    pub local_responses: u64,
    /// Calls to services.
    pub call_outs: u64,
    /// Host calls and call-outs that the operator does not allow.
    pub refused_calls: u64,
    /// Changes of headers that were dropped, for no head can hold them.
    pub unfit_headers: u64,
    /// Streams that the failure policy decided over.
    pub failed_streams: u64,
    /// Failures that no stream ran into at once: at a tick, a queue, an answer to a call of the plugin's own.
    pub failed_beside: u64,
}

// === impl Count ===

impl Count {
    /// By the one thread that counts.
    pub fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl AllCounters ===

impl AllCounters {
    /// Counters of a new instance.
    pub fn instance(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.sweep();
        known.living.push(counters.clone());
        counters
    }

    pub fn sum(&self) -> Stats {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.sweep();
        let mut sum = known.gone;
        for counters in &known.living {
            sum.add(counters);
            sum.instances += 1;
            sum.memory += counters.memory.load(Ordering::Relaxed);
        }
        sum
    }
}

// === impl Known ===

impl Known {
    fn sweep(&mut self) {
        let gone = &mut self.gone;
        self.living.retain(|counters| {
            let lives = Arc::strong_count(counters) > 1;
            if !lives {
                gone.add(counters);
            }
            lives
        });
    }
}

// === impl Stats ===

impl Stats {
    fn add(&mut self, of: &Counters) {
        self.callbacks += of.callbacks.get();
        self.callback_time += Duration::from_nanos(of.callback_nanoseconds.get());
        self.streams += of.streams.get();
        self.traps += of.traps.get();
        self.deadlines += of.deadlines.get();
        self.memory_refusals += of.memory_refusals.get();
        self.local_responses += of.local_responses.get();
        self.call_outs += of.call_outs.get();
        self.refused_calls += of.refused_calls.get();
        self.unfit_headers += of.unfit_headers.get();
    }
}
