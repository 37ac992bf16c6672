//! What a connection writes in one turn, written with one call.
//!
//! h2 hands over what it has to send in pieces: its encoder takes one DATA frame of 256 bytes or more at a time, so that each answer
//! of a turn is a system call of its own. Here they are held while the connection is polled, and go out together when it was:
//!
//! ```text
//!  task --> Outlet::drive --> connection --> Gather: held, up to GATHER_BUFFER     (a turn)
//!               +--> stream <--- all that is held, one write                       (its end)
//! ```
//! What the stream does not take stays, and the task is woken when it takes more: it is the task's anyway. Beyond the limit whoever
//! writes waits, as on the stream itself. Who writes outside a turn (a handshake) flushes, as always.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::{GATHER_BUFFER, GATHER_COPY};

thread_local! {
    /// The buffer of the last connection that had nothing left: few turns leave anything, so a thread needs one, and a connection
    /// between two turns has none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Slices of a large write that go out behind what is held: h2 gives the head of a frame and its payload.
const SLICES: usize = 3;

/// The connection's side of a stream.
#[derive(Debug)]
pub(crate) struct Gather<S>(Rc<RefCell<Gathering<S>>>);

/// The side of whoever polls the connection. It keeps no stream open.
#[derive(Debug)]
pub(crate) struct Outlet<S>(Weak<RefCell<Gathering<S>>>);

#[derive(Debug)]
struct Gathering<S> {
    stream: S,
    /// To be written, from `written` on.
    held: Vec<u8>,
    written: usize,
    /// What writing came to when a turn had ended: the connection hears it in the next.
    failed: Option<io::Error>,
    /// Somebody polls who writes what is held afterwards.
    in_turn: bool,
}

/// Makes both sides of `stream`, which must not need a flush.
pub(crate) fn gather<S>(stream: S) -> (Gather<S>, Outlet<S>) {
    let gathering = Rc::new(RefCell::new(Gathering {
        stream,
        held: Vec::new(),
        written: 0,
        failed: None,
        in_turn: false,
    }));
    let outlet = Outlet(Rc::downgrade(&gathering));
    (Gather(gathering), outlet)
}

// === impl Outlet ===

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Runs `connection`, each poll of which is a turn.
    pub(crate) async fn drive<F: Future>(self, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let Some(gathering) = self.0.upgrade() else {
                return connection.as_mut().poll(cx);
            };
            gathering.borrow_mut().in_turn = true;
            let polled = connection.as_mut().poll(cx);
            gathering.borrow_mut().end_turn(cx);
            polled
        })
        .await
    }
}

// === impl Gathering ===

impl<S> Gathering<S> {
    /// What became of the last turn.
    fn hear(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn left(&self) -> usize {
        self.held.len() - self.written
    }

    fn hold(&mut self, bufs: &[IoSlice<'_>]) {
        if self.held.capacity() == 0 {
            self.held = SPARE.take();
            self.held.reserve_exact(GATHER_BUFFER);
        }
        self.held.drain(..self.written);
        self.written = 0;
        for buf in bufs {
            self.held.extend_from_slice(buf);
        }
    }

    /// Nothing is held any more.
    fn let_go(&mut self) {
        let mut held = mem::take(&mut self.held);
        self.written = 0;
        held.clear();
        SPARE.set(held);
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn end_turn(&mut self, cx: &mut Context<'_>) {
        self.in_turn = false;
        if let Poll::Ready(Err(error)) = self.poll_out(cx) {
            self.failed = Some(error);
            // The connection is to hear it, and may wait for something else.
            cx.waker().wake_by_ref();
        }
    }

    /// Writes what is held. After an error nothing is.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left() > 0 {
            let rest = &self.held[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)).and_then(some) {
                Ok(count) => self.wrote(count),
                Err(error) => {
                    self.let_go();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Of what is held.
    fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.left() == 0 {
            self.let_go();
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.hear()?;
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if length > GATHER_COPY {
            return self.poll_write_through(cx, bufs);
        }
        if self.left() + length > GATHER_BUFFER {
            ready!(self.poll_out(cx))?;
        }
        if length > 0 {
            self.hold(bufs);
        }
        Poll::Ready(Ok(length))
    }

    /// Writes what is held, and `bufs` from where they are.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let left = self.left();
            if left == 0 {
                return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
            }
            let mut all = [IoSlice::new(&[]); SLICES + 1];
            let (held, behind) = all.split_at_mut(1);
            held[0] = IoSlice::new(&self.held[self.written..]);
            for (place, buf) in behind.iter_mut().zip(bufs) {
                *place = IoSlice::new(buf);
            }
            match ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &all)).and_then(some) {
                Ok(count) if count > left => {
                    self.let_go();
                    return Poll::Ready(Ok(count - left));
                }
                Ok(count) => self.wrote(count),
                Err(error) => {
                    self.let_go();
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

/// A stream that takes nothing and does not wait never takes anything.
fn some(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

// === impl Gather ===

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.hear()?;
        Pin::new(&mut gathering.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    /// In a turn it is its end that writes.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.hear()?;
        match gathering.in_turn {
            true => Poll::Ready(Ok(())),
            false => gathering.poll_out(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.hear()?;
        ready!(gathering.poll_out(cx))?;
        Pin::new(&mut gathering.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
