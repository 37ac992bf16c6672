//! Requests when they are due, answers when they come.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::{event::Timespec, event::epoll, io::Errno};
use serde::Serialize;

use crate::{connection::Connection, response::Whole};

/// How long answers are awaited after the last request.
const GRACE: Duration = Duration::from_secs(5);

/// The longest latency that is told apart, in nanoseconds (a minute).
const LONGEST: u64 = 60_000_000_000;

/// Events taken at once.
const EVENTS: usize = 256;

pub struct Load {
    pub target: SocketAddr,
    /// As it goes over the wire.
    pub request: Vec<u8>,
    /// A second; `None`: closed loop.
    pub rate: Option<f64>,
    pub connections: usize,
    pub warm_up: Duration,
    pub counted: Duration,
    pub short: bool,
    pub status: u16,
    pub body: Option<Vec<u8>>,
}

/// What came of the requests that were due after the warm-up.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Answered as they must be.
    pub right: u64,
    /// Answered otherwise.
    pub wrong: u64,
    /// Not answered.
    pub failed: u64,
    /// Right answers, those that were due during the warm-up too: what the CPU time of a whole run is divided by.
    pub all: u64,
    /// Right answers a second.
    pub rate: f64,
    /// The first thing that was wrong or failed.
    pub first_fault: Option<String>,
    /// From when a request was due to its answer's last byte, in nanoseconds, of the right ones.
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

struct Run<'a> {
    load: &'a Load,
    poll: OwnedFd,
    connections: Vec<Option<Connection>>,
    /// Connections without a request.
    idle: VecDeque<usize>,
    /// Requests that are due and wait for a connection.
    waiting: VecDeque<Instant>,
    begin: Instant,
    expected: Option<Vec<u8>>,
    latencies: Histogram<u64>,
    outcome: Outcome,
}

// === impl Load ===

impl Load {
    /// # Errors
    /// The system refuses what a load needs, or the target cannot be reached at all.
    pub fn run(&self) -> Result<Outcome> {
        let mut run = Run {
            load: self,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: (0..self.connections).map(|_| None).collect(),
            idle: (0..self.connections).collect(),
            waiting: VecDeque::new(),
            begin: Instant::now(),
            expected: self.body.clone(),
            latencies: Histogram::new_with_max(LONGEST, 3)?,
            outcome: Outcome {
                right: 0,
                wrong: 0,
                failed: 0,
                all: 0,
                rate: 0.0,
                first_fault: None,
                p50: 0,
                p90: 0,
                p99: 0,
                p999: 0,
                max: 0,
            },
        };
        run.drive()?;
        Ok(run.finish())
    }

    /// When request number `n` is due after the beginning, in an open loop.
    fn due(&self, n: u64) -> Option<Duration> {
        self.rate.map(|rate| Duration::from_secs_f64(n as f64 / rate))
    }
}

// === impl Run ===

impl Run<'_> {
    fn drive(&mut self) -> Result<()> {
        let total = self.load.warm_up + self.load.counted;
        let mut events = Vec::with_capacity(EVENTS);
        let mut next = 0;
        loop {
            let now = Instant::now();
            let elapsed = now - self.begin;
            let mut next_due = None;
            if elapsed < total {
                if self.load.rate.is_none() {
                    self.waiting.extend(self.idle.iter().map(|_| now));
                }
                while let Some(due) = self.load.due(next).filter(|due| *due < total) {
                    if due > elapsed {
                        next_due = Some(due - elapsed);
                        break;
                    }
                    self.waiting.push_back(self.begin + due);
                    next += 1;
                }
            }
            self.begin_waiting();
            let busy = self.idle.len() < self.connections.len();
            if !busy && self.waiting.is_empty() && elapsed >= total {
                return Ok(());
            }
            if elapsed >= total + GRACE {
                self.give_up();
                return Ok(());
            }
            let end = if elapsed < total { total } else { total + GRACE };
            let timeout = next_due.unwrap_or(end - elapsed);
            self.wait(&mut events, timeout)?;
            for event in events.drain(..) {
                self.happened(usize::try_from(event)?);
            }
        }
    }

    fn wait(&self, keys: &mut Vec<u64>, timeout: Duration) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let timeout = Timespec::try_from(timeout).context("a time-out")?;
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        keys.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }

    /// Gives waiting requests the connections that are free.
    fn begin_waiting(&mut self) {
        while !self.idle.is_empty()
            && let Some(due) = self.waiting.pop_front()
        {
            let Some(key) = self.idle.pop_front() else { break };
            if let Err(error) = self.send(key, due) {
                self.connections[key] = None;
                self.idle.push_back(key);
                self.failed(&format!("{error:#}"));
            }
        }
    }

    fn send(&mut self, key: usize, due: Instant) -> Result<()> {
        let connection = match &mut self.connections[key] {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.poll, key as u64, self.load.target)?),
        };
        connection.send(&self.load.request, due)
    }

    fn happened(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key).and_then(Option::as_mut) else {
            return;
        };
        let Some(due) = connection.due else { return };
        match connection.go_on(&self.load.request) {
            Ok(None) => {}
            Ok(Some(whole)) => {
                connection.due = None;
                if self.load.short || whole.last {
                    self.connections[key] = None;
                }
                self.idle.push_back(key);
                self.answered(due, &whole);
            }
            Err(error) => {
                self.connections[key] = None;
                self.idle.push_back(key);
                self.failed(&format!("{error:#}"));
            }
        }
    }

    fn answered(&mut self, due: Instant, whole: &Whole) {
        let latency = due.elapsed();
        let expected = self.expected.get_or_insert_with(|| whole.body.clone());
        if whole.status != self.load.status || *expected != whole.body {
            if self.counts(due) {
                self.outcome.wrong += 1;
            }
            let fault = format!("status {}, a body of {} bytes", whole.status, whole.body.len());
            self.outcome.first_fault.get_or_insert(fault);
            return;
        }
        self.outcome.all += 1;
        if self.counts(due) {
            self.outcome.right += 1;
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
            self.latencies.saturating_record(nanos);
        }
    }

    /// A fault counts also during the warm-up: it must not be there at all.
    fn failed(&mut self, fault: &str) {
        self.outcome.failed += 1;
        self.outcome.first_fault.get_or_insert_with(|| fault.to_owned());
    }

    fn give_up(&mut self) {
        let unanswered = self.waiting.len() + self.connections.len() - self.idle.len();
        self.outcome.failed += unanswered as u64;
        self.outcome
            .first_fault
            .get_or_insert_with(|| format!("{unanswered} requests without an answer"));
    }

    fn counts(&self, due: Instant) -> bool {
        due >= self.begin + self.load.warm_up
    }

    fn finish(self) -> Outcome {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        let (p50, p90, p99, p999) = (at(0.5), at(0.9), at(0.99), at(0.999));
        Outcome {
            rate: self.outcome.right as f64 / self.load.counted.as_secs_f64(),
            p50,
            p90,
            p99,
            p999,
            max: self.latencies.max(),
            ..self.outcome
        }
    }
}
