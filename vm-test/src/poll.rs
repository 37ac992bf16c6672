//! Waiting for something to become true: bounded, and telling what it waited for and what it saw last.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything in a lab may take to become true, on a real machine ([`scaled`]). Generous: only failing tests wait
/// this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Environment variable: how many times slower than a real machine this one may be, a whole number. `cargo xtask vm-test`
/// sets it for guests under emulation.
pub const SCALE: &str = "WEFT_TEST_PATIENCE";

/// `bound` as it is on this machine: times [`SCALE`]. Every wait of this module is; bounds that a test compares with a
/// clock of its own must be.
pub fn scaled(bound: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = *FACTOR.get_or_init(|| scale_of(std::env::var(SCALE).ok().as_deref()));
    bound.saturating_mul(factor)
}

/// What is no whole number above zero counts as 1: no bound may become endless or nothing by a slip.
fn scale_of(value: Option<&str>) -> u32 {
    value.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

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

/// Looks until `look` returns a value, for at most [`PATIENCE`], [`scaled`].
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
    let (start, bound) = (Instant::now(), scaled(bound));
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

    #[test]
    fn a_scale_is_a_whole_number_above_zero() {
        for (value, scale) in [
            (None, 1),
            (Some("8"), 8),
            (Some("0"), 1),
            (Some("fast"), 1),
            (Some("-2"), 1),
        ] {
            assert_eq!(scale_of(value), scale, "{value:?}");
        }
    }
}
