//! How a verb ends: one place that prints the chain of an error and picks the exit code.

use std::process::ExitCode;

/// Something this machine or user lacks, and what to do about it. Ends the run with [`NEEDS`].
#[derive(Debug)]
pub struct Needs(pub String);

/// Exit code of [`Needs`]: privileges or kernel features are missing (the same number `weft` uses).
pub const NEEDS: u8 = 3;

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Needs {}

/// Prints the chain of `result`'s error, if it has one, and says what the process returns.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(needs) = error.downcast_ref::<Needs>() {
        eprintln!("xtask: {needs}");
        return ExitCode::from(NEEDS);
    }
    eprintln!("xtask: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    ExitCode::FAILURE
}
