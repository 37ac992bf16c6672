//! Child processes: bounded, heard on both pipes, killed by number.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::poll;

/// How long a command may run unless a test says otherwise.
pub const BOUND: Duration = Duration::from_secs(60);

/// The same for a transfer of `WEFT_TEST_BYTES` bytes, which may be a GiB under QEMU.
pub const BULK_BOUND: Duration = Duration::from_secs(600);

/// How a finished command ended and what it said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, as one would type it.
    pub line: String,
    /// Exit code; 128+N when signal N ended it, as a shell says it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A command that runs beside the test. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Heard,
    stderr: Heard,
    start: Instant,
}

/// What came out of a pipe so far, filled by a thread of its own so that no child blocks on a full pipe.
#[derive(Debug)]
struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

/// Runs `command` to its end.
///
/// # Errors
/// It cannot be started, or is still running after `bound` (it is killed then; the text has what it said).
pub fn output(command: Command, bound: Duration) -> Result<Output> {
    Running::start(command)?.finish(bound)
}

// === impl Output ===

impl Output {
    /// Itself, if the command exited with 0.
    ///
    /// # Errors
    /// It did not: command line, code and both outputs.
    pub fn ok(self) -> Result<Self> {
        self.exits(0)
    }

    /// Itself, if the command exited with `code`.
    ///
    /// # Errors
    /// It did not: command line, code and both outputs.
    pub fn exits(self, code: i32) -> Result<Self> {
        if self.code != code {
            let Self {
                line,
                code: found,
                stdout,
                stderr,
                ..
            } = &self;
            bail!("`{line}` exited with {found}, expected {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        }
        Ok(self)
    }

    /// Standard output as one JSON value.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("`{}` should print JSON, printed:\n{}", self.line, self.stdout))
    }

    /// Standard output as one JSON value a line.
    ///
    /// # Errors
    /// A line is not JSON.
    pub fn json_lines(&self) -> Result<Vec<serde_json::Value>> {
        let lines = self.stdout.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| {
                serde_json::from_str(line)
                    .with_context(|| format!("`{}` should print JSON lines, printed: {line}", self.line))
            })
            .collect()
    }
}

// === impl Running ===

impl Running {
    /// Starts `command` in a process group of its own: a Ctrl-C at the terminal is for whoever drives the lab.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: Command) -> Result<Self> {
        Self::start_logging(command, Stdio::piped(), Stdio::piped())
    }

    /// The same with its outputs going elsewhere.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_logging(mut command: Command, stdout: Stdio, stderr: Stdio) -> Result<Self> {
        let line = line_of(&command);
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start `{line}`"))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok(Self {
            line,
            child,
            stdin,
            stdout: Heard::of(stdout),
            stderr: Heard::of(stderr),
            start: Instant::now(),
        })
    }

    /// Process number.
    pub fn pid(&self) -> i32 {
        // Linux process numbers fit: PID_MAX_LIMIT is 2^22.
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// It has closed it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("write to `{}`", self.line))
    }

    /// Waits until it has printed at least `count` lines on standard output, and returns the last of these.
    ///
    /// # Errors
    /// It ends before, or does not within [`poll::PATIENCE`].
    pub fn line(&mut self, count: usize) -> Result<String> {
        self.line_within(poll::PATIENCE, count)
    }

    /// The same with a bound of its own.
    ///
    /// # Errors
    /// It ends before, or does not within `bound`.
    pub fn line_within(&mut self, bound: Duration, count: usize) -> Result<String> {
        let what = format!("line {count} of `{}`", self.line);
        let found = poll::within(bound, &what, || {
            // First: what it says while we look is not missed.
            let over = self.stdout.is_over() && self.stderr.is_over();
            match self.nth_line(count) {
                None if !over => bail!("it said so far: {}{}", self.stdout(), self.stderr()),
                found => Ok(found),
            }
        })?;
        found.with_context(|| format!("no {what}: it ended, and said {}{}", self.stdout(), self.stderr()))
    }

    fn nth_line(&self, count: usize) -> Option<String> {
        let text = self.stdout();
        let whole = text.rfind('\n').map(|end| &text[..end])?;
        whole.lines().nth(count - 1).map(str::to_owned)
    }

    /// # Errors
    /// The system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .with_context(|| format!("ask after `{}`", self.line))?
            .is_none())
    }

    /// Sends a signal to it alone.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("send {signal} to `{}`", self.line))
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Errors
    /// It still runs after `bound`, or the wait is interrupted: it is killed then, and the text has what it said.
    pub fn finish(mut self, bound: Duration) -> Result<Output> {
        drop(self.stdin.take());
        let what = format!("the end of `{}`", self.line);
        let ended = poll::within(bound, &what, || self.ended());
        self.told(ended)
    }

    /// As [`Running::finish`], interrupted or not: for cleaning up.
    ///
    /// # Errors
    /// It still runs after `bound`.
    pub fn finish_regardless(mut self, bound: Duration) -> Result<Output> {
        drop(self.stdin.take());
        let what = format!("the end of `{}`", self.line);
        let ended = poll::regardless(bound, &what, || self.ended());
        self.told(ended)
    }

    /// SIGTERM, and SIGKILL where that does not help in time; whether the lab is interrupted or not.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(mut self) -> Result<Output> {
        let _ = self.signal(Signal::SIGTERM);
        let what = format!("the end of `{}` after SIGTERM", self.line);
        let ended = poll::regardless(poll::PATIENCE, &what, || self.ended());
        self.told(ended)
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        match self.child.try_wait().context("wait")? {
            Some(status) => Ok(status),
            None => bail!("it still runs and said: {}{}", self.stdout(), self.stderr()),
        }
    }

    fn told(&mut self, ended: Result<ExitStatus>) -> Result<Output> {
        let took = self.start.elapsed();
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                self.kill();
                return Err(error);
            }
        };
        Ok(Output {
            line: self.line.clone(),
            code: code_of(status),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            took,
        })
    }

    /// SIGKILL, and waits until the kernel has taken it away.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Heard ===

impl Heard {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reader = pipe.map(|pipe| {
            thread::spawn(move || {
                let mut pipe = BufReader::new(pipe);
                while let Ok(chunk) = pipe.fill_buf() {
                    let read = chunk.len();
                    if read == 0 {
                        break;
                    }
                    into.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(chunk);
                    pipe.consume(read);
                }
            })
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// There is no more of it.
    fn is_over(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// All there will be. A grandchild may hold the pipe open: what it says later is nobody's.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = poll::regardless(Duration::from_secs(1), "the end of a pipe", || {
                if reader.is_finished() { Ok(()) } else { bail!("open") }
            });
        }
        self.text()
    }
}

fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn code_and_both_outputs_are_told() -> Result<()> {
        let output = output(sh("echo out; echo err >&2; exit 3"), BOUND)?;
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (3, "out\n", "err\n")
        );
        Ok(())
    }

    #[test]
    fn a_signal_is_128_and_its_number() -> Result<()> {
        assert_eq!(output(sh("kill -9 $$"), BOUND)?.code, 137);
        Ok(())
    }

    #[test]
    fn a_line_that_cannot_come_any_more_is_not_waited_for() -> Result<()> {
        let begun = Instant::now();
        let mut ends = Running::start(sh("echo one; echo why >&2"))?;
        assert_eq!(ends.line(1)?, "one");
        let error = ends.line(2).unwrap_err().to_string();
        assert!(error.contains("it ended") && error.contains("why"), "{error}");
        assert!(begun.elapsed() < poll::PATIENCE);
        Ok(())
    }

    #[test]
    fn what_outlives_its_bound_is_killed_and_quoted() -> Result<()> {
        let mut outlives = Running::start(sh("echo before; exec sleep 1000"))?;
        outlives.line(1)?;
        let error = outlives.finish(Duration::from_millis(300)).unwrap_err();
        assert!(format!("{error:#}").contains("said: before"), "{error:#}");
        Ok(())
    }
}
