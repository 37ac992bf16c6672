//! What the daemon may do beyond any other process.

use std::fs;

use anyhow::Context as _;

use crate::error::{Coded, UNSUPPORTED};

/// One bit of capabilities(7).
#[derive(Debug)]
struct Capability {
    name: &'static str,
    /// Its number in include/uapi/linux/capability.h.
    number: u32,
    used_for: &'static str,
}

/// The whole list; that of `userspace/packaging` is the same. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON in every kernel
/// that has these (Linux 5.8). Proved by: `vm-test/tests/packaging.rs`.
const NEEDED: [Capability; 2] = [
    Capability {
        name: "CAP_NET_ADMIN",
        number: 12,
        used_for: "network devices, inbound capture, resetting connections, clients' addresses in pods",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        number: 21,
        used_for: "kernel programs, mounting a bpffs, network namespaces of pods",
    },
];

/// Whether this process has them all.
///
/// # Errors
///
/// The names of those that it lacks, with exit code [`UNSUPPORTED`]; /proc cannot be read.
pub fn check() -> anyhow::Result<()> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).with_context(|| format!("read {STATUS}"))?;
    let effective = effective(&status).with_context(|| format!("find CapEff in {STATUS}"))?;
    let missing = missing(effective);
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    let error = anyhow::anyhow!("the daemon lacks {missing}: run it as root (sudo); `weft check` needs no privileges");
    Err(Coded::error(UNSUPPORTED, error))
}

/// The effective set, a bit a capability (proc(5)).
fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<String> {
    NEEDED
        .iter()
        .filter(|capability| effective & (1 << capability.number) == 0)
        .map(|capability| format!("{} ({})", capability.name, capability.used_for))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_and_no_other() {
        let status = "Name:\tweft\nCapInh:\t0000000000000001\nCapPrm:\t0000000000000002\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(0x1ff_ffff_ffff));
        for broken in ["", "CapPrm:\t2\n", "CapEff:\tmany\n"] {
            assert_eq!(effective(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn exactly_what_is_missing_is_named() {
        let (net_admin, sys_admin) = (0x1000, 0x20_0000);
        for (effective, names) in [
            (net_admin | sys_admin, vec![]),
            (net_admin, vec!["CAP_SYS_ADMIN"]),
            (sys_admin, vec!["CAP_NET_ADMIN"]),
            (!(net_admin | sys_admin), vec!["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),
        ] {
            let missing = missing(effective);
            let found: Vec<_> = missing.iter().filter_map(|text| text.split(' ').next()).collect();
            assert_eq!(found, names, "{effective:#x}");
        }
    }
}
