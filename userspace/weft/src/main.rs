//! `weft`: parse, dispatch, exit code. Everything else is in the library beside it.

use std::process::ExitCode;

use clap::Parser;
use weft::{cli::Cli, error};

fn main() -> ExitCode {
    match Cli::parse().dispatch() {
        Ok(code) => code,
        Err(failure) => error::report(&failure),
    }
}
