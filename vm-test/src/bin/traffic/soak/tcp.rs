//! Echo on a TCP connection; every byte has its place in the pattern.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use vm_test::{
    pattern::{Checker, Pattern},
    soak::Outcome,
};

use super::{Round, Stream, failure, session::Kept};

/// Bytes read or written at once. Small: many threads have such a buffer.
pub const CHUNK: usize = 16 * 1024;

/// A connection to an echo server, from its first byte on.
pub struct Conversation {
    stream: TcpStream,
    patience: Duration,
    sent: Pattern,
    received: Checker,
    buffer: Vec<u8>,
}

/// A connection that is kept.
pub struct Echo(Conversation);

/// Shortest wait that a socket knows: zero would be for ever.
const SHORTEST: Duration = Duration::from_micros(1);

// === impl Conversation ===

impl Conversation {
    /// `patience`: the read timeout that `stream` has.
    pub fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            sent: Pattern::default(),
            received: Checker::default(),
            buffer: Vec::new(),
        }
    }

    /// Sends the next `size` bytes of the pattern and waits for all of them.
    pub fn round(&mut self, size: u64) -> Round {
        let until = self.received.bytes() + size;
        self.buffer.resize(usize::try_from(size).unwrap_or(CHUNK), 0);
        self.sent.fill(&mut self.buffer);
        self.stream.write_all(&self.buffer).map_err(failure)?;
        while self.received.bytes() < until {
            match receive(&mut self.stream, self.patience, &mut self.buffer)? {
                0 => return Err(Outcome::Closed),
                read => self.received.take(&self.buffer[..read]),
            }
        }
        match self.received.first_wrong() {
            Some(offset) => Err(Outcome::Wrong(offset)),
            None if self.received.bytes() > until => Err(Outcome::Wrong(until)),
            None => Ok(size),
        }
    }

    /// Waits for so long; nothing may come.
    fn quiet(&mut self, pause: Duration) -> Result<(), Outcome> {
        let start = Instant::now();
        while let Some(left) = pause.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            self.stream
                .set_read_timeout(Some(left.max(SHORTEST)))
                .map_err(failure)?;
            match self.stream.read(&mut [0; 1]) {
                Ok(0) => return Err(Outcome::Closed),
                Ok(_) => return Err(Outcome::Wrong(self.received.bytes())),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(())
    }
}

// === impl Echo ===

impl Kept for Echo {
    const CONNECTS: bool = true;

    fn open(stream: &mut Stream<'_>) -> Result<Self, Outcome> {
        Ok(Self(Conversation::new(stream.dial()?, stream.patience())))
    }

    fn round(&mut self, stream: &mut Stream<'_>) -> Round {
        let size = stream.size();
        self.0.round(size)
    }

    fn idle(&mut self, pause: Duration) -> Result<(), Outcome> {
        self.0.quiet(pause)?;
        let whole = self.0.stream.set_read_timeout(Some(self.0.patience));
        whole.map_err(failure)
    }
}

/// All that comes until the other side is done.
pub fn read_to_end(stream: &mut TcpStream, patience: Duration, checker: &mut Checker) -> Result<(), Outcome> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match receive(stream, patience, &mut buffer)? {
            0 => return Ok(()),
            read => checker.take(&buffer[..read]),
        }
    }
}

/// The next bytes. A blocking read of a socket in a sockmap says EAGAIN at any wake-up without data (`clients::Patient`): that is
/// silence only where `patience`, its timeout, is over.
fn receive(stream: &mut TcpStream, patience: Duration, buffer: &mut [u8]) -> Result<usize, Outcome> {
    let start = Instant::now();
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && start.elapsed() < patience => {}
            result => return result.map_err(failure),
        }
    }
}
