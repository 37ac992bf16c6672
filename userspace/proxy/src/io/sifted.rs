//! HTTP/2 without the DATA frames that carry nothing.
//!
//! A DATA frame without a byte that does not end its stream means nothing, and RFC 9113 allows it (6.1). Programs send some: those that
//! stream an empty piece do. h2 grants a connection 100 of them in its life, however many streams that has, and then ends it with
//! all that is under way: on a connection to an endpoint also the streams of other clients. So they are taken out before h2 sees
//! them. A flood (CVE-2019-9518) stays a flood: of those in a row the first [`H2_EMPTY_IN_A_ROW`] are taken out, and h2 counts the
//! rest.
//!
//! Only whole frames of length 0 are: padded ones have a length, and weigh on flow control.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::H2_EMPTY_IN_A_ROW;

/// Length of a frame's head: three bytes of length, then its type, its flags, and four of its stream (RFC 9113, 4.1).
const HEAD: usize = 9;

/// Length of what a client's connection begins with (RFC 9113, 3.4).
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Readers with less room than for a head are given what was read for them.
const SMALL: usize = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Takes them out of what is read from a stream.
#[derive(Debug)]
pub(crate) struct Sifted<S> {
    stream: S,
    sieve: Sieve,
    /// Read and sifted, for a reader that had no room for it.
    over: Bytes,
}

#[derive(Debug, Default)]
struct Sieve {
    /// So many bytes to come are no head: the rest of a frame, or of the preface.
    rest: usize,
    /// The begin of a head that has not come whole: the reader has seen nothing of it.
    head: [u8; HEAD],
    known: usize,
    /// No frame may come between those of a header block, and h2 is to see one that does.
    in_block: bool,
    /// Empty frames since one that is not.
    in_a_row: u32,
}

// === impl Sifted ===

impl<S> Sifted<S> {
    /// What a client sends.
    pub(crate) fn of_client(stream: S) -> Self {
        Self::new(stream, PREFACE)
    }

    /// What a server sends.
    pub(crate) fn of_server(stream: S) -> Self {
        Self::new(stream, 0)
    }

    fn new(stream: S, rest: usize) -> Self {
        Self {
            stream,
            sieve: Sieve {
                rest,
                ..Sieve::default()
            },
            over: Bytes::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sifted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, sieve, over } = &mut *self;
        if over.is_empty() {
            if buf.remaining() > HEAD {
                return sieve.poll_read(stream, cx, buf);
            }
            let mut small = [0; SMALL];
            let mut read = ReadBuf::new(&mut small);
            ready!(sieve.poll_read(stream, cx, &mut read))?;
            *over = Bytes::copy_from_slice(read.filled());
        }
        let count = over.len().min(buf.remaining());
        buf.put_slice(&over.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sifted<S> {
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

// === impl Sieve ===

impl Sieve {
    /// Reads until something stays, or to the end. `buf` must have room for more than a head.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        loop {
            buf.put_slice(&self.head[..self.known]);
            let before = buf.filled().len();
            let read = Pin::new(&mut *stream).poll_read(cx, buf);
            if !matches!(read, Poll::Ready(Ok(()))) {
                buf.set_filled(start);
                return read;
            }
            self.known = 0;
            if buf.filled().len() == before {
                // The end. The begin of a head, if there was one, is the reader's.
                return Poll::Ready(Ok(()));
            }
            let stays = self.sift(&mut buf.filled_mut()[start..]);
            buf.set_filled(start + stays);
            if stays > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Moves what stays to the front; returns how much that is. Keeps the begin of a head that is not whole.
    fn sift(&mut self, bytes: &mut [u8]) -> usize {
        let (mut at, mut stays) = (0, 0);
        loop {
            let mut length = self.rest.min(bytes.len() - at);
            self.rest -= length;
            let begin = at + length;
            let next = match bytes.get(begin..begin + HEAD) {
                Some(head) => {
                    if self.stays(head) {
                        length += HEAD;
                    }
                    Some(begin + HEAD)
                }
                None => {
                    let begin = &bytes[begin..];
                    self.known = begin.len();
                    self.head[..begin.len()].copy_from_slice(begin);
                    None
                }
            };
            if at > stays {
                bytes.copy_within(at..at + length, stays);
            }
            stays += length;
            match next {
                Some(next) => at = next,
                None => return stays,
            }
        }
    }

    /// Whether the frame with this head is for the reader.
    fn stays(&mut self, head: &[u8]) -> bool {
        let &[high, middle, low, kind, flags, ref stream @ ..] = head else {
            return true;
        };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let is_empty = length == 0
            && kind == DATA
            && flags & (END_STREAM | PADDED) == 0
            && stream.iter().any(|byte| *byte != 0)
            && !self.in_block;
        if is_empty {
            self.in_a_row = self.in_a_row.saturating_add(1);
            return self.in_a_row > H2_EMPTY_IN_A_ROW;
        }
        self.in_a_row = 0;
        self.rest = length;
        if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
        true
    }
}

#[cfg(test)]
mod tests;
