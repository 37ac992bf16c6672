//! What `cargo xtask soak` and its clients (`traffic soak`) say to each other: streams of traffic to keep up, and a JSON
//! line for whatever must be judged. Whether an outcome is right depends on the policy in force, which only the soak knows.

use std::net::SocketAddr;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::pattern::{MIX_STEP, mix};

/// One stream of traffic that a client keeps up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    pub kind: Kind,
    pub target: SocketAddr,
    /// Mean pause between two rounds; each is half to one and a half times as long.
    pub every_ms: u64,
    /// Most bytes of a round, each way.
    pub bytes: u64,
    /// A peer that is silent for so long has lost what was sent.
    pub patience_ms: u64,
    /// Every outcome is told, not only the failures.
    pub tell_all: bool,
}

/// What a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A connection of its own: connect, one echo, close.
    Short,
    /// An echo on a connection that is kept for as long as it lives.
    Held,
    /// A connection of its own that carries the pattern both ways at once and ends with a half-close.
    Bulk,
    /// A question and its answer on a connected UDP socket.
    Udp,
    /// The same on one that is not connected: `sendto`, and the answer must come from whom was asked.
    Unconnected,
    /// A request on a connection that is kept.
    Http,
}

/// What every HTTP server of a soak answers.
pub const PAGE: &str = "every byte of this page counts\n";

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// A system call failed.
    Errno(i32),
    /// Silence for longer than the flow's patience.
    Lost,
    /// The peer closed in the middle.
    Closed,
    /// The HTTP status, which is not 200.
    Status(u16),
    /// The first byte that differs from what was sent, counted from the connection's start.
    Wrong(u64),
}

/// One line of a client. Times are nanoseconds of CLOCK_MONOTONIC ([`now`]), the same in every process of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It runs.
    Started,
    /// A round that is a connection of its own, or the first of one that shall be kept.
    Attempt {
        /// Index of the flow as the client was given them.
        flow: usize,
        start: u64,
        end: u64,
        /// The connection came about (never so for UDP).
        connected: bool,
        outcome: Outcome,
    },
    /// A kept connection: it lives, or has ended.
    Session {
        flow: usize,
        /// When its first round began.
        opened: u64,
        /// When the last round began that went well.
        last_ok: u64,
        ended: Option<End>,
    },
    /// Since the last such line.
    Counts(Vec<Counts>),
}

/// The end of a kept connection, or the first round on it that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When it was known; for a lost datagram, when it was sent.
    pub at: u64,
    pub outcome: Outcome,
}

/// What a flow came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rounds that went well.
    pub ok: u64,
    /// Rounds that did not.
    pub failed: u64,
    /// Bytes that came back and were compared.
    pub bytes: u64,
    /// Kept HTTP connections that the other side closed between two requests, as it may.
    pub reconnected: u64,
}

/// Numbers from a seed, the same on every machine: splitmix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Now, in nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    // The kernel has had this clock since 2.6.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

// === impl Counts ===

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.reconnected += other.reconnected;
    }
}

// === impl Random ===

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(MIX_STEP);
        mix(self.0)
    }

    /// One of `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.draw() % (to - from + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_repeat_with_their_seed() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            std::array::from_fn::<u64, 64, _>(|_| random.between(3, 5))
        };
        let drawn = draw(7);
        assert!(drawn.iter().all(|number| (3..=5).contains(number)), "{drawn:?}");
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
    }

    #[test]
    fn a_line_is_read_back_as_it_was_written() -> serde_json::Result<()> {
        let end = End {
            at: 9,
            outcome: Outcome::Errno(1),
        };
        for told in [
            Told::Started,
            Told::Attempt {
                flow: 1,
                start: 2,
                end: 3,
                connected: true,
                outcome: Outcome::Wrong(4),
            },
            Told::Session {
                flow: 1,
                opened: 2,
                last_ok: 3,
                ended: Some(end),
            },
            Told::Counts(vec![Counts {
                ok: 1,
                ..Counts::default()
            }]),
        ] {
            let line = serde_json::to_string(&told)?;
            assert_eq!(serde_json::from_str::<Told>(&line)?, told, "{line}");
        }
        Ok(())
    }
}
