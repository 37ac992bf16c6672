//! The real object in this kernel: loads, is re-adopted, leaves nothing. Needs root; without, it says so.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc};

use weft_dataplane::{
    Cgroup, Dataplane, DataplaneConfig, DataplaneError, Inherited, KeptSize, Published, SIZED_MAPS, ShortCircuit,
    find_cgroup2, uninstall, verify,
};
use weft_policy::{AccessDefault, AccessPolicy, Allocations, CompileInput, Identity, RuleId, Snapshot, Store, compile};

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
        for own in [
            ".canary/client",
            ".canary/allowed",
            ".canary/denied",
            ".canary",
            ".daemon",
            "",
        ] {
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
    let published = put(&first, &snapshot).expect("publish");
    assert_eq!(published.generation, 1);
    drop(first);
    let second = Dataplane::start(&place.config()).expect("second start");
    assert!(second.adopted());
    assert_eq!(second.next_generation(), 2, "the generation in force survives");
}

fn put(dataplane: &Dataplane, snapshot: &Arc<Snapshot>) -> Result<Published, DataplaneError> {
    dataplane.publish(snapshot, dataplane.plan(snapshot)?)
}

fn holds(dataplane: &Dataplane, snapshot: &Snapshot) -> bool {
    let plan = dataplane.plan(snapshot);
    plan.is_ok_and(|plan| dataplane.holds(&plan))
}

fn publish(dataplane: &Dataplane) -> u64 {
    let snapshot = Arc::new(Snapshot {
        generation: dataplane.next_generation(),
        ..Snapshot::default()
    });
    put(dataplane, &snapshot).expect("publish").generation
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
fn who_can_only_read_the_captured_cgroup_cannot_lock_it_and_another_daemon_is_refused() {
    let Some(place) = Place::new("lock") else { return };
    // flock(2) needs no more than an open file, which anybody gets of this directory.
    let anybodys = fs::File::open(&place.cgroup).expect("opened");
    anybodys.lock().expect("free");
    let _first = Dataplane::start(&place.config()).expect("started");
    let private = [
        place.cgroup.join(".daemon"),
        place.cgroup.join(".canary"),
        place.bpffs.clone(),
    ];
    for path in private {
        let mode = path.metadata().expect("there").mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    let other = DataplaneConfig {
        bpffs: place.bpffs.with_extension("other"),
        ..place.config()
    };
    let refused = Dataplane::start(&other).err().expect("refused").to_string();
    uninstall(&other.bpffs).expect("unmounted");
    assert!(refused.contains("in use by another weft daemon"), "{refused}");
}

#[test]
fn a_table_that_is_there_keeps_its_size_whoever_wants_another() {
    let Some(place) = Place::new("sizes") else { return };
    let start = |asked: &[(&str, u32)]| {
        let mut config = place.config();
        config.map_sizes = asked.iter().map(|(map, size)| ((*map).to_owned(), *size)).collect();
        Dataplane::start(&config).expect("started")
    };
    let first = start(&[("policy", 64), ("events", 8192)]);
    assert_eq!(first.kept_sizes(), []);
    drop(first);
    let default = |name: &str| {
        let map = SIZED_MAPS.iter().find(|map| map.name == name);
        map.expect("a map of this name").default
    };
    let kept = |map, size, wanted, asked| KeptSize {
        map,
        size,
        wanted,
        asked,
    };
    let second = start(&[]);
    assert_eq!(
        second.kept_sizes(),
        [
            kept("policy", 64, default("policy"), false),
            kept("events", 8192, default("events"), false)
        ]
    );
    drop(second);
    let third = start(&[("policy", 128), ("events", 8192)]);
    assert_eq!(third.kept_sizes(), [kept("policy", 64, 128, true)]);
}

#[test]
fn what_a_table_has_no_room_for_leaves_everything_as_it_was() {
    let Some(place) = Place::new("full") else { return };
    let mut config = place.config();
    config.map_sizes = vec![("policy".to_owned(), 64)];
    let dataplane = Dataplane::start(&config).expect("started");
    // An entry an identity.
    let of = |identities: u32| {
        let policy = Arc::new(AccessPolicy {
            default: AccessDefault::Deny,
            default_rule: RuleId(1),
            audit: false,
            allow: Vec::new(),
        });
        Arc::new(Snapshot {
            generation: dataplane.next_generation(),
            access: (0..identities)
                .map(|number| (Identity(256 + number), Arc::clone(&policy)))
                .collect(),
            ..Snapshot::default()
        })
    };
    let fits = of(32);
    assert_eq!(put(&dataplane, &fits).expect("32 fit").generation, 1);
    match put(&dataplane, &of(100)) {
        Err(DataplaneError::Full {
            map: "policy",
            room: 64,
            needed,
            leaving: 0,
        }) => assert!(needed > 100, "{needed}"),
        other => panic!("{other:?}"),
    }
    assert!(holds(&dataplane, &fits), "it is in force as it was");
    assert_eq!(dataplane.next_generation(), 2);
    assert_eq!(put(&dataplane, &of(40)).expect("40 fit").generation, 2);
}

/// A service with a workload at each address.
fn compiled(dataplane: &Dataplane, addresses: &[&str], allocations: &mut Allocations) -> Snapshot {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
        spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n"
        .to_owned();
    for (number, address) in addresses.iter().enumerate() {
        text += &format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: Workload\n\
             metadata: {{name: w{number}, labels: {{app: web}}}}\nspec: {{address: \"{address}\"}}\n"
        );
    }
    let mut store = Store::default();
    let found = store.apply_file("mesh.yaml", text.as_bytes());
    assert_eq!(found, []);
    let input = CompileInput {
        generation: dataplane.next_generation(),
        ..CompileInput::of(&store)
    };
    compile(&input, allocations).snapshot
}

/// The later snapshot with what it has of the earlier one: policies, and workloads that did not move.
fn sharing(old: &Snapshot, mut new: Snapshot) -> Arc<Snapshot> {
    new.access.clone_from(&old.access);
    let workloads = new.workloads.iter().zip(old.workloads.iter());
    new.workloads = workloads
        .map(|(now, before)| Arc::clone(if now.addresses == before.addresses { before } else { now }))
        .collect();
    Arc::new(new)
}

#[test]
fn endpoints_that_move_are_told_by_what_two_snapshots_share() {
    let Some(place) = Place::new("moves") else { return };
    let first = Dataplane::start(&place.config()).expect("first start");
    let mut allocations = Allocations::default();
    let mut compiled = |address| compiled(&first, &[address, "10.0.0.2"], &mut allocations);
    let mut before = Arc::new(compiled("10.0.0.1"));
    assert!(put(&first, &before).expect("publish").whole, "the first one");
    for address in ["10.0.0.3", "fd00::3", "fd00::4"] {
        let now = sharing(&before, compiled(address));
        assert!(!holds(&first, &now), "{address}");
        let published = put(&first, &now).expect("publish");
        assert!(!published.whole && published.rejudge, "{address}: {published:?}");
        assert!(holds(&first, &now) && !holds(&first, &before), "{address}");
        before = now;
    }
    let again = Arc::new(compiled("fd00::4"));
    assert!(holds(&first, &again), "it says the same, and shares nothing");
    first.rest_on(&again);
    let now = sharing(&again, compiled("10.0.0.5"));
    assert!(
        !put(&first, &now).expect("publish").whole,
        "told from the one that it shares with"
    );
    first.reclaim().expect("taken back");
    let last = sharing(&now, compiled("10.0.0.6"));
    assert!(put(&first, &last).expect("publish").whole, "another may have written");
    let last = sharing(&last, compiled("10.0.0.7"));
    assert!(!put(&first, &last).expect("publish").whole);
    drop(first);
    let second = Dataplane::start(&place.config()).expect("second start");
    assert!(holds(&second, &last), "as the kernel has it");
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
