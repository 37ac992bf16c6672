//! Messages of gRPC on a body, and what an answer's head and trailers say.
//!
//! Source: grpc/grpc, `doc/PROTOCOL-HTTP2.md`. Compressed messages are not asked for and not read.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::kept::Hold;
use crate::{grpc::FRAME, upstreams::CallError};

/// Longest message in bytes, either way.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// Messages of a stream that wait to be sent.
pub(super) const MAX_WAITING: usize = 64;

/// `DEADLINE_EXCEEDED`.
pub(super) const DEADLINE: u32 = 4;
/// `RESOURCE_EXHAUSTED`.
pub(super) const EXHAUSTED: u32 = 8;
/// `INTERNAL`.
pub(super) const INTERNAL: u32 = 13;
/// `UNAVAILABLE`.
pub(super) const UNAVAILABLE: u32 = 14;

/// A message with its prefix.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(FRAME + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// Takes messages out of what came.
#[derive(Debug, Default)]
pub(super) struct Unframe {
    waiting: BytesMut,
}

/// The stream holds what is no message, or one too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFrame;

/// A body of messages as they are sent. The other end dropped: it ends.
#[derive(Debug)]
pub(super) struct Outgoing(pub mpsc::Receiver<(Bytes, Hold)>);

// === impl Unframe ===

impl Unframe {
    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<Bytes>, BadFrame> {
        let Some((&[flag, a, b, c, d], _)) = self.waiting.split_first_chunk::<FRAME>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flag != 0 || length > MAX_MESSAGE {
            return Err(BadFrame);
        }
        if self.waiting.len() < FRAME + length {
            return Ok(None);
        }
        self.waiting.advance(FRAME);
        Ok(Some(self.waiting.split_to(length).freeze()))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        self.0
            .poll_recv(cx)
            .map(|sent| sent.map(|(bytes, _kept)| Ok(Frame::data(bytes))))
    }
}

/// Status and message that trailers, or a head without a body, say.
pub(super) fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let status = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers
        .get("grpc-message")
        .map(|text| String::from_utf8_lossy(text.as_bytes()));
    Some((status, message.unwrap_or_default().into_owned()))
}

/// Status of an answer that is not gRPC's. Source: grpc/grpc, `doc/http-grpc-status-mapping.md`.
pub(super) fn status_of(code: StatusCode) -> u32 {
    match code.as_u16() {
        400 => INTERNAL,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let all = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for size in 1..=all.len() {
            let mut unframe = Unframe::default();
            let mut got = Vec::new();
            for piece in all.chunks(size) {
                unframe.push(piece);
                while let Some(message) = unframe.next().expect("good frames") {
                    got.push(message);
                }
            }
            assert_eq!(got, ["one", "", "three"], "{size}");
        }
    }

    #[test]
    fn what_is_compressed_or_too_long_is_refused() {
        for bytes in [&[1, 0, 0, 0, 0][..], &[0, 0xff, 0, 0, 0]] {
            let mut unframe = Unframe::default();
            unframe.push(bytes);
            assert_eq!(unframe.next(), Err(BadFrame));
        }
    }
}
