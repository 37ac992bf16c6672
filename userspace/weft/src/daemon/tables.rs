//! Kernel tables that have another size than the operator asked for, or had no room: for `weft status` and `weft doctor`.

use nix::libc;
use weft_dataplane::{AFTER_A_CHANGED_LAYOUT, Dataplane, KeptSize, KernelError};

use crate::admin::api::Degraded;

/// What hash maps answer when they are full. Where the programs have no errno they note 0.
const FULL: [u32; 2] = [libc::E2BIG as u32, 0];

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

/// Tables that were full since they were made. To be read from the kernel; what cannot be read is no finding.
pub fn full(dataplane: &Dataplane) -> Vec<Degraded> {
    dataplane
        .kernel_errors()
        .map(|errors| was_full(&errors))
        .unwrap_or_default()
}

fn other_size(kept: &KeptSize) -> Degraded {
    let KeptSize { map, size, wanted, .. } = kept;
    Degraded {
        what: format!("--map-size {map}={wanted}"),
        why: format!("the table was there already and has {size}"),
        instead: format!("it keeps that until the kernel tables are made anew: after {AFTER_A_CHANGED_LAYOUT}"),
    }
}

fn was_full(errors: &[KernelError]) -> Vec<Degraded> {
    let times = |site: &str| {
        let of_site = errors
            .iter()
            .filter(|error| error.site == site && FULL.contains(&error.errno));
        of_site.map(|error| error.count).sum::<u64>()
    };
    let finding = |(site, map, instead): (&str, &str, &str)| {
        let times = times(site);
        (times > 0).then(|| Degraded {
            what: format!("kernel table {map}"),
            why: format!("it was full {times} times since it was made; see `weft daemon --help`, --map-size"),
            instead: instead.to_owned(),
        })
    };
    WRITTEN_BY_PROGRAMS.into_iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_was_full_if_a_write_found_no_room_and_not_if_it_failed_otherwise() {
        let error = |site, errno, count| KernelError { site, errno, count };
        let errors = [
            error("conns_insert", libc::E2BIG as u32, 3),
            error("conns_insert", libc::ENOMEM as u32, 5),
            error("listen_insert", 0, 2),
            error("circuit_insert", libc::EOPNOTSUPP as u32, 7),
            error("events_full", 0, 9),
        ];
        let found = was_full(&errors);
        let found: Vec<(&str, &str)> = found.iter().map(|one| (&*one.what, &*one.why)).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        for ((what, why), (map, times)) in found
            .iter()
            .zip([("conns", "full 3 times"), ("listen", "full 2 times")])
        {
            assert!(what.ends_with(map) && why.contains(times), "{found:?}");
        }
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
