//! The body of an endpoint's answer, piece by piece, for those who look at it.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::Frame;

use super::{
    buffers::Buffer,
    chunks::{Body, Framing, Piece},
    response::AnswerError,
};
use crate::{io::Socket, upstream::Home, worker::Worker};

/// Gives its connection back when its last byte was read.
pub(crate) struct LeanAnswer {
    /// `None`: it is over.
    from: Option<(Socket, Home)>,
    worker: Rc<Worker>,
    /// What was read and not taken yet.
    input: Buffer,
    body: Body,
    /// The connection can be used again.
    keep: bool,
}

// === impl LeanAnswer ===

impl LeanAnswer {
    /// `input`: what came behind the answer's head.
    pub(super) fn new(worker: &Rc<Worker>, from: (Socket, Home), input: Buffer, framing: Framing, keep: bool) -> Self {
        let mut answer = Self {
            from: Some(from),
            worker: Rc::clone(worker),
            input,
            body: Body::new(framing),
            keep,
        };
        answer.settle();
        answer
    }

    /// What comes next; `None`: the end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, AnswerError>> {
        loop {
            let Some((server, _)) = &mut self.from else {
                return Poll::Ready(Ok(None));
            };
            let frame = match self.body.next(&mut self.input)? {
                Piece::Data(count) => {
                    let data = Bytes::copy_from_slice(&self.input.unread()[..count]);
                    self.input.consume(count);
                    Some(Frame::data(data))
                }
                Piece::Trailers(trailers) => Some(Frame::trailers(*trailers)),
                Piece::Over => None,
                Piece::More => {
                    if ready!(self.worker.buffers.poll_more(&mut self.input, server, cx))? == 0 {
                        self.body.end()?;
                    }
                    continue;
                }
            };
            self.settle();
            return Poll::Ready(Ok(frame));
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.from.is_none()
    }

    fn settle(&mut self) {
        if !self.body.is_over() {
            return;
        }
        // Behind its end nothing may stand: it would be taken for the next one's.
        let clean = self.keep && self.input.is_empty();
        if let Some((server, home)) = self.from.take()
            && clean
        {
            home.keep(server);
        }
        self.worker.buffers.give_input(std::mem::take(&mut self.input));
    }
}

impl Drop for LeanAnswer {
    fn drop(&mut self) {
        self.worker.buffers.give_input(std::mem::take(&mut self.input));
    }
}
