//! The body of an endpoint's answer, piece by piece, for those who look at it.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{
    buffers::Buffer,
    chunks::{Body, Framing, Piece},
    response::AnswerError,
};
use crate::{io::Socket, upstream::Upstream, worker::Worker};

/// Gives its connection back when its last byte was read.
pub(crate) struct LeanAnswer {
    /// `None`: it is over.
    from: Option<(Socket, Upstream)>,
    worker: Rc<Worker>,
    /// What was read and not taken yet.
    input: Option<Buffer>,
    body: Body,
    /// The connection can be used again.
    keep: bool,
}

// === impl LeanAnswer ===

impl LeanAnswer {
    /// `input`: what came behind the answer's head.
    pub(super) fn new(
        worker: &Rc<Worker>,
        from: (Socket, Upstream),
        input: Buffer,
        framing: Framing,
        keep: bool,
    ) -> Self {
        let mut answer = Self {
            from: Some(from),
            worker: Rc::clone(worker),
            input: Some(input),
            body: Body::new(framing),
            keep,
        };
        answer.settle();
        answer
    }

    /// What comes next; `None`: the end.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, AnswerError>> {
        loop {
            let Some((server, _)) = &mut self.from else {
                return Poll::Ready(Ok(None));
            };
            let input = self.input.get_or_insert_with(|| self.worker.buffers.input());
            match self.body.next(input)? {
                Piece::Data(count) => {
                    let data = Bytes::copy_from_slice(&input.unread()[..count]);
                    input.consume(count);
                    self.settle();
                    return Poll::Ready(Ok(Some(data)));
                }
                Piece::Over => self.settle(),
                Piece::More => {
                    let filled = input.poll_fill(server, cx);
                    if filled.is_pending() && input.is_empty() {
                        self.give_input();
                    }
                    if ready!(filled)? == 0 {
                        self.body.end()?;
                    }
                }
            }
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
        let clean = self.keep && self.input.as_ref().is_none_or(Buffer::is_empty);
        if let Some((server, upstream)) = self.from.take()
            && clean
        {
            self.worker.pool.keep_plain(upstream, server);
        }
        self.give_input();
    }

    fn give_input(&mut self) {
        if let Some(input) = self.input.take() {
            self.worker.buffers.give_input(input);
        }
    }
}

impl Drop for LeanAnswer {
    fn drop(&mut self) {
        self.give_input();
    }
}
