//! Ctrl-C, for verbs that have labs.

use std::{io::Write, thread};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use vm_test::poll;

/// From now on Ctrl-C and its like end every wait of a lab with an error, so that a verb unwinds and cleans up.
///
/// # Errors
/// The system does not let us listen to signals.
pub fn on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen to signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            // The terminal may be gone.
            let _ = writeln!(std::io::stderr(), "\ninterrupted: cleaning up");
            poll::interrupt();
        }
    });
    Ok(())
}
