//! A filter on one connection whose bytes nobody reads as HTTP.

use std::{
    mem,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;

use super::{
    host::{Point, Stream},
    http_stream::{deliver_waiting, finish},
    vm::{Vm, length, optional},
    worker::Worker,
};
use crate::stream::{Direction, StreamInfo, TcpFilter, TcpStep};

/// Action of the ABI: go on.
const CONTINUE: u32 = 0;

/// Action of the ABI: hold what was lent.
const PAUSE: u32 = 1;

/// Who closed, in the ABI: the other side of the connection.
const REMOTE: u32 = 2;

/// One connection in an instance.
pub(super) struct TcpStream {
    worker: Rc<Worker>,
    context: u32,
    /// The failure policy has decided over it.
    failed: bool,
    ended: bool,
}

// === impl TcpStream ===

impl TcpStream {
    /// `None`: the instance fails on it.
    pub fn begin(worker: Rc<Worker>, info: &Arc<StreamInfo>) -> Option<Self> {
        let context = worker.next_context();
        worker.enter(|vm| {
            vm.host().add_stream(context, info);
            vm.create_context(context)
        })?;
        Some(Self {
            worker,
            context,
            failed: false,
            ended: false,
        })
    }

    /// Lends bytes to the module while `callback` runs, and says what becomes of the connection.
    fn run(
        &mut self,
        from: Direction,
        data: &mut BytesMut,
        callback: impl FnOnce(&mut Vm, u32) -> wasmtime::Result<u32>,
    ) -> TcpStep {
        let (context, point) = (self.context, point(from));
        let step = self.worker.enter(|vm| {
            let Some(stream) = vm.host().streams.get_mut(&context) else {
                return Ok(TcpStep::Continue);
            };
            stream.lent = Some(point);
            if stream.flows_on(point.side()) {
                // Said when nothing was held: it was about nothing.
                stream.resume[point.side()] = false;
            }
            mem::swap(&mut stream.body, data);
            let action = callback(vm, context).and_then(|action| deliver_waiting(vm, context).map(|()| action));
            let step = vm.host().streams.get_mut(&context).map(|stream| {
                stream.lent = None;
                mem::swap(&mut stream.body, data);
                decide(stream, point, *action.as_ref().unwrap_or(&CONTINUE))
            });
            action.map(|_| step.unwrap_or(TcpStep::Continue))
        });
        step.unwrap_or_else(|| self.fail())
    }

    /// The end, if the module wanted it before it failed, else what the failure policy says.
    fn fail(&mut self) -> TcpStep {
        if mem::replace(&mut self.failed, true) {
            return TcpStep::Continue;
        }
        let failed = self.worker.plugin.failed();
        match (self.worker.last_wish(self.context), failed) {
            (None, None) => TcpStep::Continue,
            _ => TcpStep::Reset,
        }
    }

    fn end(&mut self) {
        if mem::replace(&mut self.ended, true) {
            return;
        }
        let context = self.context;
        self.worker.cancel_calls(context);
        self.worker.enter(|vm| finish(vm, context, None));
    }
}

impl TcpFilter for TcpStream {
    fn on_connection(&mut self) -> TcpStep {
        let mut nothing = BytesMut::new();
        self.run(Direction::Downstream, &mut nothing, |vm, context| {
            let action = optional(&mut vm.store, &vm.exports.new_connection, context, context)?;
            Ok(action.unwrap_or(CONTINUE))
        })
    }

    fn on_data(&mut self, from: Direction, data: &mut BytesMut, end: bool) -> TcpStep {
        let about = (self.context, length(data.len()), u32::from(end));
        self.run(from, data, |vm, context| {
            let callback = match from {
                Direction::Downstream => &vm.exports.downstream_data,
                Direction::Upstream => &vm.exports.upstream_data,
            };
            Ok(optional(&mut vm.store, callback, context, about)?.unwrap_or(CONTINUE))
        })
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, from: Direction, data: &mut BytesMut) -> Poll<TcpStep> {
        let (context, side) = (self.context, point(from).side());
        let step = self.run(from, data, |_, _| Ok(PAUSE));
        if step != TcpStep::Pause {
            return Poll::Ready(step);
        }
        self.worker.enter(|vm| {
            if let Some(stream) = vm.host().streams.get_mut(&context) {
                stream.listen(side, cx.waker());
            }
            Ok(())
        });
        Poll::Pending
    }

    fn on_close(&mut self, by: Direction) {
        let context = self.context;
        self.worker.enter(|vm| {
            let callback = match by {
                Direction::Downstream => &vm.exports.downstream_close,
                Direction::Upstream => &vm.exports.upstream_close,
            };
            optional(&mut vm.store, callback, context, (context, REMOTE)).map(drop)
        });
    }

    fn has_failed(&self) -> bool {
        self.failed
    }

    fn on_end(&mut self) {
        self.end();
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.end();
    }
}

fn point(from: Direction) -> Point {
    match from {
        Direction::Downstream => Point::Downstream,
        Direction::Upstream => Point::Upstream,
    }
}

/// What becomes of a connection after a callback about one direction. An answer of HTTP makes no sense here: it ends.
fn decide(stream: &mut Stream, point: Point, action: u32) -> TcpStep {
    let side = point.side();
    let resumed = mem::take(&mut stream.resume[side]);
    stream.held[side] = None;
    if stream.settled {
        return TcpStep::Reset;
    }
    if action == CONTINUE || resumed {
        return TcpStep::Continue;
    }
    stream.held[side] = Some(point);
    TcpStep::Pause
}
