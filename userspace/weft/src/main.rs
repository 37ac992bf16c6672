//! `weft`: parse, dispatch, exit code. Everything else is in the library beside it.

use std::process::ExitCode;

use clap::Parser;
use weft::{cli::Cli, error};

/// In a mesh of 100,000 endpoints each publication makes and drops hundreds of thousands of small things, on whichever thread: what
/// glibc's allocator keeps of that for threads that do not ask again was more than what is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().dispatch() {
        Ok(code) => code,
        Err(failure) => error::report(&failure),
    }
}
