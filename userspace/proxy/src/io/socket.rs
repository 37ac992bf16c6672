//! A TCP socket, which may be in the kernel's SOCKHASH.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    limits::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES},
    netns::Held,
};

/// A [`TcpStream`]; one that has two queues is asked again until it says that there is nothing.
///
/// tokio takes a read that fills only part of the buffer for proof that the socket is empty, and waits for the next
/// edge. That holds for TCP. A socket in a SOCKHASH has two queues, and one read takes from one of them: bytes handed
/// over past TCP come first, and behind them bytes that went through TCP may already wait, whose edge is gone.
/// The reader would then wait for ever. So there readiness is only given up when the kernel answers EAGAIN; that is one
/// system call more for each time the reader runs dry. (A FIN behind them is not lost: tokio keeps that it came.)
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    /// See [`Origin::has_two_queues`](crate::Origin::has_two_queues).
    two_queues: bool,
    /// Released after the stream is closed.
    _held: Option<Held>,
}

/// Its end comes to be known, also where the other side says nothing more. What a listener accepts has it from there.
pub(crate) fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

// === impl Socket ===

impl Socket {
    /// `two_queues`: see [`Origin::has_two_queues`](crate::Origin::has_two_queues). `held`: of one with a client's address.
    pub(crate) fn new(stream: TcpStream, two_queues: bool, held: Option<Held>) -> Self {
        Self {
            stream,
            two_queues,
            _held: held,
        }
    }

    /// Whether nothing has come on it, not even its end, as far as is known. A byte that has is lost.
    pub(crate) fn is_quiet(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.two_queues {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                // Readiness is given up by this answer; the next look registers the task.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
