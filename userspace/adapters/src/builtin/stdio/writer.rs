//! The thread that writes a log.
//!
//! ```text
//! reporter thread  Writer::write --lines--> queue --> thread `weft-log` --> file, standard output
//! ```
//! A disk or a pipe that stalls fills its own log's queue. Lines beyond are lost and counted, and nobody waits.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use crate::error::AdapterError;

/// Bytes of lines that wait for a log at most: a second of a busy mesh. Larger only hides a disk that is too slow; smaller
/// loses lines where it stalls for a moment.
pub const MAX_QUEUED: usize = 16 * 1024 * 1024;

/// What a log that is removed gets to write its last lines: the reporter waits meanwhile.
const LAST_WRITE: Duration = Duration::from_millis(200);

/// The reporter's end.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Sender<Message>,
    /// Bytes of lines in the queue, or being written.
    queued: Arc<AtomicUsize>,
    lost: Counter,
    /// Lines found no room since the queue was last empty: said once.
    stalled: bool,
    /// Answers when everything before is written.
    flushed: Option<Receiver<()>>,
    /// It was waited for in vain.
    hangs: bool,
}

#[derive(Debug)]
enum Message {
    Lines { text: String, count: u64 },
    Flush(SyncSender<()>),
}

#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    File { path: PathBuf, file: File },
}

/// State of the thread itself, which ends when its queue is closed and empty.
struct Log {
    output: Output,
    messages: Receiver<Message>,
    queued: Arc<AtomicUsize>,
    written: Counter,
    lost: Counter,
    /// The last write failed: said once, not for every batch.
    failing: bool,
}

// === impl Writer ===

impl Writer {
    /// # Errors
    /// [`AdapterError::LogThread`].
    pub fn start(output: Output, written: Counter, lost: Counter) -> Result<Self, AdapterError> {
        let (queue, messages) = channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let log = Log {
            output,
            messages,
            queued: Arc::clone(&queued),
            written,
            lost: lost.clone(),
            failing: false,
        };
        thread::Builder::new()
            .name("weft-log".to_owned())
            .spawn(move || log.run())
            .map_err(|source| AdapterError::LogThread { source })?;
        Ok(Self {
            queue,
            queued,
            lost,
            stalled: false,
            flushed: None,
            hangs: false,
        })
    }

    /// Hands `count` lines over. Never waits.
    pub fn write(&mut self, text: String, count: u64) {
        let queued = self.queued.load(Ordering::Relaxed);
        if queued == 0 {
            self.stalled = false;
        }
        // What alone is more than the queue holds is taken, too.
        let has_room = queued == 0 || queued + text.len() <= MAX_QUEUED;
        if has_room {
            self.queued.fetch_add(text.len(), Ordering::Relaxed);
            if self.queue.send(Message::Lines { text, count }).is_ok() {
                return;
            }
        }
        self.lost.inc_by(count);
        if !self.stalled {
            warn!("access log: lines are lost until those before them are written");
        }
        self.stalled = true;
    }

    /// Asks to be told when everything is written.
    pub fn flush(&mut self) {
        let (done, flushed) = sync_channel(1);
        self.flushed = self.queue.send(Message::Flush(done)).is_ok().then_some(flushed);
    }

    /// Until it is told, and until `deadline`.
    pub fn wait(&mut self, deadline: Instant) {
        if let Some(flushed) = self.flushed.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.hangs = flushed.recv_timeout(left).is_err();
            if self.hangs {
                warn!("access log: nobody takes what is written; should that stay so, the last records are lost");
            }
        }
    }
}

/// The thread goes on with what is queued; who reads a log that was removed finds it whole, unless it stalls.
impl Drop for Writer {
    fn drop(&mut self) {
        if !self.hangs {
            self.flush();
            self.wait(Instant::now() + LAST_WRITE);
        }
    }
}

// === impl Log ===

impl Log {
    fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            match message {
                Message::Lines { text, count } => {
                    self.write(&text, count);
                    self.queued.fetch_sub(text.len(), Ordering::Relaxed);
                }
                Message::Flush(done) => {
                    // Whoever waits may be gone already.
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn write(&mut self, text: &str, count: u64) {
        match self.output.write(text.as_bytes()) {
            Ok(()) => {
                self.written.inc_by(count);
                self.failing = false;
            }
            Err(error) => {
                self.lost.inc_by(count);
                if !self.failing {
                    warn!(%error, output = ?self.output, "access log: lines are lost until it can be written again");
                }
                self.failing = true;
            }
        }
    }
}

// === impl Output ===

impl Output {
    /// # Errors
    /// [`AdapterError::OpenLog`].
    pub fn open(path: Option<&Path>) -> Result<Self, AdapterError> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let path = path.to_owned();
        match open(&path) {
            Ok(file) => Ok(Self::File { path, file }),
            Err(source) => Err(AdapterError::OpenLog { path, source }),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File { path, file } => {
                if moved(path, file) {
                    *file = open(path)?;
                }
                file.write_all(bytes)
            }
        }
    }
}

/// Nobody waits for the reader of a pipe here. Writing to it then waits as to any file: in the log's own thread.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            return Err(io::Error::other("it is a pipe that nobody reads, or a socket"));
        }
        opened => opened?,
    };
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
    Ok(file)
}

/// The path does not lead to the open file any more.
fn moved(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) != (here.dev(), here.ino()),
        (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
