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

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::Frame;
use weft_adapters::{Lent, Step};

use super::{Chain, Stop};
use crate::limits::FILTER_BODY_BUFFER;

/// Which body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Request,
    Response,
}

/// One body's way.
pub(crate) struct Passage {
    way: Way,
    stages: Vec<Stage>,
    output: VecDeque<Frame<Bytes>>,
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

/// A piece of the input: what came, and whether nothing comes after it. `None`: the end, without a piece.
pub(crate) type Input = Option<(Frame<Bytes>, bool)>;

/// Why a passage broke off.
#[derive(Debug)]
pub(crate) enum Broke<E> {
    Input(E),
    Filter(Stop),
}

// === impl Passage ===

impl Passage {
    /// For the filters of `chain` that saw the request's head.
    pub(crate) fn new(chain: &Chain, way: Way) -> Self {
        let mut stages = Vec::new();
        stages.resize_with(chain.seen(), Stage::default);
        Self {
            way,
            stages,
            output: VecDeque::new(),
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
    pub(crate) fn poll_frame<E>(
        &mut self,
        chain: &Chain,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>) -> Poll<Result<Input, E>>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broke<E>>>> {
        loop {
            if let Some(frame) = self.output.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.passed {
                return Poll::Ready(None);
            }
            match self.resume(chain, cx) {
                Ok(false) => {}
                // What a stage let go may pause in a later one, which must then be asked too.
                Ok(true) => continue,
                Err(stop) => return Poll::Ready(Some(Err(Broke::Filter(stop)))),
            }
            if self.ended {
                // A filter holds the rest.
                return Poll::Pending;
            }
            let came = match std::task::ready!(read(cx)) {
                Ok(Some((frame, end))) => self.take(chain, frame, end),
                Ok(None) => {
                    self.ended = true;
                    self.data(chain, 0, BytesMut::new(), true)
                }
                Err(error) => return Poll::Ready(Some(Err(Broke::Input(error)))),
            };
            if let Err(stop) = came {
                return Poll::Ready(Some(Err(Broke::Filter(stop))));
            }
        }
    }

    fn take(&mut self, chain: &Chain, frame: Frame<Bytes>, end: bool) -> Result<(), Stop> {
        self.ended |= end;
        match frame.into_data() {
            Ok(data) => self.data(chain, 0, data.into(), end),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.ended = true;
                    self.trailers(chain, 0, trailers)
                }
                // HTTP has no third kind of frame.
                Err(_) => Ok(()),
            },
        }
    }

    /// Asks those that pause, last first. Whether one goes on.
    fn resume(&mut self, chain: &Chain, cx: &mut Context<'_>) -> Result<bool, Stop> {
        let mut released = false;
        for at in (0..self.stages.len()).rev() {
            if !self.stages[at].paused {
                continue;
            }
            let filter = self.filter(at);
            let stage = &mut self.stages[at];
            let before = stage.body.len();
            let lent = match &mut stage.trailers {
                Some(trailers) => self.way.trailers(trailers),
                None => self.way.body(&mut stage.body),
            };
            let step = chain.poll_resume(filter, cx, lent);
            self.held = self.held - before + stage.body.len();
            let Poll::Ready(step) = step else {
                continue;
            };
            chain.passes(filter, step)?;
            self.release(chain, at)?;
            released = true;
        }
        Ok(released)
    }

    /// Passes on what a stage holds.
    fn release(&mut self, chain: &Chain, at: usize) -> Result<(), Stop> {
        let stage = &mut self.stages[at];
        stage.paused = false;
        let (body, trailers) = (std::mem::take(&mut stage.body), stage.trailers.take());
        let end = stage.ended;
        self.held -= body.len();
        self.data(chain, at + 1, body, end)?;
        match trailers {
            Some(trailers) => self.trailers(chain, at + 1, trailers),
            None => Ok(()),
        }
    }

    /// Shows `data` to the stages from `at` on, until one pauses.
    fn data(&mut self, chain: &Chain, at: usize, mut data: BytesMut, end: bool) -> Result<(), Stop> {
        for at in at..self.stages.len() {
            if data.is_empty() && !end {
                return Ok(());
            }
            let filter = self.filter(at);
            let stage = &mut self.stages[at];
            if !stage.body.is_empty() {
                self.held -= stage.body.len();
                let mut all = std::mem::take(&mut stage.body);
                all.unsplit(data);
                data = all;
            }
            stage.ended |= end;
            let step = chain.call(filter, self.way.body(&mut data), end);
            stage.paused = matches!(step, Step::Pause);
            if stage.paused {
                self.held += data.len();
                stage.body = data;
                return if self.held > FILTER_BODY_BUFFER {
                    Err(Stop::Full { by: chain.name(filter) })
                } else {
                    Ok(())
                };
            }
            chain.passes(filter, step)?;
        }
        if !data.is_empty() {
            self.output.push_back(Frame::data(data.freeze()));
        }
        self.passed |= end;
        Ok(())
    }

    /// Shows `trailers` to the stages from `at` on. One that lets them pass lets pass what it held before them.
    fn trailers(&mut self, chain: &Chain, at: usize, mut trailers: HeaderMap) -> Result<(), Stop> {
        for at in at..self.stages.len() {
            let filter = self.filter(at);
            let step = chain.call(filter, self.way.trailers(&mut trailers), true);
            if let Step::Pause = step {
                let stage = &mut self.stages[at];
                stage.paused = true;
                stage.trailers = Some(trailers);
                return Ok(());
            }
            chain.passes(filter, step)?;
            self.release(chain, at)?;
        }
        self.output.push_back(Frame::trailers(trailers));
        self.passed = true;
        Ok(())
    }

    /// The filter of a stage: an answer meets them in reverse.
    fn filter(&self, at: usize) -> usize {
        match self.way {
            Way::Request => at,
            Way::Response => self.stages.len() - 1 - at,
        }
    }
}

// === impl Way ===

impl Way {
    fn body(self, body: &mut BytesMut) -> Lent<'_> {
        match self {
            Self::Request => Lent::RequestBody(body),
            Self::Response => Lent::ResponseBody(body),
        }
    }

    fn trailers(self, trailers: &mut HeaderMap) -> Lent<'_> {
        match self {
            Self::Request => Lent::RequestTrailers(trailers),
            Self::Response => Lent::ResponseTrailers(trailers),
        }
    }
}
