//! A client and two servers of weft's own, by which `weft doctor` proves that the programs decide, and do not only run.
//!
//! To the programs they are workloads as any other: enrolled by their cgroups, reached by a virtual IP, judged by their
//! identities. What makes them so is part of every publication (`tables::canary`): a proof finds the tables as everybody
//! finds them, writes nothing into them, and only its traces ([`forget`]) are to be taken away. Nobody above the tables knows
//! of them: no account ever has their numbers, so no resource can name or select them and no list shows them.
//!
//! ```text
//! CGROUP/.canary/client  -- TCP, UDP --> VIP:1 --> 127.0.0.1:15093  .canary/allowed
//!                                        VIP:2 --> 127.0.0.1:15094  .canary/denied     EPERM
//! ```

mod process;

use std::{
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use weft_policy::Identity;

use crate::{
    cgroup::{CANARY, Cgroup, id_of},
    error::DataplaneError,
    lock::make_private,
    tables::telemetry,
};

pub use process::prove;

/// Identity of the client.
pub const CLIENT: u32 = Identity::OWN.0;
/// Its cgroup, below the canary's.
const CLIENT_CGROUP: &str = "client";

/// Virtual IPs, outside all ranges that services may have and exist: the dummy address (RFC 7600, 4.8) and the first of the
/// discard-only ones (RFC 6666). A packet to them that leaves, because nothing translated it, is nobody's.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// One of the two servers.
#[derive(Debug)]
pub struct Server {
    pub identity: u32,
    /// Its cgroup, below the canary's.
    cgroup: &'static str,
    /// At the virtual IPs.
    pub port: u16,
    /// On loopback, beside Istio's ports, which nobody uses for anything else.
    pub target: u16,
    /// Sets of backends for IPv4 and IPv6: the last ones, as services count from the first.
    pub sets: [u32; 2],
}

/// The client may.
pub const ALLOWED: Server = Server {
    identity: CLIENT + 1,
    cgroup: "allowed",
    port: 1,
    target: 15_093,
    sets: [u32::MAX - 3, u32::MAX - 2],
};

/// Nobody may.
pub const DENIED: Server = Server {
    identity: CLIENT + 2,
    cgroup: "denied",
    port: 2,
    target: 15_094,
    sets: [u32::MAX - 1, u32::MAX],
};

/// Whether an identity is the canary's: what it does is in no list and no metric.
pub fn is_canary(identity: u32) -> bool {
    (CLIENT..=DENIED.identity).contains(&identity)
}

/// Ids of its cgroups.
#[derive(Debug, Clone, Copy)]
pub struct Cgroups {
    client: u64,
    allowed: u64,
    denied: u64,
}

/// What the programs made of one thing that the canary did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Protocol, family and what was to happen.
    pub name: String,
    /// What happened instead.
    pub wrong: Option<String>,
}

// === impl Cgroups ===

impl Cgroups {
    /// Makes those that are not there.
    ///
    /// # Errors
    ///
    /// Not permitted, or the limit of cgroups is reached.
    pub fn make(captured: &Cgroup) -> Result<Self, DataplaneError> {
        let place = place(captured);
        let make = |name: &str| {
            let path = place.join(name);
            make_private(&place)
                .and_then(|()| fs::create_dir_all(&path))
                .and_then(|()| id_of(&path))
                .map_err(|source| DataplaneError::Cgroup {
                    path,
                    what: "make it for the canary of `weft doctor`",
                    source,
                })
        };
        Ok(Self {
            client: make(CLIENT_CGROUP)?,
            allowed: make(ALLOWED.cgroup)?,
            denied: make(DENIED.cgroup)?,
        })
    }

    /// Each with the identity of who lives there.
    pub fn identities(&self) -> [(u64, u32); 3] {
        [
            (self.client, CLIENT),
            (self.allowed, ALLOWED.identity),
            (self.denied, DENIED.identity),
        ]
    }
}

/// The directory that its cgroups are in.
pub fn place(captured: &Cgroup) -> PathBuf {
    captured.path().join(CANARY)
}

/// Takes its traces out of the pinned tables: what it was counted as, and its datagrams, which would stay for minutes.
///
/// # Errors
///
/// The kernel refused a table.
pub fn forget(bpffs: &Path) -> Result<(), DataplaneError> {
    let edges: Vec<_> = telemetry::all_edges(&bpffs.join("maps/edges"))?
        .into_iter()
        .map(|edge| edge.key)
        .filter(|key| is_canary(key.source))
        .collect();
    if !edges.is_empty() {
        telemetry::forget_edges(&bpffs.join("maps/edges"), &edges)?;
    }
    telemetry::forget_flows(&bpffs.join("maps/flows"), is_canary)
}

// === impl Verdict ===

impl Verdict {
    /// As the canary's process writes it: one line.
    pub fn read(line: &str) -> Option<Self> {
        let (name, wrong) = line.split_once('\t')?;
        Some(Self {
            name: name.to_owned(),
            wrong: (!wrong.is_empty()).then(|| wrong.to_owned()),
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.wrong.as_deref().unwrap_or_default();
        write!(f, "{}\t{}", self.name, wrong.replace(['\n', '\t'], " "))
    }
}

/// Whether a verdict was wrong in which this program has a part: its runs prove nothing then.
pub fn is_doubtful(program: &str, verdicts: &[Verdict]) -> bool {
    let mut wrong = verdicts.iter().filter(|verdict| verdict.wrong.is_some());
    wrong.any(|verdict| process::programs_of(&verdict.name).iter().any(|part| part == program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_line_and_back() {
        for (wrong, read) in [
            (None, None),
            (Some("let\tthrough\n"), Some("let through ")),
            (Some("let through"), Some("let through")),
        ] {
            let verdict = |wrong: Option<&str>| Verdict {
                name: "tcp4 denied".to_owned(),
                wrong: wrong.map(str::to_owned),
            };
            let line = verdict(wrong).to_string();
            assert_eq!(Verdict::read(&line), Some(verdict(read)), "{line:?}");
        }
        assert_eq!(Verdict::read("a panic, say"), None);
    }

    #[test]
    fn runs_prove_nothing_of_a_program_by_which_a_verdict_was_wrong() {
        let verdict = |name: &str, wrong: Option<&str>| Verdict {
            name: name.to_owned(),
            wrong: wrong.map(str::to_owned),
        };
        let verdicts = [
            verdict("tcp4 denied", Some("let through")),
            verdict("tcp6 denied", None),
            verdict("udp6 unconnected", Some("no answer")),
        ];
        for (program, doubtful) in [
            ("weft_connect4", true),
            ("weft_connect6", false),
            ("weft_getpeer4", false),
            ("weft_sendmsg6", true),
            ("weft_recvmsg6", true),
            ("weft_recvmsg4", false),
            ("weft_sockops", false),
        ] {
            assert_eq!(is_doubtful(program, &verdicts), doubtful, "{program}");
        }
    }

    #[test]
    fn nobody_elses_numbers_are_the_canarys() {
        for identity in [0, weft_abi::identity::PROXY, weft_abi::identity::FIRST, u32::MAX] {
            assert!(!is_canary(identity), "{identity}");
        }
        assert!([CLIENT, ALLOWED.identity, DENIED.identity].into_iter().all(is_canary));
    }
}
