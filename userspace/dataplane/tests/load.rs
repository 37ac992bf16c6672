//! The real object in this kernel: loads, is re-adopted, leaves nothing. Needs root; without, it says so.

use std::{fs, path::PathBuf, sync::Arc};

use weft_dataplane::{Cgroup, Dataplane, DataplaneConfig, Inherited, ShortCircuit, find_cgroup2, uninstall, verify};
use weft_policy::Snapshot;

struct Place {
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root (cargo xtask test)");
            return None;
        }
        let unique = format!("weft-dp-{name}-{}", std::process::id());
        let cgroup = find_cgroup2().expect("cgroup2").join(&unique);
        fs::create_dir(&cgroup).expect("make a cgroup");
        Some(Self {
            cgroup,
            bpffs: std::env::temp_dir().join(unique),
        })
    }

    fn config(&self) -> DataplaneConfig {
        DataplaneConfig {
            bpffs: self.bpffs.clone(),
            cgroup: Cgroup::open(Some(&self.cgroup)).expect("cgroup"),
            daemon_cgroup: 1,
            proxy_port: 15001,
            inbound_port: 15006,
            dns_port: 15053,
            short_circuit: ShortCircuit::Auto,
            flow_sample: 1,
            map_sizes: Vec::new(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = uninstall(&self.bpffs) {
            eprintln!("uninstall: {error}");
        }
        for own in [".canary/client", ".canary/allowed", ".canary/denied", ".canary", ""] {
            let _ = fs::remove_dir(self.cgroup.join(own));
        }
    }
}

#[test]
fn a_second_start_adopts_what_the_first_published() {
    let Some(place) = Place::new("adopt") else { return };
    let first = Dataplane::start(&place.config()).expect("first start");
    assert!(!first.adopted());
    let snapshot = Arc::new(Snapshot {
        generation: first.next_generation(),
        ..Snapshot::default()
    });
    let published = first.publish(&snapshot).expect("publish");
    assert_eq!(published.generation, 1);
    drop(first);
    let second = Dataplane::start(&place.config()).expect("second start");
    assert!(second.adopted());
    assert_eq!(second.next_generation(), 2, "the generation in force survives");
}

fn publish(dataplane: &Dataplane) -> u64 {
    let snapshot = Snapshot {
        generation: dataplane.next_generation(),
        ..Snapshot::default()
    };
    dataplane.publish(&snapshot).expect("publish").generation
}

#[test]
fn what_a_successor_began_is_taken_back_and_what_it_finished_is_its_own() {
    let Some(place) = Place::new("hand-over") else { return };
    let first = Dataplane::start(&place.config()).expect("first start");
    assert_eq!(publish(&first), 1);
    let inherited = || {
        let (bpffs_lock, cgroup_lock) = first.locks().expect("descriptors").expect("held");
        Inherited {
            bpffs_lock,
            cgroup_lock,
            namespaces: first.namespaces().names(),
        }
    };
    let config = place.config();
    let prepared = Dataplane::prepare(&config.bpffs, config.flow_sample, &config.map_sizes).expect("prepared");
    assert!(prepared.is_some(), "there are pins");
    let second = Dataplane::take_over(&place.config(), inherited(), prepared).expect("taken over");
    assert_eq!(publish(&second), 2);
    drop(second);
    first.reclaim().expect("taken back");
    assert_eq!(publish(&first), 3, "on top of what is really in the tables");

    let third = Dataplane::take_over(&place.config(), inherited(), None).expect("taken over again");
    first.let_go();
    let other = Dataplane::start(&place.config()).err().expect("refused").to_string();
    assert!(other.contains("in use by another weft daemon"), "{other}");
    assert_eq!(publish(&third), 4);
}

#[test]
fn every_program_is_accepted_and_its_verification_counted() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root (cargo xtask test)");
        return;
    }
    let found = verify().expect("the object");
    for name in ["weft_connect4", "weft_sk_msg", "weft_sockops"] {
        assert!(
            found.programs.iter().any(|program| program.name == name),
            "{name}: {found:?}"
        );
    }
    for program in &found.programs {
        assert_eq!(program.refused, None, "{}", program.name);
        // Counted since Linux 5.16, and never less than an exit.
        assert_ne!(program.instructions, Some(0), "{}", program.name);
    }
}
