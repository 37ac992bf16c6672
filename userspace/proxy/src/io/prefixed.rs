//! A stream whose first bytes were read already.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives `prefix` to the reader first, then what the stream has.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

// === impl Prefixed ===

impl<S> Prefixed<S> {
    pub(crate) fn new(prefix: Bytes, stream: S) -> Self {
        Self { prefix, stream }
    }

    /// Puts `earlier` before everything that was not read yet.
    pub(crate) fn prepend(&mut self, earlier: Bytes) {
        if earlier.is_empty() {
            // Nothing, but it may hold on to a buffer of kilobytes.
            return;
        }
        if self.prefix.is_empty() {
            self.prefix = earlier;
        } else {
            let mut joined = BytesMut::with_capacity(earlier.len() + self.prefix.len());
            joined.extend_from_slice(&earlier);
            joined.extend_from_slice(&self.prefix);
            self.prefix = joined.freeze();
        }
    }

    /// Something was not read yet.
    pub(crate) fn has_prefix(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// What was not read yet, of what was read before.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// It was read elsewhere.
    pub(crate) fn forget_prefix(&mut self) {
        self.prefix = Bytes::new();
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Past what was not read yet.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// What was not read yet, and the stream.
    pub(crate) fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Some bytes of a buffer that is there as long as it is counted.
    struct Buffer {
        _there: Arc<()>,
        bytes: &'static [u8],
    }

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            self.bytes
        }
    }

    #[tokio::test]
    async fn no_buffer_is_kept_for_bytes_that_are_not_there() {
        let buffers = Arc::new(());
        let buffer = |bytes| {
            let _there = Arc::clone(&buffers);
            Bytes::from_owner(Buffer { _there, bytes })
        };
        let mut stream = Prefixed::new(buffer(b"a"), &b"b"[..]);
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        assert_eq!(Arc::strong_count(&buffers), 1, "after it was read");
        stream.prepend(buffer(b""));
        assert_eq!(Arc::strong_count(&buffers), 1, "of nothing");
        assert_eq!(stream.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn the_prefix_comes_first_and_nothing_is_lost_in_small_reads() {
        let mut stream = Prefixed::new(Bytes::from_static(b"cd"), &b"ef"[..]);
        stream.prepend(Bytes::from_static(b"ab"));
        let mut read = Vec::new();
        let mut byte = [0u8; 1];
        while stream.read(&mut byte).await.unwrap() == 1 {
            read.push(byte[0]);
        }
        assert_eq!(read, b"abcdef");
    }
}
