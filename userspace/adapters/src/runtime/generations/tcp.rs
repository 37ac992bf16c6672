//! A connection whose bytes nobody reads as HTTP: the generation that it drew, and the shadows beside it.
//!
//! As of requests ([`drawn`](super::drawn), [`shadow`](super::shadow)): one that fails at the new connection, before a byte has
//! passed, is followed by another generation; shadows see copies, change nothing, and hold up nobody.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};

use bytes::BytesMut;

use super::{
    Made, Set,
    drawn::{Draw, Passes},
    shadow::MAX_GATHERED,
};
use crate::stream::{Direction, FilterFactory, StreamInfo, TcpFilter, TcpStep};

/// The generation that a connection drew, and the shadows beside it.
pub(super) struct Shadowed {
    /// `None`: none runs.
    drawn: Option<Drawn>,
    shadows: Vec<Shadow>,
    /// The generation in force ended the connection.
    reset: bool,
    /// Bytes of each direction that the generation in force holds and the shadows have seen.
    seen: [usize; 2],
}

/// The filter of one generation; of another one, where it fails before anything has passed.
struct Drawn {
    draw: Draw,
    filter: Box<dyn TcpFilter>,
}

/// One shadow on one connection.
struct Shadow {
    set: Arc<Set>,
    at: usize,
    made: Arc<Made>,
    filter: Box<dyn TcpFilter>,
    /// It is shown nothing more.
    over: bool,
    /// It would have ended the connection.
    reset: bool,
    /// It has not let the connection begin.
    waits: bool,
    /// What it holds of each direction.
    held: [BytesMut; 2],
    told: bool,
}

/// Place of a direction.
fn way(from: Direction) -> usize {
    match from {
        Direction::Downstream => 0,
        Direction::Upstream => 1,
    }
}

// === impl Shadowed ===

impl Shadowed {
    /// `None`: nobody looks.
    pub fn new(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Option<Self> {
        let (drawn, shadows) = (Drawn::new(set, info), Shadow::all(set, info));
        (drawn.is_some() || !shadows.is_empty()).then_some(Self {
            drawn,
            shadows,
            reset: false,
            seen: [0; 2],
        })
    }

    /// Calls the generation in force.
    fn call(&mut self, call: impl FnOnce(&mut Drawn) -> TcpStep) -> TcpStep {
        let step = self.drawn.as_mut().map_or(TcpStep::Continue, call);
        self.reset |= step == TcpStep::Reset;
        step
    }
}

impl TcpFilter for Shadowed {
    fn on_connection(&mut self) -> TcpStep {
        self.shadows.iter_mut().for_each(Shadow::connection);
        self.call(Drawn::connection)
    }

    fn on_data(&mut self, from: Direction, data: &mut BytesMut, end: bool) -> TcpStep {
        let way = way(from);
        let new = data.get(self.seen[way]..).unwrap_or_default();
        self.shadows.iter_mut().for_each(|shadow| shadow.data(from, new, end));
        let step = self.call(|drawn| {
            let step = drawn.filter.on_data(from, data, end);
            drawn.tell();
            drawn.draw.hold(way, end && step == TcpStep::Pause);
            step
        });
        self.seen[way] = if step == TcpStep::Pause { data.len() } else { 0 };
        step
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, from: Direction, data: &mut BytesMut) -> Poll<TcpStep> {
        let Some(drawn) = &mut self.drawn else {
            return Poll::Ready(TcpStep::Continue);
        };
        let polled = drawn.filter.poll_resume(cx, from, data);
        drawn.tell();
        let step = ready!(polled);
        if step != TcpStep::Pause {
            drawn.draw.hold(way(from), false);
            // What was held passes on without being shown again.
            self.seen[way(from)] = 0;
        }
        Poll::Ready(self.call(|_| step))
    }

    fn has_failed(&self) -> bool {
        self.drawn.as_ref().is_some_and(|drawn| drawn.filter.has_failed())
    }

    fn on_close(&mut self, by: Direction) {
        self.shadows.iter_mut().for_each(|shadow| shadow.filter.on_close(by));
        if let Some(drawn) = &mut self.drawn {
            drawn.filter.on_close(by);
            drawn.tell();
        }
    }

    fn on_end(&mut self) {
        if let Some(drawn) = &mut self.drawn {
            drawn.filter.on_end();
            drawn.tell();
        }
        let reset = self.reset;
        self.shadows.iter_mut().for_each(|shadow| shadow.end(reset));
    }
}

// === impl Drawn ===

impl Drawn {
    /// `None`: none runs.
    fn new(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Option<Self> {
        let draw = Draw::new(set, info)?;
        Some(Self {
            filter: filter(&draw),
            draw,
        })
    }

    /// A new connection: as long as the filter fails on it, gives it to another generation.
    fn connection(&mut self) -> TcpStep {
        let before = self.draw.info.state.save();
        let mut step = self.filter.on_connection();
        while self.tell() && self.draw.again(&before) {
            self.filter = filter(&self.draw);
            step = self.filter.on_connection();
        }
        self.draw.hold(way(Direction::Downstream), step == TcpStep::Pause);
        step
    }

    /// Whether there is a new failure.
    fn tell(&mut self) -> bool {
        self.draw.tell(self.filter.has_failed())
    }
}

// === impl Shadow ===

impl Shadow {
    /// Those that look at this connection.
    fn all(set: &Arc<Set>, info: &Arc<StreamInfo>) -> Vec<Self> {
        let shadows = set.shadows().filter_map(|(at, made)| {
            Some(Self {
                set: Arc::clone(set),
                at,
                made: Arc::clone(made),
                filter: made.plugin.tcp(&info.apart())?,
                over: false,
                reset: false,
                waits: false,
                held: Default::default(),
                told: false,
            })
        });
        shadows.collect()
    }

    fn connection(&mut self) {
        let step = self.filter.on_connection();
        self.waits = step == TcpStep::Pause;
        self.after(step);
    }

    fn data(&mut self, from: Direction, new: &[u8], end: bool) {
        if self.over || !self.begins() {
            return;
        }
        let mut data = std::mem::take(&mut self.held[way(from)]);
        data.extend_from_slice(new);
        let step = self.filter.on_data(from, &mut data, end);
        if step == TcpStep::Pause {
            self.over = data.len() > MAX_GATHERED;
            self.held[way(from)] = data;
        }
        self.after(step);
    }

    /// Whether it is done waiting at the new connection; what passes meanwhile it misses.
    fn begins(&mut self) -> bool {
        if self.waits {
            let cx = &mut Context::from_waker(Waker::noop());
            let mut nothing = BytesMut::new();
            let polled = self.filter.poll_resume(cx, Direction::Downstream, &mut nothing);
            if let Poll::Ready(step) = polled {
                self.waits = false;
                self.after(step);
            }
        }
        !self.waits && !self.over
    }

    fn after(&mut self, step: TcpStep) {
        if self.filter.has_failed() {
            self.over = true;
            if !std::mem::replace(&mut self.told, true) {
                self.set.failed(self.at);
            }
        } else if step == TcpStep::Reset {
            (self.reset, self.over) = (true, true);
        }
    }

    fn end(&mut self, reset: bool) {
        self.filter.on_end();
        if self.reset != reset && !self.told {
            self.made.disagreed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Passes ===

impl TcpFilter for Passes {
    fn has_failed(&self) -> bool {
        true
    }
}

fn filter(draw: &Draw) -> Box<dyn TcpFilter> {
    let made = draw.made().and_then(|made| made.plugin.tcp(&draw.info));
    made.unwrap_or_else(|| Box::new(Passes))
}
