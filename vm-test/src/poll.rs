//! Waiting for something to become true: bounded, and telling what it waited for and what it saw last.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything in a lab may take to become true. Generous: two busy cores under QEMU are slow; only failing
/// tests wait this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks. Short enough not to matter beside a process start.
const PAUSE: Duration = Duration::from_millis(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends every wait of this process with an error, so that labs are dropped and clean up (the demo's Ctrl-C).
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// # Errors
/// [`interrupt`] was called.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Looks until `look` returns a value, for at most [`PATIENCE`].
///
/// # Errors
/// Time is up: names `what` and the last reason `look` gave; or [`interrupt`] was called.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, what, look)
}

/// The same with a bound of its own.
///
/// # Errors
/// As [`until`].
pub fn within<T>(bound: Duration, what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    look_until(bound, what, look, check_interrupt)
}

/// The same, [`interrupt`] or not: for cleaning up.
///
/// # Errors
/// Time is up.
pub fn regardless<T>(bound: Duration, what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    look_until(bound, what, look, || Ok(()))
}

fn look_until<T>(
    bound: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T>,
    may_go_on: impl Fn() -> Result<()>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        may_go_on()?;
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= bound => {
                return Err(error.context(format!("waited {bound:?} for {what}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_is_told_when_time_is_up() {
        let result: Result<()> = within(Duration::ZERO, "the moon", || bail!("clouds"));
        let text = result.map_err(|error| format!("{error:#}")).unwrap_err();
        assert!(text.contains("the moon") && text.contains("clouds"), "{text}");
    }
}
