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
    sent: Pattern,
    received: Checker,
    buffer: Vec<u8>,
}

/// A connection that is kept.
pub struct Echo {
    conversation: Conversation,
    patience: Duration,
}

/// Shortest wait that a socket knows: zero would be for ever.
const SHORTEST: Duration = Duration::from_micros(1);

// === impl Conversation ===

impl Conversation {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
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
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(Outcome::Closed),
                Ok(read) => self.received.take(&self.buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(error)),
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
        let conversation = Conversation::new(stream.dial()?);
        Ok(Self {
            conversation,
            patience: stream.patience(),
        })
    }

    fn round(&mut self, stream: &mut Stream<'_>) -> Round {
        let size = stream.size();
        self.conversation.round(size)
    }

    fn idle(&mut self, pause: Duration) -> Result<(), Outcome> {
        self.conversation.quiet(pause)?;
        let whole = self.conversation.stream.set_read_timeout(Some(self.patience));
        whole.map_err(failure)
    }
}

/// All that comes until the other side is done.
pub fn read_to_end(stream: &mut TcpStream, checker: &mut Checker) -> Result<(), Outcome> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => checker.take(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failure(error)),
        }
    }
}
