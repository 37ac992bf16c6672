//! The filters of one connection whose bytes nobody reads as HTTP.

use std::{
    cell::RefCell,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use http::HeaderMap;
use weft_adapters::{Direction, StreamInfo, TcpFilter, TcpStep};

use super::{Passage, Running, passage::Stages, running};
use crate::pick::Picked;

/// One connection's filters; they see its end when this is dropped.
pub(crate) struct TcpChain {
    filters: RefCell<Vec<Running<dyn TcpFilter>>>,
    /// How long each may hold something.
    pause: Duration,
}

/// The chain as one direction meets it.
pub(crate) struct Bytes<'a> {
    chain: &'a TcpChain,
    from: Direction,
}

/// An adapter resets the connection.
#[derive(Debug)]
pub(crate) struct ResetBy(pub(crate) String);

// === impl TcpChain ===

impl TcpChain {
    /// Makes the filters that look at a connection to `picked`; `None`: there are none. `pause`: how long each may hold something.
    pub(crate) fn new(picked: &Picked, pause: Duration, info: impl FnOnce() -> StreamInfo) -> Option<Self> {
        let filters = running(picked, info, |factory, info| factory.tcp(info))?;
        Some(Self {
            filters: RefCell::new(filters),
            pause,
        })
    }

    /// Shows the connection to all filters before an endpoint is connected to.
    pub(crate) async fn open(&self) -> Result<(), ResetBy> {
        for index in 0..self.count() {
            let step = self.filters.borrow_mut()[index].filter.on_connection();
            if !self.passes(index, step)? {
                let mut nothing = BytesMut::new();
                poll_fn(|cx| self.poll_resume(index, cx, Direction::Downstream, &mut nothing)).await?;
            }
        }
        Ok(())
    }

    /// The way of one direction's bytes.
    pub(crate) fn passage(&self) -> Passage {
        Passage::new(self.count())
    }

    pub(crate) fn bytes(&self, from: Direction) -> Bytes<'_> {
        Bytes { chain: self, from }
    }

    /// That side sends nothing more.
    pub(crate) fn closed(&self, by: Direction) {
        for running in self.filters.borrow_mut().iter_mut() {
            running.filter.on_close(by);
        }
    }

    fn count(&self) -> usize {
        self.filters.borrow().len()
    }

    /// Ready: what the filter held goes on.
    fn poll_resume(
        &self,
        index: usize,
        cx: &mut Context<'_>,
        from: Direction,
        data: &mut BytesMut,
    ) -> Poll<Result<(), ResetBy>> {
        let step = {
            let running = &mut self.filters.borrow_mut()[index];
            let patience = &mut running.patience[side(from)];
            match running.filter.poll_resume(cx, from, data) {
                Poll::Pending | Poll::Ready(TcpStep::Pause) => {
                    ready!(patience.poll_end(self.pause, cx));
                    let (adapter, limit) = (running.factory.name(), self.pause);
                    tracing::info!(adapter, ?limit, "a connection was held for too long, and is reset");
                    TcpStep::Reset
                }
                Poll::Ready(step) => {
                    patience.renew();
                    step
                }
            }
        };
        Poll::Ready(self.passes(index, step).map(|_goes_on| ()))
    }

    fn passes(&self, index: usize, step: TcpStep) -> Result<bool, ResetBy> {
        match step {
            TcpStep::Continue => Ok(true),
            TcpStep::Pause => Ok(false),
            TcpStep::Reset => Err(ResetBy(self.filters.borrow()[index].factory.name().to_owned())),
        }
    }
}

impl Drop for TcpChain {
    fn drop(&mut self) {
        for running in self.filters.get_mut() {
            running.filter.on_end();
        }
    }
}

/// Of [`Running::patience`].
fn side(from: Direction) -> usize {
    match from {
        Direction::Downstream => 0,
        Direction::Upstream => 1,
    }
}

// === impl Bytes ===

impl Bytes<'_> {
    /// The filter of a stage: what the endpoint sends meets them in reverse.
    fn filter(&self, at: usize) -> usize {
        match self.from {
            Direction::Downstream => at,
            Direction::Upstream => self.chain.count() - 1 - at,
        }
    }
}

impl Stages for Bytes<'_> {
    type Stop = ResetBy;

    fn on_data(&self, at: usize, data: &mut BytesMut, end: bool) -> Result<bool, ResetBy> {
        let filter = self.filter(at);
        let step = {
            let running = &mut self.chain.filters.borrow_mut()[filter];
            running.patience[side(self.from)].renew();
            running.filter.on_data(self.from, data, end)
        };
        self.chain.passes(filter, step)
    }

    /// There are none.
    fn on_trailers(&self, _: usize, _: &mut HeaderMap, _: &mut BytesMut) -> Result<bool, ResetBy> {
        Ok(true)
    }

    fn poll_resume(
        &self,
        at: usize,
        cx: &mut Context<'_>,
        data: &mut BytesMut,
        _: Option<&mut HeaderMap>,
    ) -> Poll<Result<(), ResetBy>> {
        let filter = self.filter(at);
        self.chain.poll_resume(filter, cx, self.from, data)
    }

    /// The sender waits.
    fn on_full(&self, _: usize) -> Result<(), ResetBy> {
        Ok(())
    }
}
