//! What each end does in each case. The comment of a case says what is looked for.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    poll::PollFlags,
    sys::sendfile::sendfile64,
    unistd::pipe,
};
use socket2::SockRef;
use vm_test::{pattern::Pattern, poll};

use super::side::Side;

/// What most cases send each way: more than fits into a socket's buffers at their first size.
const SOME: usize = 1_000_003;
/// Little enough to be there at once.
const LITTLE: usize = 4_000;
/// Writes of one byte.
const BYTES: usize = 20_000;
/// Bytes of a read of the slow reader.
const SIP: usize = 511;

type Ends = fn(&mut Side) -> Result<()>;

/// Client and server of a case.
fn ends(case: &str) -> Result<(Ends, Ends)> {
    Ok(match case {
        // All of it, then the end, then all of it the other way.
        "half-close-client" => (send_then_receive, receive_then_send),
        "half-close-server" => (receive_then_send, send_then_receive),
        // A reset ends the other end's read, after what was sent before.
        "reset-client" => (reset, is_reset),
        "reset-server" => (is_reset, reset),
        // The sender is stopped while nobody reads; then everything comes.
        "zero-window-up" => (fill, read_late),
        "zero-window-down" => (read_late, fill),
        // Everything comes in small reads that the sender is always ahead of.
        "slow-reader" => (gush, sip),
        // Each byte a write, both ways at once.
        "byte-writes" => (bytes, bytes),
        // All of it in one write; then the other way.
        "huge-writes" => (huge_first, huge_second),
        // The server speaks first, and the client only then.
        "server-first" => (answer, speak),
        // A receiver that splices, as Go's io.Copy does, and one the other way.
        "splice" => (send_and_splice, splice_and_send),
        // A sender that sends a file, as nginx does, and one the other way.
        "sendfile" => (file_and_receive, receive_and_file),
        // What was looked at comes again, whole.
        "peek" => (peek_second, peek_first),
        // FIONREAD says what is there.
        "unread" => (unread_second, unread_first),
        // Words in the clear, then kernel TLS on both ends.
        "ktls" => (tls_client, tls_server),
        vm_test::torture::MANY => (short, short_server),
        _ => bail!("no case {case}"),
    })
}

pub fn client(case: &str, side: &mut Side) -> Result<()> {
    ends(case)?.0(side)
}

pub fn server(case: &str, side: &mut Side) -> Result<()> {
    ends(case)?.1(side)
}

fn send_then_receive(side: &mut Side) -> Result<()> {
    side.send(SOME, 64 * 1024)?;
    side.done()?;
    side.receive_all()
}

fn receive_then_send(side: &mut Side) -> Result<()> {
    side.receive_all()?;
    side.send(SOME, 64 * 1024)?;
    side.done()
}

fn reset(side: &mut Side) -> Result<()> {
    side.send(SOME, 64 * 1024)?;
    // Everything was read at the other end: what is read after the reset is the reset.
    side.hear(&format!("reset-read-{}", side.serves))?;
    SockRef::from(&side.stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

fn is_reset(side: &mut Side) -> Result<()> {
    side.receive(SOME, 64 * 1024)?;
    side.say(&format!("reset-read-{}", !side.serves), "")?;
    match side.read(&mut [0; 1]) {
        Ok(0) => side.note = Some("end".to_owned()),
        Ok(_) => bail!("more bytes than were sent"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => side.note = Some("reset".to_owned()),
        Err(error) => return Err(error).context("read after the reset"),
    }
    Ok(())
}

fn fill(side: &mut Side) -> Result<()> {
    // A direction is what it is at its first byte; and the other end is known to be there.
    side.send(1, 1)?;
    let filled = side.fill();
    side.say(&format!("filled-{}", side.serves), "")?;
    filled?;
    side.send(SOME, 64 * 1024)?;
    side.done()?;
    side.receive_all()
}

fn read_late(side: &mut Side) -> Result<()> {
    side.receive(1, 1)?;
    side.hear(&format!("filled-{}", !side.serves))?;
    side.receive_all()?;
    side.done()
}

fn gush(side: &mut Side) -> Result<()> {
    side.send(4 * SOME, 256 * 1024)?;
    side.done()?;
    side.receive_all()
}

fn sip(side: &mut Side) -> Result<()> {
    side.receive(4 * SOME, SIP)?;
    side.receive_all()?;
    side.send(1, 1)?;
    side.done()
}

fn bytes(side: &mut Side) -> Result<()> {
    let (stream, mut out) = (side.stream.try_clone()?, side.next(BYTES));
    let sender = thread::spawn(move || out.drain(..).try_for_each(|byte| (&stream).write_all(&[byte])));
    let received = side.receive(BYTES, 4096);
    let sent = sender.join();
    ensure!(matches!(sent, Ok(Ok(()))), "write: {sent:?}");
    side.went(BYTES);
    received?;
    side.done()?;
    side.receive_all()
}

fn huge_first(side: &mut Side) -> Result<()> {
    let bytes = side.place.bytes;
    side.send(bytes, bytes)?;
    side.receive(bytes, 256 * 1024)?;
    side.done()?;
    side.receive_all()
}

fn huge_second(side: &mut Side) -> Result<()> {
    let bytes = side.place.bytes;
    side.receive(bytes, 256 * 1024)?;
    side.send(bytes, bytes)?;
    side.receive_all()?;
    side.done()
}

fn speak(side: &mut Side) -> Result<()> {
    side.send(LITTLE, LITTLE)?;
    side.receive(LITTLE, LITTLE)?;
    side.send(SOME, SOME)?;
    side.done()?;
    side.receive_all()
}

fn answer(side: &mut Side) -> Result<()> {
    side.receive(LITTLE, LITTLE)?;
    side.send(LITTLE, LITTLE)?;
    side.receive_all()?;
    side.done()
}

fn send_and_splice(side: &mut Side) -> Result<()> {
    side.send(SOME, 16 * 1024)?;
    spliced(side, SOME)?;
    side.done()
}

fn splice_and_send(side: &mut Side) -> Result<()> {
    spliced(side, SOME)?;
    side.send(SOME, 16 * 1024)?;
    side.receive_all()
}

/// Receives by splice(2) into a pipe, non-blocking, when poll(2) says that there is something.
fn spliced(side: &mut Side, bytes: usize) -> Result<()> {
    const PIECE: usize = 32 * 1024;
    let (from, to) = pipe().context("make a pipe")?;
    let mut from = File::from(from);
    let mut buffer = vec![0; PIECE];
    let (mut left, mut idle) = (bytes, Instant::now());
    side.stream.set_nonblocking(true)?;
    while left > 0 {
        side.readable()?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(side.as_fd(), None, to.as_fd(), None, PIECE.min(left), flags) {
            Ok(0) => bail!("splice says the end, {left} of {bytes} bytes missing"),
            Ok(got) => {
                from.read_exact(&mut buffer[..got]).context("read the pipe")?;
                side.took(&buffer[..got]);
                left -= got;
                idle = Instant::now();
            }
            Err(Errno::EAGAIN) if idle.elapsed() < poll::scaled(Duration::from_secs(3)) => thread::yield_now(),
            Err(error) => {
                bail!("splice says {error} where poll says there is something, {left} of {bytes} bytes missing")
            }
        }
    }
    side.stream.set_nonblocking(false)?;
    side.right()
}

fn file_and_receive(side: &mut Side) -> Result<()> {
    send_file(side)?;
    side.receive(SOME, 64 * 1024)?;
    side.done()
}

fn receive_and_file(side: &mut Side) -> Result<()> {
    side.receive(SOME, 64 * 1024)?;
    send_file(side)?;
    side.receive_all()
}

fn send_file(side: &mut Side) -> Result<()> {
    let path = side.place.dir.join(format!("file-{}", side.name()));
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("make {}", path.display()))?;
    io::copy(&mut Pattern::default().take(SOME as u64), &mut file).context("fill the file")?;
    file.rewind()?;
    let mut left = SOME;
    while left > 0 {
        let sent = sendfile64(&side.stream, &file, None, left).context("sendfile")?;
        ensure!(sent > 0, "sendfile sends nothing, {left} bytes left");
        side.went(sent);
        left -= sent;
    }
    Ok(())
}

fn peek_first(side: &mut Side) -> Result<()> {
    peeked(side)?;
    side.send(LITTLE, LITTLE)?;
    side.receive_all()
}

fn peek_second(side: &mut Side) -> Result<()> {
    side.send(LITTLE, LITTLE)?;
    peeked(side)?;
    side.done()
}

/// Looks until all of it is there, then reads it.
fn peeked(side: &mut Side) -> Result<()> {
    let mut expected = vec![0; LITTLE];
    Pattern::default().fill(&mut expected);
    let mut seen = vec![0; LITTLE];
    let since = Instant::now();
    loop {
        side.readable()?;
        let count = match side.stream.peek(&mut seen) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                side.spurious += 1;
                0
            }
            result => result.context("peek")?,
        };
        if count == LITTLE {
            break;
        }
        ensure!(seen[..count] == expected[..count], "peek shows other bytes");
        ensure!(
            since.elapsed() < poll::scaled(Duration::from_secs(3)),
            "peek shows {count} of {LITTLE} bytes"
        );
        thread::yield_now();
    }
    ensure!(seen == expected, "peek shows other bytes");
    side.receive(LITTLE, LITTLE)
}

fn unread_first(side: &mut Side) -> Result<()> {
    told_unread(side)?;
    side.send(LITTLE, LITTLE)?;
    side.receive_all()
}

fn unread_second(side: &mut Side) -> Result<()> {
    side.send(LITTLE, LITTLE)?;
    told_unread(side)?;
    side.done()
}

/// Reads one byte of many, and asks how many are left until the answer is right.
fn told_unread(side: &mut Side) -> Result<()> {
    side.receive(1, 1)?;
    let since = Instant::now();
    let said = loop {
        let said = rustix::io::ioctl_fionread(&side.stream).context("ask FIONREAD")?;
        if said == LITTLE as u64 - 1 || since.elapsed() > poll::scaled(Duration::from_secs(2)) {
            break said;
        }
        thread::yield_now();
    };
    side.receive(LITTLE - 1, LITTLE)?;
    ensure!(
        said == LITTLE as u64 - 1,
        "FIONREAD says {said} where {} are unread",
        LITTLE - 1
    );
    Ok(())
}

fn short(side: &mut Side) -> Result<()> {
    side.send(SIP, SIP)?;
    side.receive(LITTLE, LITTLE)?;
    side.done()?;
    side.receive_all()
}

fn short_server(side: &mut Side) -> Result<()> {
    side.receive(SIP, SIP)?;
    side.send(LITTLE, LITTLE)?;
    side.receive_all()?;
    side.done()
}

fn tls_client(side: &mut Side) -> Result<()> {
    side.send(LITTLE, LITTLE)?;
    side.receive(LITTLE, LITTLE)?;
    let note = begin_tls(side, "tls-client")?;
    let theirs = side.hear("tls-server")?;
    ensure!(note == theirs, "kernel TLS: {note} here, {theirs} there");
    encrypted(side, note)
}

fn tls_server(side: &mut Side) -> Result<()> {
    side.receive(LITTLE, LITTLE)?;
    side.send(LITTLE, LITTLE)?;
    // Not before the client has read what came in the clear.
    side.hear("tls-client")?;
    let note = begin_tls(side, "tls-server")?;
    encrypted(side, note)
}

/// Tells the other end how it went, also where it went wrong.
fn begin_tls(side: &Side, what: &str) -> Result<String> {
    let begun = super::tls::begin(side);
    side.say(what, begun.as_ref().map_or("failed", |note| note.as_str()))?;
    begun
}

/// Both ways, encrypted by the kernel or (where it does not) not at all.
fn encrypted(side: &mut Side, note: String) -> Result<()> {
    if side.serves {
        side.receive(SOME, 16 * 1024)?;
        side.send(SOME, 16 * 1024)?;
        side.wait(PollFlags::POLLIN, poll::scaled(Duration::from_secs(20)))?;
    } else {
        side.send(SOME, 16 * 1024)?;
        side.receive(SOME, 16 * 1024)?;
    }
    side.note = Some(note);
    side.done()
}
