//! How commands fail: one line on stderr, and the exit code that the contract gives it.

use std::{fmt, io, net::SocketAddr, process::ExitCode};

/// Something failed.
pub const FAILED: u8 = 1;
/// Wrong usage, or invalid resources.
pub const INVALID: u8 = 2;
/// Privileges or kernel features are missing.
pub const UNSUPPORTED: u8 = 3;
/// `weft run`: the command was not started (no daemon, or it refused).
pub const RUN_FAILED: u8 = 125;
/// `weft run`: the command is there and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// `weft run`: there is no such command.
pub const NOT_FOUND: u8 = 127;

/// An error that wants an exit code other than [`FAILED`]; invisible in the message.
#[derive(Debug)]
pub struct Coded {
    code: u8,
    error: anyhow::Error,
}

/// Gives errors an exit code: `.code(INVALID)?`.
pub trait Code<T> {
    fn code(self, code: u8) -> anyhow::Result<T>;
}

// === impl Coded ===

impl Coded {
    /// An error with an exit code.
    pub fn error(code: u8, error: impl Into<anyhow::Error>) -> anyhow::Error {
        anyhow::Error::new(Self {
            code,
            error: error.into(),
        })
    }
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for Coded {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

// === impl Code ===

impl<T, E: Into<anyhow::Error>> Code<T> for Result<T, E> {
    fn code(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| Coded::error(code, error))
    }
}

/// A listener that could not be opened: what for, where, why, and what to do.
pub fn net_error(what: &str, address: SocketAddr, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; `ss -ltnp` tells who has it",
        _ => "",
    };
    let text = format!("listen on {address} for {what}: {error}{hint}");
    anyhow::Error::msg(text)
}

/// Prints the failure on stderr and gives its exit code. A reader that closed our output is no failure.
pub fn report(failure: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(failure) {
        return ExitCode::SUCCESS;
    }
    eprintln!("{}", line(failure));
    ExitCode::from(code_of(failure))
}

/// `weft: doing what: why`, on one line whatever the error's text holds.
pub fn line(failure: &anyhow::Error) -> String {
    let mut line = String::from("weft");
    let mut last = String::new();
    for error in failure.chain() {
        let text = error.to_string();
        // Some libraries repeat their source in their own message.
        if !last.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        last = text;
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The innermost code that a cause asked for.
pub fn code_of(failure: &anyhow::Error) -> u8 {
    failure
        .chain()
        .filter_map(|error| error.downcast_ref::<Coded>())
        .next_back()
        .map_or(FAILED, |coded| coded.code)
}

fn is_broken_pipe(failure: &anyhow::Error) -> bool {
    failure
        .chain()
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn the_chain_is_one_line() {
        let error = anyhow!("permission\ndenied")
            .context("open `/x`")
            .context("start the daemon");
        assert_eq!(line(&error), "weft: start the daemon: open `/x`: permission denied");
    }

    #[test]
    fn a_repeated_source_is_said_once() {
        let error = anyhow!("refused").context("connect: refused");
        assert_eq!(line(&error), "weft: connect: refused");
    }

    #[test]
    fn a_code_is_found_below_its_context_and_does_not_show() {
        let inner: anyhow::Result<()> = Err(anyhow!("EPERM"));
        let failure = inner.code(UNSUPPORTED).context("attach").expect_err("failed");
        assert_eq!(
            (line(&failure).as_str(), code_of(&failure)),
            ("weft: attach: EPERM", UNSUPPORTED)
        );
        assert_eq!(code_of(&anyhow!("plain")), FAILED);
    }
}
