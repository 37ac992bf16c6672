use std::sync::{Arc, mpsc};

use tokio::sync::Notify;

use super::*;
use crate::{record::samples, reporter::ReporterThread};

/// Long enough for the slowest machine; passing tests never wait for it.
const LONG: Duration = Duration::from_secs(20);

/// Tells how many records each send has; waits for `gate` before, where there is one.
struct Count {
    taken: usize,
    full: usize,
    out: mpsc::Sender<usize>,
    gate: Option<Arc<Notify>>,
}

impl Export for Count {
    fn add(&mut self, _record: &Record) {
        self.taken += 1;
    }

    fn is_empty(&self) -> bool {
        self.taken == 0
    }

    fn is_full(&self) -> bool {
        self.taken >= self.full
    }

    async fn send(&mut self) {
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        let _ = self.out.send(std::mem::take(&mut self.taken));
    }
}

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|_| Record::Edge(Box::new(samples::edge()))).collect()
}

/// An adapter of that name that sends `full` records at once, and what it sent.
fn start(
    name: &str,
    full: usize,
    gather: Duration,
    gate: Option<Arc<Notify>>,
    metrics: &ReportMetrics,
) -> (Exporter, mpsc::Receiver<usize>) {
    let (out, sends) = mpsc::channel();
    let export = Count {
        taken: 0,
        full,
        out,
        gate,
    };
    let metrics = ExportMetrics::of(name, metrics);
    let exporter = Exporter::start(name, export, |_| true, gather, &metrics).unwrap();
    (exporter, sends)
}

#[test]
fn a_full_batch_goes_at_once_and_the_rest_when_it_is_due() {
    let metrics = ReportMetrics::default();
    let (mut full, sends) = start("full", 3, LONG, None, &metrics);
    full.report(&records(7));
    let sent: Vec<_> = (0..2).map(|_| sends.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(sent, [3, 3]);
    assert!(sends.try_recv().is_err());
    let (mut due, sends) = start("due", 3, Duration::from_millis(20), None, &metrics);
    due.report(&records(1));
    assert_eq!(sends.recv_timeout(LONG), Ok(1));
}

#[test]
fn a_receiver_that_hangs_costs_its_own_records_and_nobody_waits() {
    let metrics = ReportMetrics::default();
    let (stuck, sends) = start("stuck", 1, LONG, Some(Arc::new(Notify::new())), &metrics);
    let (free, other) = start("free", 1, LONG, None, &metrics);
    let (thread, reporters) = ReporterThread::start(vec![Box::new(stuck), Box::new(free)], 1, metrics.clone()).unwrap();
    let total = QUEUE_CAPACITY + 500;
    for some in records(total).chunks(500) {
        for record in some {
            reporters[0].record(record.clone());
        }
        // The other one is told of each, however long the first has hung.
        for _ in some {
            other.recv_timeout(LONG).unwrap();
        }
    }
    let dropped = ExportMetrics::of("stuck", &metrics).dropped;
    // One is on its way, the queue is full.
    assert_eq!(dropped.get(), 499);
    assert_eq!(ExportMetrics::of("free", &metrics).dropped.get(), 0);
    assert!(sends.try_recv().is_err());
    let began = std::time::Instant::now();
    thread.shutdown(LONG).unwrap();
    assert!(began.elapsed() < LONG, "a receiver that hangs holds the shutdown up");
}

#[test]
fn a_flush_sends_what_is_gathered_and_waits_for_it() {
    let (mut exporter, sends) = start("count", 1000, LONG, None, &ReportMetrics::default());
    exporter.report(&records(2));
    exporter.flush();
    exporter.wait(std::time::Instant::now() + LONG);
    assert_eq!(sends.try_recv(), Ok(2));
}

#[test]
fn an_adapter_that_is_removed_sends_what_it_has_and_ends() {
    let (mut exporter, sends) = start("count", 1000, LONG, None, &ReportMetrics::default());
    exporter.report(&records(2));
    drop(exporter);
    assert_eq!(sends.recv_timeout(LONG), Ok(2));
    // Its end of the channel is gone: so is the task.
    assert_eq!(sends.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
}
