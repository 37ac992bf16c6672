//! What must hold of everything a client tells, given the policies that may have been in force and what was done to daemons.

use std::collections::BTreeMap;

use vm_test::soak::{Counts, End as Ended, Kind, Outcome, Told};

use super::{
    stats::Spread,
    stream::{Account, Path, Stream},
    timeline::{End, Possible, Timeline},
};

/// All verdicts so far.
pub struct Judge {
    pub hosts: [HostView; 2],
    /// When the soak began, for texts.
    begin: u64,
    /// What went wrong, in words; the first [`MAX_WORDS`].
    pub words: Vec<String>,
    pub wrong: Wrong,
    /// By account and way.
    pub tallies: BTreeMap<(Account, &'static str), Tally>,
    cuts: Vec<Cut>,
}

/// What is known of a host's policy and daemon.
pub struct HostView {
    pub timeline: Timeline,
    pub troubles: Vec<Trouble>,
}

/// Something that was done to a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    pub kind: TroubleKind,
    pub start: u64,
    /// When a daemon served again and the old one was gone.
    pub end: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// kill -9, and a start a moment later.
    Killed,
    /// `weft daemon --take-over`.
    TakenOver,
}

/// What must be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wrong {
    /// Bytes that were not those sent.
    pub bytes: u64,
    /// Let through what no policy in force allowed.
    pub let_through: u64,
    /// Refused or cut what every policy in force allowed.
    pub denied: u64,
    /// Went on after a denial was in force.
    pub outlived: u64,
    /// Denied, but not as it should be told.
    pub manner: u64,
    /// Changes of policy that a living daemon did not take.
    pub changes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub counts: Counts,
    /// Attempts that were denied as they had to be, or might be.
    pub denied: u64,
    /// Kept connections that were cut by a change of policy.
    pub cut: u64,
    /// New connections that needed a proxy while there was none: their failure mode.
    pub refused_without_daemon: u64,
    /// Connections through a proxy that ended with it.
    pub ended_with_daemon: u64,
}

/// A kept connection ended because of a denial.
struct Cut {
    host: usize,
    way: &'static str,
    outside: bool,
    denial: usize,
    at: u64,
}

/// How long the cuts of one way took.
pub struct CutTimes {
    pub way: String,
    /// From the start of `weft apply`, and from its return.
    pub from_start: Spread,
    pub from_return: Spread,
    /// More than [`CUT_GOAL`] after its return.
    pub late: usize,
}

/// A kept connection shall be cut so soon after `weft apply` has returned; also what a proxied one may live on.
pub const CUT_GOAL_NS: u64 = 100_000_000;
/// Ends of connections are told by their programs, which two busy cores may keep waiting for so long.
const TOLD_NS: u64 = 1_000_000_000;
/// The answer to a datagram may be under way for so long, and a change of policy that it meets there loses it.
const ANSWER_NS: u64 = 100_000_000;
const MAX_WORDS: usize = 40;

const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

// === impl Judge ===

impl Judge {
    /// Both hosts allow everything but strangers.
    pub fn new(begin: u64) -> Self {
        let view = || HostView {
            timeline: Timeline::new(true),
            troubles: Vec::new(),
        };
        Self {
            hosts: [view(), view()],
            begin,
            words: Vec::new(),
            wrong: Wrong::default(),
            tallies: BTreeMap::new(),
            cuts: Vec::new(),
        }
    }

    /// One line of a client with these streams.
    pub fn take(&mut self, streams: &[Stream], told: &Told) {
        match told {
            Told::Started => {}
            Told::Counts(counts) => {
                for (stream, counts) in streams.iter().zip(counts) {
                    self.tally(stream).counts.add(counts);
                }
            }
            Told::Attempt {
                flow,
                start,
                end,
                connected,
                outcome,
            } => {
                if let Some(stream) = streams.get(*flow) {
                    self.attempt(stream, (*start, *end), *connected, *outcome);
                }
            }
            Told::Session {
                flow,
                opened,
                last_ok,
                ended,
            } => {
                if let Some(stream) = streams.get(*flow) {
                    self.session(stream, *opened, *last_ok, *ended);
                }
            }
        }
    }

    fn attempt(&mut self, stream: &Stream, (start, end): (u64, u64), connected: bool, outcome: Outcome) {
        let possible = self.possible(stream, start, end);
        let what = || format!("{outcome:?} on {stream}, connected: {connected}");
        match outcome {
            Outcome::Wrong(_) => self.blame(|wrong| &mut wrong.bytes, start, end, what()),
            Outcome::Ok if possible.allow => {}
            Outcome::Ok => self.blame(|wrong| &mut wrong.let_through, start, end, what()),
            _ if !possible.allow && connected => self.blame(|wrong| &mut wrong.let_through, start, end, what()),
            _ if possible.deny => {
                self.tally(stream).denied += 1;
                if !possible.allow && !self.is_told_well(stream, outcome, start, end) {
                    self.blame(|wrong| &mut wrong.manner, start, end, what());
                }
            }
            _ if stream.path == Path::Proxied && self.without_daemon(stream.host, start, end) => {
                self.tally(stream).refused_without_daemon += 1;
            }
            _ if stream.path == Path::Proxied && connected && self.troubled(stream.host, start, end) => {
                self.tally(stream).ended_with_daemon += 1;
            }
            _ => self.blame(|wrong| &mut wrong.denied, start, end, what()),
        }
    }

    fn session(&mut self, stream: &Stream, opened: u64, last_ok: u64, ended: Option<Ended>) {
        let timeline = &self.hosts[stream.host].timeline;
        let grace = if stream.path == Path::Proxied && stream.flow.kind == Kind::Held {
            CUT_GOAL_NS
        } else {
            0
        };
        let flaps = stream.account == Account::Flapper;
        if flaps && timeline.outlived(opened, last_ok, grace) {
            let what = format!("{stream} opened {} lives", self.since_begin(opened));
            self.blame(|wrong| &mut wrong.outlived, last_ok, last_ok, what);
        }
        let Some(Ended { at, outcome }) = ended else { return };
        let what = || format!("{outcome:?} on {stream}, a kept connection");
        if let Outcome::Wrong(_) = outcome {
            return self.blame(|wrong| &mut wrong.bytes, last_ok, at, what());
        }
        // A lost datagram's end is when it was sent.
        let met = if outcome == Outcome::Lost { at + ANSWER_NS } else { at };
        if stream.account == Account::Stranger {
            // That it came about at all is counted already.
        } else if flaps && self.hosts[stream.host].timeline.possible(last_ok, met).deny {
            self.tally(stream).cut += 1;
            if let Some(denial) = self.hosts[stream.host].timeline.denial(opened, met) {
                self.cuts.push(Cut {
                    host: stream.host,
                    way: stream.way(),
                    outside: stream.outside,
                    denial,
                    at,
                });
            }
        } else if stream.path == Path::Proxied && self.troubled(stream.host, last_ok, at) {
            self.tally(stream).ended_with_daemon += 1;
        } else {
            self.blame(|wrong| &mut wrong.denied, last_ok, at, what());
        }
    }

    fn possible(&self, stream: &Stream, from: u64, to: u64) -> Possible {
        match stream.account {
            Account::Friend => Possible::ALLOW,
            Account::Stranger => Possible::DENY,
            Account::Flapper => self.hosts[stream.host].timeline.possible(from, to),
        }
    }

    /// In the mesh a denial is EPERM from the very call, with a daemon or without; outside it is silence or a refusal. A
    /// request on a kept connection is answered.
    fn is_told_well(&self, stream: &Stream, outcome: Outcome, start: u64, end: u64) -> bool {
        match outcome {
            Outcome::Errno(EPERM) => !stream.outside,
            Outcome::Lost | Outcome::Errno(ECONNREFUSED | EHOSTUNREACH) => stream.outside,
            Outcome::Status(403) => stream.flow.kind == Kind::Http,
            _ => stream.flow.kind == Kind::Http && self.troubled(stream.host, start, end),
        }
    }

    fn without_daemon(&self, host: usize, from: u64, to: u64) -> bool {
        let mut killed = self.hosts[host]
            .troubles
            .iter()
            .filter(|trouble| trouble.kind == TroubleKind::Killed);
        killed.any(|trouble| trouble.overlaps(from, to, 0))
    }

    fn troubled(&self, host: usize, from: u64, to: u64) -> bool {
        self.hosts[host]
            .troubles
            .iter()
            .any(|trouble| trouble.overlaps(from, to, TOLD_NS))
    }

    /// A change of `host`'s policy that did not come about, while a daemon lived.
    pub fn change_failed(&mut self, host: usize, start: u64, end: u64, said: &str) {
        if !self.without_daemon(host, start, end) {
            let what = format!("`weft apply` on host {}: {said}", ["a", "b"][host]);
            self.blame(|wrong| &mut wrong.changes, start, end, what);
        }
    }

    fn blame(&mut self, of: impl FnOnce(&mut Wrong) -> &mut u64, from: u64, to: u64, what: String) {
        *of(&mut self.wrong) += 1;
        if self.words.len() < MAX_WORDS {
            let (from, to) = (self.since_begin(from), self.since_begin(to));
            self.words.push(format!("{from} to {to}: {what}"));
        }
    }

    pub fn since_begin(&self, at: u64) -> String {
        let nanos = at as i128 - i128::from(self.begin);
        format!("{:.4} s", nanos as f64 / 1e9)
    }

    fn tally(&mut self, stream: &Stream) -> &mut Tally {
        self.tallies.entry((stream.account, stream.way())).or_default()
    }

    /// How long each kind of trouble lasted, in milliseconds: without a daemon; until the old one was gone.
    pub fn trouble_times(&self, kind: TroubleKind) -> Option<Spread> {
        let troubles = self.hosts.iter().flat_map(|host| &host.troubles);
        let ended = troubles.filter(|trouble| trouble.kind == kind);
        Spread::of(
            ended
                .filter_map(|trouble| Some((trouble.end? - trouble.start) as f64 / 1e6))
                .collect(),
        )
    }

    /// Of all ways, each for itself; of programs outside the mesh apart.
    pub fn cut_times(&self) -> Vec<CutTimes> {
        let mut ways: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for cut in &self.cuts {
            let change = self.hosts[cut.host].timeline.change(cut.denial);
            let Some((start, End::At(end))) = change.map(|change| (change.start, change.end)) else {
                continue;
            };
            let outside = if cut.outside { ", outside" } else { "" };
            // A lost datagram may have been sent before.
            let at = cut.at.max(start);
            let millis = |from: u64| (at as f64 - from as f64) / 1e6;
            let way = ways.entry(format!("{}{outside}", cut.way)).or_default();
            way.push((millis(start), millis(end)));
        }
        let times = ways.into_iter().filter_map(|(way, cuts)| {
            let goal = CUT_GOAL_NS as f64 / 1e6;
            Some(CutTimes {
                way,
                from_start: Spread::of(cuts.iter().map(|cut| cut.0).collect())?,
                from_return: Spread::of(cuts.iter().map(|cut| cut.1).collect())?,
                late: cuts.iter().filter(|cut| cut.1 > goal).count(),
            })
        });
        times.collect()
    }
}

// === impl Trouble ===

impl Trouble {
    fn overlaps(&self, from: u64, to: u64, after: u64) -> bool {
        let end = self.end.map_or(u64::MAX, |end| end.saturating_add(after));
        self.start <= to && from <= end
    }
}

// === impl Wrong ===

impl Wrong {
    /// With what each is called.
    pub fn all(&self) -> [(&'static str, u64); 6] {
        [
            ("bytes wrong", self.bytes),
            ("let through although denied", self.let_through),
            ("denied or cut although allowed", self.denied),
            ("alive after a denial was in force", self.outlived),
            ("denied in another way than declared", self.manner),
            ("changes of policy that failed", self.changes),
        ]
    }

    pub fn total(&self) -> u64 {
        self.all().iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests;
