//! Requests when they are due, answers when they come.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    num::NonZeroU64,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{event::Timespec, event::epoll, io::Errno, thread::set_current_timer_slack};

use crate::{
    connection::Connection,
    tally::{Outcome, Tally},
};

/// How long answers are awaited after the last request.
pub const GRACE: Duration = Duration::from_secs(5);

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

struct Run<'a> {
    load: &'a Load,
    poll: OwnedFd,
    connections: Vec<Option<Connection>>,
    /// Connections without a request.
    idle: VecDeque<usize>,
    /// Requests that are due and wait for a connection.
    waiting: VecDeque<Instant>,
    begin: Instant,
    tally: Tally,
}

// === impl Load ===

impl Load {
    /// # Errors
    /// The system refuses what a load needs, or the target cannot be reached at all.
    pub fn run(&self) -> Result<Outcome> {
        let mut run = Run::new(self)?;
        run.drive()?;
        Ok(run.tally.finish(self.counted))
    }

    /// When request number `n` is due after the beginning, in an open loop.
    fn due(&self, n: u64) -> Option<Duration> {
        self.rate.map(|rate| Duration::from_secs_f64(n as f64 / rate))
    }
}

// === impl Run ===

impl<'a> Run<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        // A thread's timers are late by up to 50 µs unless it says otherwise, PR_SET_TIMERSLACK of prctl(2).
        set_current_timer_slack(NonZeroU64::new(1)).context("ask for timers that are not late")?;
        let begin = Instant::now();
        Ok(Self {
            load,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: (0..load.connections).map(|_| None).collect(),
            idle: (0..load.connections).collect(),
            waiting: VecDeque::new(),
            begin,
            tally: Tally::new(begin + load.warm_up, load.status, load.body.clone())?,
        })
    }

    fn drive(&mut self) -> Result<()> {
        let total = self.load.warm_up + self.load.counted;
        let mut events = Vec::with_capacity(EVENTS);
        let mut next = 0;
        loop {
            let now = Instant::now();
            let elapsed = now - self.begin;
            let mut next_due = None;
            if elapsed < total && self.load.rate.is_none() {
                self.waiting.extend(self.idle.iter().map(|_| now));
            }
            // Also what fell due while this program stood still, past the end as well.
            while let Some(due) = self.load.due(next).filter(|due| *due < total) {
                if due > elapsed {
                    next_due = Some(due - elapsed);
                    break;
                }
                self.waiting.push_back(self.begin + due);
                next += 1;
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

    /// For at most `timeout`, to the nanosecond: epoll_pwait2, which rustix uses with its feature `linux_5_11` alone. Without,
    /// time-outs are rounded up to milliseconds, and all requests are late by half of one.
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
                self.tally.failed(1, || format!("{error:#}"));
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
                self.tally.answered(due, whole.status, &whole.body);
            }
            Err(error) => {
                self.connections[key] = None;
                self.idle.push_back(key);
                self.tally.failed(1, || format!("{error:#}"));
            }
        }
    }

    fn give_up(&mut self) {
        let unanswered = (self.waiting.len() + self.connections.len() - self.idle.len()) as u64;
        self.tally
            .failed(unanswered, || format!("{unanswered} requests without an answer"));
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::current_timer_slack;

    use super::*;

    #[test]
    fn a_wait_is_shorter_than_a_millisecond_where_it_is_asked_to_be() -> Result<()> {
        let load = Load {
            target: SocketAddr::from(([127, 0, 0, 1], 1)),
            request: Vec::new(),
            rate: Some(1.0),
            connections: 1,
            warm_up: Duration::ZERO,
            counted: Duration::ZERO,
            short: false,
            status: 200,
            body: None,
        };
        let run = Run::new(&load)?;
        assert_eq!(current_timer_slack()?, 1);
        let took = |_| {
            let began = Instant::now();
            run.wait(&mut Vec::new(), Duration::from_micros(50))?;
            Ok::<_, anyhow::Error>(began.elapsed())
        };
        // A busy machine makes some of them longer.
        let shortest = (0..1000).map(took).collect::<Result<Vec<_>>>()?.into_iter().min();
        assert!(shortest < Some(Duration::from_millis(1)), "{shortest:?}");
        Ok(())
    }
}
