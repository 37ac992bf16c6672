use std::{
    net::Ipv4Addr,
    sync::mpsc::{Sender, channel},
    time::Instant,
};

use weft_abi::LatencyHistogram;

use super::*;
use crate::record::{Destination, EdgeDelta, FlowProtocol, FlowVerdict, Peer, Side};

/// Long enough for the slowest machine; passing tests never wait for it.
const LONG: Duration = Duration::from_secs(20);

fn edge(opened: u64) -> Record {
    Record::Edge(Box::new(EdgeDelta {
        reporter: Side::Source,
        source: Arc::new(Peer {
            namespace: "n".into(),
            service: None,
            account: "a".into(),
        }),
        destination: Arc::new(Destination {
            namespace: "n".into(),
            service: None,
            account: None,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 1,
        }),
        protocol: FlowProtocol::Tcp,
        verdict: FlowVerdict::Allow,
        history: false,
        opened,
        closed: 0,
        refused: 0,
        denied: 0,
        reset: 0,
        bytes_sent: 0,
        bytes_received: 0,
        segments_sent: 0,
        segments_received: 0,
        retransmits: 0,
        connect: LatencyHistogram::default(),
        rtt: LatencyHistogram::default(),
    }))
}

/// Passes the numbers on; `gate` holds it up until something comes, `None` at flush.
struct Collect {
    out: Sender<Option<u64>>,
    gate: Option<Receiver<()>>,
}

impl Report for Collect {
    fn name(&self) -> &str {
        "collect"
    }

    fn report(&mut self, batch: &[Record]) {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        for record in batch {
            if let Record::Edge(edge) = record {
                let _ = self.out.send(Some(edge.opened));
            }
        }
    }

    fn flush(&mut self) {
        let _ = self.out.send(None);
    }
}

struct Panics;

impl Report for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn report(&mut self, _batch: &[Record]) {
        panic!("a test adapter panics on purpose");
    }
}

#[test]
fn records_of_all_rings_arrive_in_order_of_each() {
    let (out, received) = channel();
    let metrics = ReportMetrics::default();
    let (thread, reporters) =
        ReporterThread::start(vec![Box::new(Collect { out, gate: None })], 2, metrics.clone()).unwrap();
    for number in 0..3000 {
        reporters[number as usize % 2].record(edge(number));
    }
    let numbers: Vec<u64> = (0..3000)
        .map(|_| received.recv_timeout(LONG).unwrap().unwrap())
        .collect();
    for ring in 0..2 {
        let of_ring: Vec<u64> = numbers.iter().copied().filter(|number| number % 2 == ring).collect();
        assert!(of_ring.is_sorted(), "{of_ring:?}");
    }
    thread.shutdown(LONG).unwrap();
    assert_eq!((metrics.delivered.get(), metrics.dropped_for_all().get()), (3000, 0));
}

#[test]
fn a_record_wakes_a_sleeping_reporter() {
    let (out, received) = channel();
    let (thread, reporters) =
        ReporterThread::start(vec![Box::new(Collect { out, gate: None })], 1, ReportMetrics::default()).unwrap();
    for number in 0..20 {
        while !thread.control.shared.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        reporters[0].record(edge(number));
        assert_eq!(received.recv_timeout(LONG).unwrap(), Some(number));
    }
}

#[test]
fn a_full_ring_drops_and_counts_and_does_not_wait() {
    let (out, received) = channel();
    let (gate, held) = channel();
    let metrics = ReportMetrics::default();
    let (thread, reporters) =
        ReporterThread::start(vec![Box::new(Collect { out, gate: Some(held) })], 1, metrics.clone()).unwrap();
    let sent = (RING_CAPACITY + BATCH_MAX + 500) as u64;
    let began = Instant::now();
    for number in 0..sent {
        reporters[0].record(edge(number));
    }
    assert!(began.elapsed() < LONG, "the adapter is held up, the recorder was too");
    assert!(reporters[0].dropped() >= 500, "{}", reporters[0].dropped());
    drop(gate);
    thread.shutdown(LONG).unwrap();
    let arrived = received.try_iter().flatten().count() as u64;
    assert_eq!(arrived + metrics.dropped_for_all().get(), sent);
    assert_eq!(metrics.delivered.get(), arrived);
}

#[test]
fn shutdown_delivers_what_is_queued_then_flushes() {
    let (out, received) = channel();
    let (thread, reporters) =
        ReporterThread::start(vec![Box::new(Collect { out, gate: None })], 1, ReportMetrics::default()).unwrap();
    for number in 0..5000 {
        reporters[0].record(edge(number));
    }
    thread.shutdown(LONG).unwrap();
    let all: Vec<_> = received.try_iter().collect();
    assert_eq!(all.len(), 5001);
    assert_eq!(all.last(), Some(&None));
}

#[test]
fn shutdown_keeps_its_deadline_when_an_adapter_hangs() {
    let (out, _received) = channel();
    let (gate, held) = channel();
    let (thread, reporters) = ReporterThread::start(
        vec![Box::new(Collect { out, gate: Some(held) })],
        1,
        ReportMetrics::default(),
    )
    .unwrap();
    reporters[0].record(edge(0));
    let error = thread.shutdown(Duration::from_millis(20)).unwrap_err();
    assert!(
        matches!(error, AdapterError::ShutdownDeadline { deadline_ms: 20 }),
        "{error}"
    );
    drop(gate);
}

#[test]
fn a_panicking_adapter_is_taken_out_and_the_others_go_on() {
    let (out, received) = channel();
    let metrics = ReportMetrics::default();
    let adapters: Vec<Box<dyn Report>> = vec![Box::new(Panics), Box::new(Collect { out, gate: None })];
    let (thread, reporters) = ReporterThread::start(adapters, 1, metrics.clone()).unwrap();
    for number in 0..2 {
        reporters[0].record(edge(number));
        assert_eq!(received.recv_timeout(LONG).unwrap(), Some(number));
    }
    thread.shutdown(LONG).unwrap();
    assert_eq!(
        metrics.failed.get_or_create(&[("adapter", "panics".to_owned())]).get(),
        1
    );
}

/// At every moment one of the two is there: what is recorded meanwhile is told once.
#[test]
fn an_adapter_in_the_place_of_another_is_told_what_that_one_is_not() {
    let (out, received) = channel();
    let collect = || {
        Box::new(Collect {
            out: out.clone(),
            gate: None,
        })
    };
    let (thread, reporters) = ReporterThread::start(Vec::new(), 1, ReportMetrics::default()).unwrap();
    let control = thread.control();
    let mut id = control.add(collect());
    for number in 0..2000 {
        reporters[0].record(edge(number));
        if number % 10 == 0 {
            id = control.replace(id, collect());
        }
    }
    thread.shutdown(LONG).unwrap();
    let told: Vec<u64> = received.try_iter().flatten().collect();
    assert!(told.iter().copied().eq(0..2000), "{told:?}");
}

#[test]
fn an_adapter_that_goes_leaves_no_series_when_it_panics_at_last() {
    let metrics = ReportMetrics::default();
    let (thread, reporters) = ReporterThread::start(Vec::new(), 1, metrics.clone()).unwrap();
    let (out, received) = channel();
    let (open, gate) = channel();
    let control = thread.control();
    control.add(Box::new(Collect { out, gate: Some(gate) }));
    control.add(Box::new(Panics));
    reporters[0].record(edge(0));
    metrics.forget("panics");
    open.send(()).unwrap();
    assert_eq!(received.recv_timeout(LONG).unwrap(), Some(0));
    drop(open);
    thread.shutdown(LONG).unwrap();
    assert!(metrics.failed.get(&[("adapter", "panics".to_owned())]).is_none());
}

#[test]
fn records_after_shutdown_are_dropped_and_counted() {
    let metrics = ReportMetrics::default();
    let (thread, reporters) = ReporterThread::start(Vec::new(), 1, metrics.clone()).unwrap();
    thread.shutdown(LONG).unwrap();
    reporters[0].record(edge(0));
    assert_eq!(metrics.dropped_for_all().get(), 1);
}
