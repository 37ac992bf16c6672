//! One end of a connection: sends the pattern, checks what comes against it, and counts both.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll as poll_fds};
use vm_test::{
    pattern::{Checker, Pattern},
    poll,
    torture::MOST_UNREAD,
};

use crate::clients::resolve;

/// What both ends know of a run.
#[derive(Clone)]
pub struct Where {
    /// A folder of this run, which both ends see.
    pub dir: PathBuf,
    /// How large a huge write is.
    pub bytes: usize,
}

pub struct Side {
    pub stream: TcpStream,
    pub place: Where,
    pub serves: bool,
    pub sent: u64,
    /// Blocking reads that said EAGAIN though their time was not up.
    pub spurious: u64,
    /// What went out while nobody read.
    pub filled: Option<u64>,
    /// `refused`, `absent`.
    pub note: Option<String>,
    outgoing: Pattern,
    incoming: Checker,
}

/// An end gives up on a silent peer after this long, on a real machine.
const SILENCE: Duration = Duration::from_secs(10);
/// A socket that takes nothing for so long while nobody reads at the other end takes nothing until somebody does.
const FULL: Duration = Duration::from_millis(300);
const CHUNK: usize = 64 * 1024;

// === impl Side ===

impl Side {
    pub fn new(stream: TcpStream, place: Where, serves: bool) -> Result<Self> {
        stream.set_read_timeout(Some(poll::scaled(SILENCE)))?;
        stream.set_write_timeout(Some(poll::scaled(SILENCE)))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            place,
            serves,
            sent: 0,
            spurious: 0,
            filled: None,
            note: None,
            outgoing: Pattern::default(),
            incoming: Checker::default(),
        })
    }

    pub fn dial(target: &str, place: Where) -> Result<Self> {
        let address = resolve(target)?;
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        Self::new(stream, place, false)
    }

    pub fn name(&self) -> &'static str {
        if self.serves { "server" } else { "client" }
    }

    pub fn received(&self) -> u64 {
        self.incoming.bytes()
    }

    /// What came is the pattern, so far.
    pub fn right(&self) -> Result<()> {
        match self.incoming.first_wrong() {
            Some(at) => bail!("byte {at} of what came is another"),
            None => Ok(()),
        }
    }

    /// The next bytes of the pattern.
    pub fn next(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        self.outgoing.fill(&mut buffer);
        buffer
    }

    /// Counts bytes that went out in another way.
    pub fn went(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Sends the next bytes of the pattern, so many a write.
    pub fn send(&mut self, bytes: usize, a_write: usize) -> Result<()> {
        let buffer = self.next(bytes);
        for chunk in buffer.chunks(a_write) {
            self.stream
                .write_all(chunk)
                .with_context(|| format!("write after {} bytes", self.sent))?;
            self.sent += chunk.len() as u64;
        }
        Ok(())
    }

    /// One read of at most `buffer`, checked. Patient where a blocking read says EAGAIN too early, and counts it.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && since.elapsed() < poll::scaled(SILENCE) => {
                    self.spurious += 1;
                }
                Ok(read) => {
                    self.incoming.take(&buffer[..read]);
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes bytes that came in another way.
    pub fn took(&mut self, bytes: &[u8]) {
        self.incoming.take(bytes);
    }

    /// Reads exactly so many, so many a read.
    pub fn receive(&mut self, bytes: usize, a_read: usize) -> Result<()> {
        let mut buffer = vec![0; a_read];
        let mut left = bytes;
        while left > 0 {
            let most = left.min(a_read);
            let read = self
                .read(&mut buffer[..most])
                .with_context(|| format!("read, {left} of {bytes} bytes missing"))?;
            ensure!(read > 0, "the end, and {left} of {bytes} bytes missing");
            left -= read;
        }
        self.right()
    }

    /// Reads to the end.
    pub fn receive_all(&mut self) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = self
                .read(&mut buffer)
                .with_context(|| format!("read after {} bytes", self.received()))?;
            if read == 0 {
                return self.right();
            }
        }
    }

    /// Says that this end has sent everything.
    pub fn done(&self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write).context("half-close")
    }

    /// Sends until nothing more is taken, or more is than may be.
    pub fn fill(&mut self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        let before = self.sent;
        while self.sent - before < MOST_UNREAD {
            let buffer = self.next(CHUNK);
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(written) => {
                        self.sent += written as u64;
                        rest = &rest[written..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if !self.wait(PollFlags::POLLOUT, poll::scaled(FULL))? {
                            self.filled = Some(self.sent - before);
                            self.stream.set_nonblocking(false)?;
                            self.note_rest();
                            return Ok(());
                        }
                    }
                    Err(error) => {
                        return Err(error).context(format!("write after {} bytes that nobody read", self.sent));
                    }
                }
            }
        }
        self.filled = Some(self.sent - before);
        self.stream.set_nonblocking(false)?;
        Ok(())
    }

    /// The last of the chunk was made and not sent: the pattern goes on from there.
    fn note_rest(&mut self) {
        let mut outgoing = Pattern::default();
        outgoing.skip(self.sent);
        self.outgoing = outgoing;
    }

    /// Whether one of `events` came within `bound`.
    pub fn wait(&self, events: PollFlags, bound: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(self.stream.as_fd(), events)];
        let timeout = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
        Ok(poll_fds(&mut fds, timeout).context("poll")? > 0)
    }

    /// Waits until there is something to read, and gives up like a read.
    pub fn readable(&self) -> Result<()> {
        ensure!(self.wait(PollFlags::POLLIN, poll::scaled(SILENCE))?, "nothing came");
        Ok(())
    }

    /// Tells the other end something that no connection carries.
    pub fn say(&self, what: &str, words: &str) -> Result<()> {
        let (aside, file) = (self.place.dir.join(format!("{what}.new")), self.place.dir.join(what));
        fs::write(&aside, words)
            .and_then(|()| fs::rename(&aside, &file))
            .with_context(|| format!("say {what}"))
    }

    /// Waits for [`Side::say`] of the other end.
    pub fn hear(&self, what: &str) -> Result<String> {
        let file = self.place.dir.join(what);
        let since = Instant::now();
        loop {
            match fs::read_to_string(&file) {
                Ok(words) => return Ok(words),
                Err(_) if since.elapsed() < poll::scaled(SILENCE) => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error).with_context(|| format!("wait for the other end's {what}")),
            }
        }
    }
}

impl AsFd for Side {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
