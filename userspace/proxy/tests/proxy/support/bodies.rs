//! Bodies that a test writes piece by piece, and bodies too large to keep.

use std::{
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// Frames from a channel; ends when the sender is dropped.
pub struct Pieces(mpsc::Receiver<Frame<Bytes>>);

/// `length` bytes of a pattern that shows lost, doubled and swapped pieces.
pub struct Pattern {
    at: u64,
    length: u64,
    /// Announce the length, or send chunked.
    sized: bool,
}

// === impl Pieces ===

/// A body and the way to feed it.
pub fn pieces() -> (mpsc::Sender<Frame<Bytes>>, BoxBody<Bytes, hyper::Error>) {
    let (sender, receiver) = mpsc::channel(1);
    (
        sender,
        Pieces(receiver)
            .map_err(|never: std::convert::Infallible| match never {})
            .boxed(),
    )
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

// === impl Pattern ===

const PIECE: u64 = 50_021;

/// A prime, so that the pattern is out of step with every buffer.
const PERIOD_LENGTH: u64 = 65_521;

impl Pattern {
    pub fn sized(length: u64) -> BoxBody<Bytes, hyper::Error> {
        Self {
            at: 0,
            length,
            sized: true,
        }
        .map_err(|never: std::convert::Infallible| match never {})
        .boxed()
    }

    pub fn chunked(length: u64) -> BoxBody<Bytes, hyper::Error> {
        Self {
            at: 0,
            length,
            sized: false,
        }
        .map_err(|never: std::convert::Infallible| match never {})
        .boxed()
    }

    /// The pattern from position `from`, at most to the end of its period.
    fn run(from: u64, count: u64) -> &'static [u8] {
        static PERIOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let mixed = |position: u64| (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
            (0..PERIOD_LENGTH).map(mixed).collect()
        });
        let start = from % PERIOD_LENGTH;
        &PERIOD[start as usize..(start + count).min(PERIOD_LENGTH) as usize]
    }

    pub fn bytes(from: u64, count: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count as usize);
        while (bytes.len() as u64) < count {
            let at = bytes.len() as u64;
            bytes.extend_from_slice(Self::run(from + at, count - at));
        }
        bytes
    }

    /// Whether `bytes` is what stands at position `from`.
    pub fn matches(bytes: &[u8], from: u64) -> bool {
        bytes == Self::bytes(from, bytes.len() as u64)
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let count = (self.length - self.at).min(PIECE);
        if count == 0 {
            return Poll::Ready(None);
        }
        let piece = Self::bytes(self.at, count);
        self.at += count;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.length
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized {
            SizeHint::with_exact(self.length - self.at)
        } else {
            SizeHint::default()
        }
    }
}

/// Reads `body` to its end and compares every byte with the pattern; returns its length.
pub async fn check_pattern<B>(mut body: B) -> u64
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        assert!(Pattern::matches(&data, at), "wrong byte after position {at}");
        at += data.len() as u64;
    }
    at
}
