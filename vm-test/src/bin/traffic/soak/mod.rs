//! `soak SEED SECONDS FLOWS`: many streams of traffic in one process, a thread each, at bounded rates; what must be judged is
//! told line by line ([`vm_test::soak`]). Ends by itself after SECONDS, and when nobody listens any more.

mod http;
mod session;
mod tcp;
mod udp;

use std::{
    io::{self, ErrorKind, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use vm_test::{
    pattern::{Checker, Pattern},
    soak::{Counts, Flow, Kind, Outcome, Random, Told, now},
};

/// Bytes that came back right, or how the round failed.
type Round = Result<u64, Outcome>;

/// A flow's own view of the process.
struct Stream<'a> {
    index: usize,
    flow: &'a Flow,
    random: Random,
    teller: &'a Teller,
}

/// Speaks and counts for all flows.
struct Teller {
    counts: Vec<Mutex<Counts>>,
}

/// How often counts are told.
const TELL: Duration = Duration::from_secs(1);

pub fn run(seed: u64, seconds: u64, flows: &str) -> Result<bool> {
    let flows: Vec<Flow> = serde_json::from_str(flows).context("read the flows")?;
    let teller = Teller {
        counts: flows.iter().map(|_| Mutex::default()).collect(),
    };
    teller.tell(&Told::Started);
    thread::scope(|scope| {
        for (index, flow) in flows.iter().enumerate() {
            let stream = Stream {
                index,
                flow,
                random: Random::new(seed.wrapping_mul(1 + index as u64)),
                teller: &teller,
            };
            scope.spawn(|| stream.keep_up());
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            thread::sleep(TELL);
            teller.tell_counts();
        }
        // The threads are in the middle of something and nobody waits for it.
        std::process::exit(0)
    })
}

// === impl Stream ===

impl Stream<'_> {
    fn keep_up(mut self) {
        match self.flow.kind {
            Kind::Short => self.attempts(|stream, connected| {
                let connection = stream.dial()?;
                *connected = true;
                stream.short(connection)
            }),
            Kind::Bulk => self.attempts(|stream, connected| {
                let connection = stream.dial()?;
                *connected = true;
                stream.bulk(connection)
            }),
            Kind::Held => self.sessions::<tcp::Echo>(),
            Kind::Udp => self.sessions::<udp::Echo<true>>(),
            Kind::Unconnected => self.sessions::<udp::Echo<false>>(),
            Kind::Http => self.sessions::<http::Client>(),
        }
    }

    /// Rounds that are a connection each.
    fn attempts(&mut self, round: impl Fn(&mut Self, &mut bool) -> Round) {
        loop {
            thread::sleep(self.pause());
            let (start, mut connected) = (now(), false);
            let result = round(self, &mut connected);
            self.attempted(start, connected, &result);
        }
    }

    fn attempted(&self, start: u64, connected: bool, result: &Round) {
        self.teller.count(self.index, result);
        let outcome = result.err().unwrap_or(Outcome::Ok);
        if self.flow.tell_all || outcome != Outcome::Ok {
            let (flow, end) = (self.index, now());
            self.teller.tell(&Told::Attempt {
                flow,
                start,
                end,
                connected,
                outcome,
            });
        }
    }

    fn pause(&mut self) -> Duration {
        let micros = self.flow.every_ms * 1000;
        Duration::from_micros(self.random.between(micros / 2, micros * 3 / 2))
    }

    /// Bytes of the next round.
    fn size(&mut self) -> u64 {
        self.random.between(1, self.flow.bytes)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.flow.patience_ms)
    }

    fn dial(&self) -> Result<TcpStream, Outcome> {
        let stream = TcpStream::connect_timeout(&self.flow.target, self.patience()).map_err(failure)?;
        let set_up = || -> io::Result<()> {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(self.patience()))?;
            stream.set_read_timeout(Some(self.patience()))
        };
        set_up().map_err(failure)?;
        Ok(stream)
    }

    fn short(&mut self, connection: TcpStream) -> Round {
        let size = self.size();
        tcp::Conversation::new(connection, self.patience()).round(size)
    }

    /// Both directions at once; the end of ours comes back as the end of theirs.
    fn bulk(&mut self, mut connection: TcpStream) -> Round {
        let (size, patience) = (
            self.random.between(self.flow.bytes / 2, self.flow.bytes),
            self.patience(),
        );
        let mut writer = connection.try_clone().map_err(failure)?;
        thread::scope(|scope| {
            let sent = scope.spawn(move || -> io::Result<()> {
                let mut pattern = Pattern::default();
                let mut buffer = vec![0; tcp::CHUNK];
                let mut left = size;
                while left > 0 {
                    let now = usize::try_from(left).unwrap_or(tcp::CHUNK).min(tcp::CHUNK);
                    pattern.fill(&mut buffer[..now]);
                    writer.write_all(&buffer[..now])?;
                    left -= now as u64;
                }
                writer.shutdown(Shutdown::Write)
            });
            let mut checker = Checker::default();
            let received = tcp::read_to_end(&mut connection, patience, &mut checker);
            if received.is_err() {
                // Ends a writer that waits for room.
                let _ = connection.shutdown(Shutdown::Both);
            }
            let sent = sent.join().map_err(|_| Outcome::Closed)?;
            received?;
            sent.map_err(failure)?;
            match (checker.first_wrong(), checker.bytes()) {
                (Some(offset), _) => Err(Outcome::Wrong(offset)),
                (None, bytes) if bytes > size => Err(Outcome::Wrong(size)),
                (None, bytes) if bytes < size => Err(Outcome::Closed),
                (None, bytes) => Ok(bytes),
            }
        })
    }
}

// === impl Teller ===

impl Teller {
    /// Nobody listens any more: this process is over.
    fn tell(&self, told: &Told) {
        let Ok(mut line) = serde_json::to_string(told) else {
            return;
        };
        line.push('\n');
        let mut out = io::stdout().lock();
        if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }

    fn tell_counts(&self) {
        let taken = self.counts.iter().map(|counts| std::mem::take(&mut *lock(counts)));
        self.tell(&Told::Counts(taken.collect()));
    }

    fn count(&self, flow: usize, result: &Round) {
        let mut counts = lock(&self.counts[flow]);
        match result {
            Ok(bytes) => {
                counts.ok += 1;
                counts.bytes += bytes;
            }
            Err(_) => counts.failed += 1,
        }
    }

    fn reconnected(&self, flow: usize) {
        lock(&self.counts[flow]).reconnected += 1;
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(error: io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Lost,
        ErrorKind::UnexpectedEof | ErrorKind::WriteZero => Outcome::Closed,
        _ => Outcome::Errno(error.raw_os_error().unwrap_or(0)),
    }
}
