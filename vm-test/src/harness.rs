//! The frame of a test: a lab where the machine allows one, and the daemon's log where the test fails.

use anyhow::Result;

use crate::{Hosts, Lab, need};

/// Runs `body` in a lab of its own; without root or a needed kernel feature, says so and counts it as skipped
/// (`cargo xtask test` refuses to start there, so nothing is skipped unseen).
///
/// # Panics
/// The test fails, as libtest wants it: with the whole chain of the error, after the daemon's log.
pub fn lab_test(name: &str, body: impl FnOnce(&Lab) -> Result<()>) {
    within(name, || Lab::new(name), body);
}

/// The same with `count` hosts on one switch.
///
/// # Panics
/// As [`lab_test`]; every host prints its daemon's log.
pub fn hosts_test(name: &str, count: u8, body: impl FnOnce(&Hosts) -> Result<()>) {
    within(name, || Hosts::new(name, count), body);
}

fn within<T>(name: &str, make: impl FnOnce() -> Result<T>, body: impl FnOnce(&T) -> Result<()>) {
    if let Err(needs) = need::kernel() {
        need::skipped(name, &needs);
        return;
    }
    let place = match make() {
        Ok(place) => place,
        Err(error) => panic!("make a lab for {name}: {error:#}"),
    };
    if let Err(error) = body(&place) {
        // A panic drops the lab, which prints the log.
        panic!("{name}: {error:#}");
    }
}
