//! The frame of a test: a lab where the machine allows one, and the daemon's log where the test fails.

use anyhow::Result;

use crate::{Lab, need};

/// Runs `body` in a lab of its own; without root or a needed kernel feature, says so and counts it as skipped
/// (`cargo xtask test` refuses to start there, so nothing is skipped unseen).
///
/// # Panics
/// The test fails, as libtest wants it: with the whole chain of the error, after the daemon's log.
pub fn lab_test(name: &str, body: impl FnOnce(&Lab) -> Result<()>) {
    if let Err(needs) = need::kernel() {
        need::skipped(name, &needs);
        return;
    }
    let lab = match Lab::new(name) {
        Ok(lab) => lab,
        Err(error) => panic!("make a lab for {name}: {error:#}"),
    };
    if let Err(error) = body(&lab) {
        // A panic drops the lab, which prints the log.
        panic!("{name}: {error:#}");
    }
}
