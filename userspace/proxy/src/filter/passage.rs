//! A body on its way through the filters of a request.
//!
//! Each filter has a stage, in the order in which this direction meets them. A piece goes from stage to stage until one
//! pauses; there it stays, the next piece is put behind it, and the filter is shown both:
//!
//! ```text
//!   input --> [first: passes on] --> [second: pauses, holds "abc"] --> [third] --> output
//! ```
//! A stage that resumes passes on what it holds without being shown it again.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use crate::limits::FILTER_BODY_BUFFER;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::Frame;

/// The filters that a passage leads through, in the order in which it meets them.
pub(crate) trait Stages {
    /// Why a filter ends the stream.
    type Stop;

    /// Whether the filter lets `data` pass on.
    fn on_data(&self, at: usize, data: &mut BytesMut, end: bool) -> Result<bool, Self::Stop>;

    /// Whether the filter lets `trailers` pass on, and before them what it held.
    fn on_trailers(&self, at: usize, trailers: &mut HeaderMap, held: &mut BytesMut) -> Result<bool, Self::Stop>;

    /// Ready: the filter goes on, with what it held.
    fn poll_resume(
        &self,
        at: usize,
        cx: &mut Context<'_>,
        data: &mut BytesMut,
        trailers: Option<&mut HeaderMap>,
    ) -> Poll<Result<(), Self::Stop>>;

    /// The filter pauses, and more than [`FILTER_BODY_BUFFER`] is held. `Ok`: nothing more is read until something passes.
    fn on_full(&self, at: usize) -> Result<(), Self::Stop>;
}

/// One body's way.
pub(crate) struct Passage {
    stages: Line,
    output: Ready,
    /// Bytes in all stages.
    held: usize,
    /// The input has come to its end.
    ended: bool,
    /// The end has passed all stages.
    passed: bool,
}

#[derive(Default)]
struct Stage {
    paused: bool,
    /// Not passed on yet.
    body: BytesMut,
    /// The filter was told that `body` is the end.
    ended: bool,
    /// Not passed on yet.
    trailers: Option<HeaderMap>,
}

/// Stages, the first to be met first. Most passages have one: that needs no memory of its own.
struct Line {
    count: usize,
    first: Stage,
    others: Vec<Stage>,
}

/// Frames that have passed all stages. Most bodies are one: that needs no memory of its own.
#[derive(Default)]
struct Ready {
    first: Option<Frame<Bytes>>,
    /// Behind the first.
    others: VecDeque<Frame<Bytes>>,
}

/// A piece of the input: what came, and whether nothing comes after it. `None`: the end, without a piece.
pub(crate) type Input = Option<(Frame<Bytes>, bool)>;

/// Why a passage broke off.
#[derive(Debug)]
pub(crate) enum Broke<E, S> {
    Input(E),
    Filter(S),
}

/// What comes out next; `None`: the end.
pub(crate) type Output<E, S> = Option<Result<Frame<Bytes>, Broke<E, S>>>;

// === impl Passage ===

impl Passage {
    /// Through `count` filters.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            stages: Line::new(count),
            output: Ready::default(),
            held: 0,
            ended: false,
            passed: false,
        }
    }

    /// Nothing more comes out.
    pub(crate) fn is_over(&self) -> bool {
        self.passed && self.output.is_empty()
    }

    /// What comes out next; `read` gives what comes in.
    pub(crate) fn poll_frame<E, S: Stages>(
        &mut self,
        filters: &S,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>) -> Poll<Result<Input, E>>,
    ) -> Poll<Output<E, S::Stop>> {
        loop {
            if let Some(frame) = self.output.pop() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.passed {
                return Poll::Ready(None);
            }
            match self.resume(filters, cx) {
                Ok(false) => {}
                // What a stage let go may pause in a later one, which must then be asked too.
                Ok(true) => continue,
                Err(stop) => return Poll::Ready(Some(Err(Broke::Filter(stop)))),
            }
            if self.ended || self.held > FILTER_BODY_BUFFER {
                // A filter holds the rest, or enough.
                return Poll::Pending;
            }
            let came = match std::task::ready!(read(cx)) {
                Ok(Some((frame, end))) => self.take(filters, frame, end),
                Ok(None) => {
                    self.ended = true;
                    self.data(filters, 0, BytesMut::new(), true)
                }
                Err(error) => return Poll::Ready(Some(Err(Broke::Input(error)))),
            };
            if let Err(stop) = came {
                return Poll::Ready(Some(Err(Broke::Filter(stop))));
            }
        }
    }

    fn take<S: Stages>(&mut self, filters: &S, frame: Frame<Bytes>, end: bool) -> Result<(), S::Stop> {
        self.ended |= end;
        match frame.into_data() {
            Ok(data) => self.data(filters, 0, data.into(), end),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.ended = true;
                    self.trailers(filters, 0, trailers)
                }
                // HTTP has no third kind of frame.
                Err(_) => Ok(()),
            },
        }
    }

    /// Asks those that pause, last first. Whether one goes on.
    fn resume<S: Stages>(&mut self, filters: &S, cx: &mut Context<'_>) -> Result<bool, S::Stop> {
        let mut released = false;
        for at in (0..self.stages.count).rev() {
            let stage = self.stages.at(at);
            if !stage.paused {
                continue;
            }
            let before = stage.body.len();
            let resumed = filters.poll_resume(at, cx, &mut stage.body, stage.trailers.as_mut());
            self.held = self.held - before + stage.body.len();
            let Poll::Ready(resumed) = resumed else {
                continue;
            };
            resumed?;
            self.release(filters, at)?;
            released = true;
        }
        Ok(released)
    }

    /// Passes on what a stage holds.
    fn release<S: Stages>(&mut self, filters: &S, at: usize) -> Result<(), S::Stop> {
        let stage = self.stages.at(at);
        stage.paused = false;
        let (body, trailers) = (std::mem::take(&mut stage.body), stage.trailers.take());
        let end = stage.ended;
        self.held -= body.len();
        self.data(filters, at + 1, body, end)?;
        match trailers {
            Some(trailers) => self.trailers(filters, at + 1, trailers),
            None => Ok(()),
        }
    }

    /// Shows `data` to the stages from `at` on, until one pauses.
    fn data<S: Stages>(&mut self, filters: &S, at: usize, mut data: BytesMut, end: bool) -> Result<(), S::Stop> {
        for at in at..self.stages.count {
            if data.is_empty() && !end {
                return Ok(());
            }
            let stage = self.stages.at(at);
            if !stage.body.is_empty() {
                self.held -= stage.body.len();
                let mut all = std::mem::take(&mut stage.body);
                all.unsplit(data);
                data = all;
            }
            stage.ended |= end;
            stage.paused = !filters.on_data(at, &mut data, end)?;
            if stage.paused {
                self.held += data.len();
                stage.body = data;
                return if self.held > FILTER_BODY_BUFFER {
                    filters.on_full(at)
                } else {
                    Ok(())
                };
            }
        }
        if !data.is_empty() {
            self.output.push(Frame::data(data.freeze()));
        }
        self.passed |= end;
        Ok(())
    }

    /// Shows `trailers` to the stages from `at` on, each with what it holds. One that lets them pass lets pass that before them.
    fn trailers<S: Stages>(&mut self, filters: &S, at: usize, mut trailers: HeaderMap) -> Result<(), S::Stop> {
        for at in at..self.stages.count {
            let stage = self.stages.at(at);
            let before = stage.body.len();
            let passes = filters.on_trailers(at, &mut trailers, &mut stage.body)?;
            self.held = self.held - before + stage.body.len();
            if !passes {
                stage.paused = true;
                stage.trailers = Some(trailers);
                return Ok(());
            }
            self.release(filters, at)?;
        }
        self.output.push(Frame::trailers(trailers));
        self.passed = true;
        Ok(())
    }
}

// === impl Line ===

impl Line {
    fn new(count: usize) -> Self {
        let mut others = Vec::new();
        others.resize_with(count.saturating_sub(1), Stage::default);
        Self {
            count,
            first: Stage::default(),
            others,
        }
    }

    fn at(&mut self, at: usize) -> &mut Stage {
        match at.checked_sub(1) {
            None => &mut self.first,
            Some(at) => &mut self.others[at],
        }
    }
}

// === impl Ready ===

impl Ready {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, frame: Frame<Bytes>) {
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.others.push_back(frame),
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        std::mem::replace(&mut self.first, self.others.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Each passes on what it is shown, with its number behind it.
    struct Numbers;

    impl Stages for Numbers {
        type Stop = ();

        fn on_data(&self, at: usize, data: &mut BytesMut, _: bool) -> Result<bool, ()> {
            data.extend_from_slice(at.to_string().as_bytes());
            Ok(true)
        }

        fn on_trailers(&self, _: usize, _: &mut HeaderMap, _: &mut BytesMut) -> Result<bool, ()> {
            Ok(true)
        }

        fn poll_resume(
            &self,
            _: usize,
            _: &mut Context<'_>,
            _: &mut BytesMut,
            _: Option<&mut HeaderMap>,
        ) -> Poll<Result<(), ()>> {
            Poll::Ready(Ok(()))
        }

        fn on_full(&self, _: usize) -> Result<(), ()> {
            Ok(())
        }
    }

    /// What comes out of `count` stages for these pieces and trailers behind them.
    fn passed(count: usize, pieces: &[&'static str]) -> (String, bool) {
        let mut passage = Passage::new(count);
        let mut input = pieces.iter();
        let mut trailers = Some(HeaderMap::new());
        let mut out = (String::new(), false);
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(frame)) = passage.poll_frame(&Numbers, cx, |_| {
            let data = input
                .next()
                .map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())));
            let frame = data.or_else(|| trailers.take().map(Frame::trailers));
            Poll::Ready(Ok::<_, ()>(frame.map(|frame| (frame, false))))
        }) {
            match frame.expect("it passes").into_data() {
                Ok(data) => out.0 += str::from_utf8(&data).expect("text"),
                Err(_) => out.1 = true,
            }
        }
        assert!(passage.is_over());
        out
    }

    #[test]
    fn pieces_meet_all_stages_in_order_however_many_there_are() {
        assert_eq!(passed(0, &["a", "b"]), ("ab".to_owned(), true));
        assert_eq!(passed(1, &["a", "b"]), ("a0b0".to_owned(), true));
        assert_eq!(passed(3, &["a", "b"]), ("a012b012".to_owned(), true));
    }

    #[test]
    fn frames_come_out_as_they_were_put_in() {
        let mut ready = Ready::default();
        for text in ["a", "b", "c"] {
            ready.push(Frame::data(Bytes::from_static(text.as_bytes())));
        }
        let pop = |ready: &mut Ready| ready.pop().and_then(|frame| frame.into_data().ok());
        assert_eq!(pop(&mut ready).as_deref(), Some(&b"a"[..]));
        ready.push(Frame::data(Bytes::from_static(b"d")));
        let rest: Vec<Bytes> = std::iter::from_fn(|| pop(&mut ready)).collect();
        assert_eq!(rest, ["b", "c", "d"]);
        assert!(ready.is_empty());
    }
}
