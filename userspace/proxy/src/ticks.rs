//! Ticks that a worker looks after its things at.
//!
//! Where tokio has a timer, the kernel sets one whenever the runtime waits, and takes it back when something comes: twice a request.
//! This one is set once.

use std::{fs::File, io, io::Read as _, os::fd::OwnedFd, time::Duration};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

/// One after each period, to be waited for in the runtime that they were made in.
pub(crate) struct Ticks(AsyncFd<File>);

// === impl Ticks ===

impl Ticks {
    /// # Errors
    /// The system gives no descriptor.
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let expiration = Expiration::Interval(TimeSpec::from(period));
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        let timer = File::from(OwnedFd::from(timer));
        Ok(Self(register(timer)?))
    }

    /// Waits for the next one. Those that nobody waited for are one together.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        let read = |mut timer: &File| timer.read(&mut [0; 8]);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe to call; the descriptor is owned, so it is the same for as long as it is registered"
)]
fn register(timer: File) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_tick_comes_after_each_period() {
        let period = Duration::from_millis(2);
        let began = Instant::now();
        let mut ticks = Ticks::every(period).unwrap();
        for count in 1..=3 {
            ticks.next().await.unwrap();
            assert!(began.elapsed() >= period * count, "tick {count}");
        }
    }
}
