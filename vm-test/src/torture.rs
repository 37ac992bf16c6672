//! The torture suite for short-circuits: which cases there are, and how a result is told.
//!
//! `traffic torture` (`src/bin/traffic/torture`) does each case at both ends of a connection, `tests/torture.rs` puts the
//! connection on every path (mode), `cargo xtask vm-test` collects the results of each kernel: a table for people, and
//! [`weft-dataplane`'s `recorded`](../../userspace/dataplane/src/recorded.rs), which decides what a daemon does by default.

use std::{fmt, io::Write};

use serde::{Deserialize, Serialize};

/// What may be short-circuited while a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing; through the proxy and directly. What is red here is a bug of the suite or of the proxy.
    Off,
    /// What our proxy receives.
    Proxy,
    /// Both ends of every connection, direct or with our proxy.
    Full,
}

/// All of them.
pub const MODES: [Mode; 3] = [Mode::Off, Mode::Proxy, Mode::Full];

/// Cases done by both ends of a connection, in the order of their ports: case N has port N + 1 of the service.
pub const CASES: [&str; 15] = [
    "half-close-client",
    "half-close-server",
    "reset-client",
    "reset-server",
    "zero-window-up",
    "zero-window-down",
    "slow-reader",
    "byte-writes",
    "huge-writes",
    "server-first",
    "splice",
    "sendfile",
    "peek",
    "unread",
    "ktls",
];

/// The case whose connections are many; the last port.
pub const MANY: &str = "many-short";
/// Seen over all cases: how much a sender got rid of while nobody read.
pub const MEMORY: &str = "memory-bound";
/// Seen over all cases: no blocking read said EAGAIN without reason.
pub const BLOCKING: &str = "blocking-read";

/// The most that a sender may get rid of while nobody reads, over all sockets and buffers between the two programs: twice
/// the largest send and receive buffers ([`BUFFERS`]), and some.
pub const MOST_UNREAD: u64 = 24 << 20;

/// Least, first and largest buffers, in bytes, of every connection of the suite (`tcp_rmem`, `tcp_wmem`): those that Linux has on
/// its own up to 6.15. Later kernels let a receive buffer grow to 32 MiB, and then the bound says nothing.
pub const BUFFERS: [(&str, &str); 2] = [("tcp_rmem", "4096 131072 6291456"), ("tcp_wmem", "4096 16384 4194304")];

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every byte, in order; every end.
    Ok,
    /// The mode refused what it cannot do, and everything was right without it.
    Refused,
    /// The kernel lacks what the case is about.
    Absent(String),
    /// What went wrong.
    Wrong(String),
}

/// One cell of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    pub mode: Mode,
    pub case: String,
    pub outcome: Outcome,
}

/// Begins a line of [`Cell::tell`].
const TOLD: &str = "torture: ";

// === impl Mode ===

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Proxy => "proxy",
            Self::Full => "full",
        })
    }
}

// === impl Outcome ===

impl Outcome {
    /// Nothing is wrong.
    pub fn is_green(&self) -> bool {
        !matches!(self, Self::Wrong(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Refused => f.write_str("refused"),
            Self::Absent(_) => f.write_str("absent"),
            Self::Wrong(_) => f.write_str("WRONG"),
        }
    }
}

// === impl Cell ===

impl Cell {
    /// Says it on standard error past the capture of libtest, in one line that [`Cell::of_line`] reads.
    pub fn tell(&self) {
        if let Ok(json) = serde_json::to_string(self) {
            // Nothing can be done about a terminal that is gone.
            let _ = std::io::stderr().write_all(format!("{TOLD}{json}\n").as_bytes());
        }
    }

    /// What a line of [`Cell::tell`] says.
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(TOLD)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_read_back() {
        let cell = Cell {
            mode: Mode::Full,
            case: MANY.to_owned(),
            outcome: Outcome::Wrong("3 of 4".to_owned()),
        };
        let line = format!("{TOLD}{}", serde_json::to_string(&cell).unwrap());
        assert_eq!(Cell::of_line(&line), Some(cell));
        assert_eq!(Cell::of_line("torture: nothing of the kind"), None);
    }
}
