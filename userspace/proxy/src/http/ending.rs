//! The end of an HTTP/2 connection: GOAWAY, when the proxy retires or nothing was asked on it for long.
//!
//! No timer looks after it: it would cost each request of the connection two system calls (see [`crate::ticks`]). The worker's sweeps
//! wake those that have idled for too long.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
};

use tokio::task::coop::unconstrained;

use crate::{
    idle::Idler,
    listen::stop::{Phase, StopWatch},
};

/// Drives a connection to its end. When the proxy retires, and when it was idle for too long, it is told to end gracefully: the
/// client hears which streams are still answered. `None`: at the sweep after that it still idles, so the client does not answer; it
/// is to be cut.
pub(super) async fn until_told_or_idle<C: Future>(
    mut served: Pin<&mut C>,
    graceful_shutdown: impl Fn(Pin<&mut C>),
    mut stop: StopWatch,
    mut idle: Idler<'_>,
) -> Option<C::Output> {
    let told = stop.clone();
    // It wakes this task, once it has polled it, and needs no poll before: that takes locks. Past tokio's budget, for one that is
    // used up would put the first poll off.
    let mut retiring = pin!(unconstrained(stop.reached(Phase::Retire)));
    let mut polled = false;
    let mut ending = false;
    poll_fn(|cx| {
        let idled_out = idle.has_waited(cx);
        if ending && idled_out {
            return Poll::Ready(None);
        }
        if !ending {
            let look = !polled || told.has_reached(Phase::Retire);
            polled = true;
            if idled_out || (look && retiring.as_mut().poll(cx).is_ready()) {
                ending = true;
                graceful_shutdown(served.as_mut());
            }
        }
        served.as_mut().poll(cx).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::Arc,
        task::{Context, Waker},
        time::Duration,
    };

    use tokio::time::{Instant, advance};

    use super::*;
    use crate::{idle::Idlers, io::ConnClock, limits::IDLE_TIMEOUT, listen::stop::StopSignal};

    /// A connection that ends when it is told to and its client agrees.
    #[derive(Default)]
    struct Connection {
        told: Cell<u32>,
        agrees: Cell<bool>,
    }

    impl Future for &Connection {
        type Output = &'static str;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<&'static str> {
            match self.told.get() > 0 && self.agrees.get() {
                true => Poll::Ready("ended"),
                false => Poll::Pending,
            }
        }
    }

    /// What is there beside the connection.
    struct Around {
        idlers: Idlers,
        clock: Arc<ConnClock>,
        signal: StopSignal,
    }

    impl Around {
        fn new() -> Self {
            Self {
                idlers: Idlers::default(),
                clock: ConnClock::new(),
                signal: StopSignal::new(),
            }
        }
    }

    fn shut_down(connection: Pin<&mut &Connection>) {
        connection.told.set(connection.told.get() + 1);
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_idles_is_told_once_and_cut_if_its_client_does_not_answer() {
        let (around, connection) = (Around::new(), Connection::default());
        let mut served = &connection;
        let idle = around.idlers.join(&around.clock);
        let served = Pin::new(&mut served);
        let mut driven = pin!(until_told_or_idle(served, shut_down, around.signal.watch(), idle));
        assert!(poll(driven.as_mut()).is_pending());
        around.idlers.sweep();
        assert!(poll(driven.as_mut()).is_pending());
        assert_eq!(connection.told.get(), 0, "it has not idled for long");
        advance(IDLE_TIMEOUT + Duration::from_secs(1)).await;
        around.idlers.sweep();
        assert!(poll(driven.as_mut()).is_pending());
        assert!(
            poll(driven.as_mut()).is_pending(),
            "the client has time up to the next sweep"
        );
        assert_eq!(connection.told.get(), 1);
        around.idlers.sweep();
        assert_eq!(poll(driven.as_mut()), Poll::Ready(None));
        assert_eq!(connection.told.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_told_and_has_a_request_under_way_is_not_cut() {
        let (around, connection) = (Around::new(), Connection::default());
        let mut served = &connection;
        let idle = around.idlers.join(&around.clock);
        let served = Pin::new(&mut served);
        let mut driven = pin!(until_told_or_idle(served, shut_down, around.signal.watch(), idle));
        assert!(poll(driven.as_mut()).is_pending());
        around.clock.request_began();
        around.signal.advance(Phase::Retire);
        assert!(poll(driven.as_mut()).is_pending());
        assert_eq!(connection.told.get(), 1);
        advance(IDLE_TIMEOUT * 2).await;
        around.idlers.sweep();
        assert!(poll(driven.as_mut()).is_pending());
        around.clock.request_ended(Instant::now());
        connection.agrees.set(true);
        assert_eq!(poll(driven.as_mut()), Poll::Ready(Some("ended")));
        assert_eq!(connection.told.get(), 1);
    }
}
