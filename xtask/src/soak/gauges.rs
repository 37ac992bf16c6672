//! What must not grow: entries of kernel maps, descriptors and memory of daemons.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use vm_test::{Host, census, poll};

use super::stats::Slack;

/// Samples of each gauge of one host since the end of its warm-up, oldest first; before, only the newest.
#[derive(Default)]
pub struct Gauges(BTreeMap<&'static str, Vec<u64>>);

/// A gauge at the beginning and at the end.
pub struct Trend {
    pub name: &'static str,
    /// Medians of the first and of the last third of the samples.
    pub first: u64,
    pub last: u64,
    pub flat: bool,
}

/// The daemon forgets a datagram flow that is idle for 180 s: until then, and a sweep later, every new socket adds to it.
pub const FLOWS: &str = "flows";
const FLOWS_WARM_UP: Duration = Duration::from_secs(210);

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
            let entries = census::entries(&host.bpffs(), map)?;
            let warm_up = if map == FLOWS { FLOWS_WARM_UP } else { warm_up };
            self.push(map, entries as u64, since >= warm_up);
        }
        // It may be killed while we look.
        if let Some((descriptors, memory)) = pid.and_then(|pid| process(pid).ok()) {
            self.push(DESCRIPTORS, descriptors, since >= warm_up);
            self.push(MEMORY, memory, since >= warm_up);
        }
        Ok(())
    }

    fn push(&mut self, name: &'static str, value: u64, warm: bool) {
        let samples = self.0.entry(name).or_default();
        if !warm {
            samples.clear();
        }
        samples.push(value);
    }

    /// The newest sample of a gauge.
    pub fn newest(&self, name: &str) -> u64 {
        self.0
            .get(name)
            .and_then(|samples| samples.last())
            .copied()
            .unwrap_or(0)
    }

    /// What can be judged: gauges with three samples after their warm-up.
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
        self.0.iter().filter_map(trend).collect()
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
