//! Ctrl-C and its like, while there are labs.

use std::{io::Write, sync::Once, thread};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::poll;

/// From now on Ctrl-C and its like end every wait of a lab with an error, so that whoever has one unwinds and cleans up. Once a
/// process: whoever makes a lab asks for it.
///
/// # Errors
/// The system does not let us listen to signals.
pub fn on_signals() -> Result<()> {
    static LISTENS: Once = Once::new();
    if LISTENS.is_completed() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen to signals")?;
    LISTENS.call_once(|| {
        thread::spawn(move || {
            for _ in signals.forever() {
                // The terminal may be gone.
                let _ = writeln!(std::io::stderr(), "\ninterrupted: cleaning up");
                poll::interrupt();
            }
        });
    });
    Ok(())
}
