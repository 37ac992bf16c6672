//! Report adapters that send over the network: what they are told is handed to the background thread through a bounded
//! queue, batched there, and sent.
//!
//! ```text
//! reporter thread  Exporter::report --try_send--> queue --+
//!                                                         +--> task: Export::add ... Export::send
//! background thread, one task an adapter -----------------+
//! ```
//! A receiver that is slow or gone fills its own adapter's queue; records beyond are dropped and counted under the
//! adapter's name, and no other adapter notices.

use std::{
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    background,
    error::AdapterError,
    metrics::{PerAdapter, ReportMetrics},
    record::Record,
    reporter::{FLUSH_WAIT, Report},
};

/// Records that wait for the background at most: as many as a worker's ring holds. Costs 16 bytes each, and what the
/// records hold.
pub const QUEUE_CAPACITY: usize = 8192;

/// What an adapter that was removed gets to send its last batch.
pub const LAST_SEND: Duration = FLUSH_WAIT;

/// What an adapter does in the background.
pub trait Export: Send + 'static {
    /// Takes in what goes out with the next [`send`](Self::send).
    fn add(&mut self, record: &Record);

    /// Nothing to send.
    fn is_empty(&self) -> bool;

    /// Enough to send at once.
    fn is_full(&self) -> bool;

    /// Sends what was taken in. While it waits nothing is taken in. What cannot be delivered it forgets and counts.
    ///
    /// # Cancel safety
    /// It is cut only when the adapter ends.
    fn send(&mut self) -> impl Future<Output = ()> + Send;
}

/// The counters of one adapter.
#[derive(Debug, Clone)]
pub struct ExportMetrics {
    /// Records that did not reach the receiver.
    pub dropped: Counter,
    /// Records that did, as far as the protocol tells.
    pub sent: Counter,
    /// Attempts to send that failed.
    pub failures: Counter,
}

/// The reporter's end of an adapter that sends in the background. Dropped, it lets the task send what is queued (for
/// [`LAST_SEND`] at most) and end.
#[derive(Debug)]
pub struct Exporter {
    name: String,
    queue: Sender<Message>,
    wants: fn(&Record) -> bool,
    dropped: Counter,
    /// Answers when everything is sent.
    flushed: Option<std::sync::mpsc::Receiver<()>>,
}

#[derive(Debug)]
enum Message {
    Record(Record),
    /// Send everything now, then answer.
    Flush(SyncSender<()>),
}

// === impl ExportMetrics ===

impl ExportMetrics {
    /// Those of the adapter `name`.
    pub fn of(name: &str, metrics: &ReportMetrics) -> Self {
        let of = |family: &PerAdapter| family.get_or_create(&[("adapter", name.to_owned())]).clone();
        Self {
            dropped: of(&metrics.dropped),
            sent: of(&metrics.sent),
            failures: of(&metrics.send_failures),
        }
    }
}

// === impl Exporter ===

impl Exporter {
    /// Runs `export` in the background under the name of its adapter. Of what the reporter tells it gets what it `wants`; a
    /// batch waits for `gather` at most.
    ///
    /// # Errors
    /// [`AdapterError::Background`].
    pub fn start(
        name: &str,
        export: impl Export,
        wants: fn(&Record) -> bool,
        gather: Duration,
        metrics: &ExportMetrics,
    ) -> Result<Self, AdapterError> {
        let (queue, messages) = channel(QUEUE_CAPACITY);
        // It ends when its queue is closed.
        background::spawn(run(export, messages, gather))?.detach();
        Ok(Self {
            name: name.to_owned(),
            queue,
            wants,
            dropped: metrics.dropped.clone(),
            flushed: None,
        })
    }
}

impl Report for Exporter {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&mut self, batch: &[Record]) {
        for record in batch.iter().filter(|record| (self.wants)(record)) {
            if self.queue.try_send(Message::Record(record.clone())).is_err() {
                self.dropped.inc();
            }
        }
    }

    fn flush(&mut self) {
        let (done, flushed) = sync_channel(1);
        self.flushed = Some(flushed);
        // A queue without room is one that does not move: there is nothing to wait for.
        if self.queue.try_send(Message::Flush(done)).is_err() {
            self.flushed = None;
        }
    }

    fn wait(&mut self, deadline: std::time::Instant) {
        if let Some(flushed) = self.flushed.take() {
            let _late = flushed.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
        }
    }
}

async fn run(mut export: impl Export, mut messages: Receiver<Message>, gather: Duration) {
    // Of the oldest record that was taken in and not sent.
    let mut due = Instant::now();
    loop {
        let waiting = !export.is_empty();
        tokio::select! {
            biased;
            () = sleep_until(due), if waiting => export.send().await,
            message = messages.recv() => match message {
                Some(Message::Record(record)) => {
                    if !waiting {
                        due = Instant::now() + gather;
                    }
                    export.add(&record);
                    if export.is_full() {
                        export.send().await;
                    }
                }
                Some(Message::Flush(done)) => {
                    export.send().await;
                    // Whoever waits may be gone already.
                    let _ = done.try_send(());
                }
                None => break,
            },
        }
    }
    if !export.is_empty() {
        let _ = timeout(LAST_SEND, export.send()).await;
    }
}

#[cfg(test)]
mod tests;
