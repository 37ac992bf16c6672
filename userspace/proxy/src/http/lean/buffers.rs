//! Buffers that belong to a worker: whoever waits has none, so that a connection costs no buffer between two reads.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::limits::{HTTP1_BUFFER, SPARE_BUFFERS};

/// Those that nobody has at the moment.
#[derive(Default)]
pub(crate) struct Buffers {
    inputs: RefCell<Vec<Buffer>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

/// What was read and is not used up yet.
#[derive(Default)]
pub(crate) struct Buffer {
    /// [`HTTP1_BUFFER`] of them, or none.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

// === impl Buffers ===

impl Buffers {
    /// An empty one.
    pub(crate) fn input(&self) -> Buffer {
        self.inputs.borrow_mut().pop().unwrap_or_else(|| Buffer {
            bytes: vec![0; HTTP1_BUFFER].into(),
            start: 0,
            end: 0,
        })
    }

    /// Whatever is in it is forgotten.
    pub(crate) fn give_input(&self, mut buffer: Buffer) {
        buffer.consume(usize::MAX);
        self.take_back(&mut buffer);
    }

    /// Takes its bytes from one that is empty and that somebody keeps while he waits; [`Buffers::poll_more`] gives it others.
    pub(crate) fn take_back(&self, buffer: &mut Buffer) {
        if buffer.is_empty() && !buffer.bytes.is_empty() {
            (buffer.start, buffer.end) = (0, 0);
            give(&self.inputs, std::mem::take(buffer));
        }
    }

    /// Reads once into `buffer`, behind what is there, and takes it back if it is empty and nothing has come. 0: the end. Must not
    /// be full.
    pub(crate) fn poll_more<R: AsyncRead + Unpin>(
        &self,
        buffer: &mut Buffer,
        reader: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if buffer.bytes.is_empty() {
            *buffer = self.input();
        }
        let filled = buffer.poll_fill(reader, cx);
        if filled.is_pending() {
            self.take_back(buffer);
        }
        filled
    }

    /// For what is to be written; empty.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.outputs.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn give_output(&self, mut output: Vec<u8>) {
        output.clear();
        if output.capacity() <= 2 * HTTP1_BUFFER {
            give(&self.outputs, output);
        }
    }

    /// One with what there is to read; nobody has one while there is nothing. Empty: the end.
    pub(crate) fn poll_read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Buffer>> {
        let mut buffer = Buffer::default();
        let filled = ready!(self.poll_more(&mut buffer, reader, cx));
        if filled.is_err() {
            self.take_back(&mut buffer);
        }
        Poll::Ready(filled.map(|_| buffer))
    }
}

fn give<T>(spare: &RefCell<Vec<T>>, one: T) {
    let mut spare = spare.borrow_mut();
    if spare.len() < SPARE_BUFFERS {
        spare.push(one);
    }
}

// === impl Buffer ===

impl Buffer {
    /// Puts what was read elsewhere behind what is there; `false`: it has no room for it.
    #[must_use]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> bool {
        self.make_room();
        let Some(place) = self.bytes.get_mut(self.end..self.end + bytes.len()) else {
            return false;
        };
        place.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Nothing more can be read before something is used up.
    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == self.bytes.len()
    }

    /// The first `count` of the unread bytes are used up.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Reads once, behind what is there. 0: the end. Must not be full.
    fn poll_fill<R: AsyncRead + Unpin>(&mut self, reader: &mut R, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut read = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(reader).poll_read(cx, &mut read))?;
        let count = read.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_whatever_is_used_up_between() {
        let bytes: Vec<u8> = (0..3 * HTTP1_BUFFER).map(|n| (n % 251) as u8).collect();
        let mut reader = &bytes[..];
        let mut buffer = Buffers::default().input();
        let mut seen = Vec::new();
        while poll_fn(|cx| buffer.poll_fill(&mut reader, cx)).await.unwrap() > 0 {
            let part = buffer.unread().len() / 2 + 1;
            seen.extend_from_slice(&buffer.unread()[..part]);
            buffer.consume(part);
        }
        seen.extend_from_slice(buffer.unread());
        assert!(seen == bytes);
    }

    #[tokio::test]
    async fn a_buffer_that_is_given_back_is_empty_and_whoever_waits_has_none() {
        let buffers = Buffers::default();
        let (_writer, mut reader) = tokio::io::duplex(8);
        let waits = poll_fn(|cx| Poll::Ready(buffers.poll_read(&mut reader, cx).is_pending())).await;
        assert!(waits);
        assert_eq!(buffers.inputs.borrow().len(), 1);
        let mut buffer = buffers.input();
        assert!(buffer.put(b"abc") && !buffer.put(&vec![0; HTTP1_BUFFER]));
        assert_eq!(buffer.unread(), b"abc");
        buffers.give_input(buffer);
        assert!(buffers.input().is_empty());
    }
}
