//! What must not grow: entries of kernel maps, descriptors and memory of daemons.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use vm_test::{Host, census, poll};

use super::stats::Slack;

/// What one host has been seen to have.
#[derive(Default)]
pub struct Gauges {
    /// Samples of each gauge since the end of the warm-up, oldest first; before, only the newest.
    samples: BTreeMap<&'static str, Vec<u64>>,
    /// Of [`FLOWS`].
    crowd: Crowd,
}

/// A gauge at the beginning and at the end.
pub struct Trend {
    pub name: &'static str,
    /// Medians of the first and of the last third of the samples.
    pub first: u64,
    pub last: u64,
    pub flat: bool,
}

/// A gauge that rises and falls, and has room for so much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crowd {
    pub greatest: u64,
    pub room: u64,
}

/// Every new socket adds flows of datagrams. The daemon forgets those that are idle for 180 s, or for 30 s where half of the table is
/// in use: so they rise to half of it and fall again, and where two samples stand in that says nothing.
pub const FLOWS: &str = "flows";

pub const DESCRIPTORS: &str = "descriptors";
/// Resident, in KiB.
pub const MEMORY: &str = "memory KiB";

/// Entries of a map come and go with connections: a tenth, and as many as clients have streams.
const MAP_SLACK: Slack = Slack { share: 0.1, plus: 64 };
/// Descriptors come and go with proxied connections, two each.
const DESCRIPTOR_SLACK: Slack = Slack { share: 0.1, plus: 24 };
/// The allocator keeps what a burst of connections needed.
const MEMORY_SLACK: Slack = Slack {
    share: 0.1,
    plus: 4 * 1024,
};

// === impl Gauges ===

impl Gauges {
    /// Looks at everything of the host whose daemon is `pid`; without one, at its maps alone. `since` the traffic began; it
    /// is no news after `warm_up`.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn sample(&mut self, host: &Host, pid: Option<i32>, since: Duration, warm_up: Duration) -> Result<()> {
        for map in census::MAPS {
            let entries = census::entries(&host.bpffs(), map)? as u64;
            self.push(map, entries, since >= warm_up);
            if map == FLOWS {
                self.crowd.greatest = self.crowd.greatest.max(entries);
                self.crowd.room = census::room(&host.bpffs(), map)? as u64;
            }
        }
        // It may be killed while we look.
        if let Some((descriptors, memory)) = pid.and_then(|pid| process(pid).ok()) {
            self.push(DESCRIPTORS, descriptors, since >= warm_up);
            self.push(MEMORY, memory, since >= warm_up);
        }
        Ok(())
    }

    fn push(&mut self, name: &'static str, value: u64, warm: bool) {
        let samples = self.samples.entry(name).or_default();
        if !warm {
            samples.clear();
        }
        samples.push(value);
    }

    /// The newest sample of a gauge.
    pub fn newest(&self, name: &str) -> u64 {
        self.samples
            .get(name)
            .and_then(|samples| samples.last())
            .copied()
            .unwrap_or(0)
    }

    /// How crowded [`FLOWS`] was.
    pub fn crowd(&self) -> Crowd {
        self.crowd
    }

    /// What must be flat and can be judged: gauges with three samples after the warm-up.
    pub fn trends(&self) -> Vec<Trend> {
        let trend = |(name, samples): (&&'static str, &Vec<u64>)| {
            let (first, last) = Slack::thirds(samples)?;
            let slack = match *name {
                DESCRIPTORS => DESCRIPTOR_SLACK,
                MEMORY => MEMORY_SLACK,
                _ => MAP_SLACK,
            };
            Some(Trend {
                name,
                first,
                last,
                flat: slack.allows(first, last),
            })
        };
        let flat = self.samples.iter().filter(|(name, _)| **name != FLOWS);
        flat.filter_map(trend).collect()
    }
}

// === impl Crowd ===

impl Crowd {
    /// Whether those that are idle made room in time: three quarters are half of the table, and what comes until the next sweep.
    pub fn held(self) -> bool {
        self.greatest <= self.room / 4 * 3
    }
}

/// Waits until no record of a connection is left: clients are gone, and the proxy has given up what it kept for later.
///
/// # Errors
/// Some are left: how many.
pub fn await_forgotten(hosts: &[&Host]) -> Result<()> {
    poll::within(FORGOTTEN, "records of connections to go with them", || {
        for host in hosts {
            let left = census::entries(&host.bpffs(), "conns")?;
            ensure!(left == 0, "host {}: {left} are left", host.name());
        }
        Ok(())
    })
}

/// The proxy keeps an idle connection to an endpoint for 30 s.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Descriptors and resident KiB of a process.
fn process(pid: i32) -> Result<(u64, u64)> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .context("list descriptors")?
        .count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the process's status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    let memory = line.trim().trim_end_matches(" kB").parse().context("read VmRSS")?;
    Ok((descriptors as u64, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_nobody_sweeps_does_not_hold() {
        let held = |greatest| Crowd { greatest, room: 1_000 }.held();
        assert_eq!([0, 510, 750, 751, 1_000].map(held), [true, true, true, false, false]);
    }

    #[test]
    fn our_own_descriptors_and_memory_are_seen() -> Result<()> {
        let pid = i32::try_from(std::process::id())?;
        let (before, memory) = process(pid)?;
        let file = fs::File::open("/proc/self/status")?;
        let (after, _) = process(pid)?;
        drop(file);
        // Other tests of this process open and close files as well.
        assert!(before > 2 && after > 2 && memory > 500, "{before} {after} {memory}");
        Ok(())
    }
}
