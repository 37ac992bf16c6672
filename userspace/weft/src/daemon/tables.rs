//! Kernel tables that have another size than the operator asked for, or had no room: for `weft status` and `weft doctor`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::libc;
use weft_dataplane::{AFTER_A_CHANGED_LAYOUT, Dataplane, KeptSize, KernelError};

use crate::admin::api::Degraded;

/// What hash maps answer when they are full. Where the programs have no errno they note 0.
const FULL: [u32; 2] = [libc::E2BIG as u32, 0];

/// How long a table that was full is a finding: a monitor sees it, and sees it pass.
const LATELY: Duration = Duration::from_secs(600);

/// Tables that programs write, as the programs' errors name them, and what happens without room there. (A short-circuit that finds
/// none stays on TCP, and an event is counted as lost.)
const WRITTEN_BY_PROGRAMS: [(&str, &str, &str); 5] = [
    (
        "conns_insert",
        "conns",
        "connections beyond its size are refused by the proxy, and are an unknown client's to servers that they reach directly",
    ),
    (
        "flows_full",
        "flows",
        "datagram flows beyond its size are judged at every packet, their answers as if they began something",
    ),
    (
        "edges_full",
        "edges",
        "what found no room is counted on the overflow edge",
    ),
    (
        "rules_full",
        "rules",
        "decisions of rules that found no room are not counted",
    ),
    (
        "listen_insert",
        "listen",
        "what listens beyond its size is known to nobody: no service leads there",
    ),
];

/// Sizes that were asked for and are not in force.
pub fn kept(dataplane: &Dataplane) -> impl Iterator<Item = Degraded> {
    let asked = dataplane.kept_sizes().iter().filter(|kept| kept.asked);
    asked.map(other_size)
}

/// Which tables programs found full, and when last, as whoever reads their errors notes it.
#[derive(Debug, Default)]
pub struct Full(Mutex<HashMap<&'static str, Times>>);

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// Since the table was made.
    count: u64,
    /// `None`: not since this daemon looks.
    last: Option<Instant>,
}

// === impl Full ===

impl Full {
    /// Notes what the programs have counted by now. What they had before the first time says nothing of now.
    pub fn note(&self, errors: &[KernelError], now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = known.is_empty();
        for (site, ..) in WRITTEN_BY_PROGRAMS {
            let of_site = errors
                .iter()
                .filter(|error| error.site == site && FULL.contains(&error.errno));
            let count = of_site.map(|error| error.count).sum();
            let times = known.entry(site).or_default();
            if count > times.count && !first {
                times.last = Some(now);
            }
            times.count = count;
        }
    }

    /// Tables that were full a short while ago.
    pub fn lately(&self, now: Instant) -> Vec<Degraded> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let finding = |(site, map, instead): (&str, &str, &str)| {
            let times = known.get(site)?;
            let ago = now.saturating_duration_since(times.last?);
            (ago < LATELY).then(|| Degraded {
                what: format!("kernel table {map}"),
                why: format!(
                    "it was full {} s ago, and {} times since it was made; see `weft daemon --help`, --map-size",
                    ago.as_secs(),
                    times.count
                ),
                instead: instead.to_owned(),
            })
        };
        WRITTEN_BY_PROGRAMS.into_iter().filter_map(finding).collect()
    }
}

fn other_size(kept: &KeptSize) -> Degraded {
    let KeptSize { map, size, wanted, .. } = kept;
    Degraded {
        what: format!("--map-size {map}={wanted}"),
        why: format!("the table was there already and has {size}"),
        instead: format!("it keeps that until the kernel tables are made anew: after {AFTER_A_CHANGED_LAYOUT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_had_no_room_is_told_of_for_a_while() {
        let error = |site, errno, count| KernelError { site, errno, count };
        let counted = |more: u64| {
            [
                error("conns_insert", libc::E2BIG as u32, 3 + more),
                error("conns_insert", libc::ENOMEM as u32, 5 + more),
                error("listen_insert", 0, more),
                error("edges_full", libc::E2BIG as u32, 4),
                error("circuit_insert", libc::EOPNOTSUPP as u32, 7 + more),
                error("events_full", 0, 9 + more),
            ]
        };
        let (full, begun) = (Full::default(), Instant::now());
        let told = |now: Instant| -> Vec<String> {
            let found = full.lately(now).into_iter();
            found.map(|one| format!("{}: {}", one.what, one.why)).collect()
        };
        full.note(&counted(0), begun);
        assert!(told(begun).is_empty(), "before this daemon looked");
        let later = begun + Duration::from_secs(10);
        full.note(&counted(2), later);
        for (ago, now) in [(0, later), (7, later + Duration::from_secs(7))] {
            full.note(&counted(2), now);
            let found = told(now);
            let expected = [("conns", 5), ("listen", 2)]
                .map(|(map, times)| format!("kernel table {map}: it was full {ago} s ago, and {times} times since"));
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(
                found
                    .iter()
                    .zip(&expected)
                    .all(|(found, begins)| found.starts_with(begins)),
                "{found:?}"
            );
        }
        assert!(told(later + LATELY).is_empty());
    }

    #[test]
    fn who_asks_for_another_size_is_told_which_one_holds_and_what_gets_the_other() {
        let told = other_size(&KeptSize {
            map: "policy",
            size: 524_288,
            wanted: 131_072,
            asked: true,
        });
        assert_eq!(told.what, "--map-size policy=131072");
        assert!(told.why.contains("524288"), "{told:?}");
        assert!(told.instead.contains("weft uninstall --kernel-only"), "{told:?}");
    }
}
