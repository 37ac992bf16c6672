//! What a patch makes is what a compile gives, and what did not change is the same memory.

mod world;

use std::{collections::HashMap, fmt::Debug, sync::Arc};

use proptest::prelude::*;
use weft_policy::{
    Acceleration, Allocations, CompileInput, Compiled, Network, Protocol, Shared, Snapshot, Store, compile, patch,
};

use self::world::{World, edit, mesh};
use crate::support;

/// All that a compiler says, as text.
fn everything(compiled: &Compiled) -> Vec<String> {
    let Snapshot {
        generation,
        services,
        workloads,
        accounts,
        identities,
        access,
        outbound_default,
        outbound_audit,
        network,
        classes,
        rules,
        adapters,
        statuses,
        by_vip,
        by_endpoint,
        by_cgroup,
        by_address,
        guards,
        listeners,
    } = &compiled.snapshot;
    let Network { isolation, ranges } = &**network;
    vec![
        format!("generation {generation}, outbound {outbound_default:?} {outbound_audit}"),
        format!("services {services:#?}"),
        format!("workloads {workloads:#?}"),
        format!("accounts {accounts:#?}"),
        format!("identities {}", sorted(identities)),
        format!("access {}", sorted(access)),
        format!("isolation {}", sorted(isolation)),
        format!("ranges {ranges:#?}"),
        format!("classes {classes:#?}"),
        format!("rules {}", sorted(rules)),
        format!("adapters {adapters:#?}"),
        format!("statuses {statuses:#?}"),
        format!("by_vip {}", sorted(by_vip)),
        format!("by_endpoint {by_endpoint:#?}"),
        format!("by_cgroup {}", sorted(by_cgroup)),
        format!("by_address {by_address:#?}"),
        format!("guards {guards:#?}"),
        format!("listeners {listeners:#?}"),
        format!("diagnostics {:#?}", compiled.diagnostics),
    ]
}

fn sorted<K: Debug, V: Debug>(map: &HashMap<K, V>) -> String {
    let mut lines: Vec<String> = map.iter().map(|entry| format!("{entry:?}")).collect();
    lines.sort();
    lines.join("\n")
}

/// Names of services and workloads that are other memory than before, though they say the same.
fn copied(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    let says = |what: &dyn Debug| format!("{what:?}");
    for ((name, old), (_, new)) in before.services.iter().zip(&after.services) {
        if says(old) == says(new) && !Arc::ptr_eq(old, new) {
            found.push(name.to_string());
        }
    }
    for (old, new) in before.workloads.iter().zip(&after.workloads) {
        if says(old) == says(new) && !Arc::ptr_eq(old, new) {
            found.push(new.name.to_string());
        }
    }
    found
}

proptest! {
    #[test]
    fn a_patch_is_what_a_compile_gives(mesh in mesh(), edits in prop::collection::vec(edit(), 1..12)) {
        let mut world = World::new(mesh);
        let mut allocations = Allocations::default();
        let mut before = world.compile(&mut allocations);
        for edit in edits {
            let plain = world.mesh.is_plain(&edit);
            world.edit(&edit);
            let mut after = allocations.clone();
            let compiled = world.compile(&mut after);
            let Some(patched) = patch(&before, &world.input()) else {
                prop_assert!(!plain, "{edit:?} is compiled");
                (before, allocations) = (compiled, after);
                continue;
            };
            prop_assert_eq!(&after, &allocations, "a patch allocates nothing");
            for (patched, compiled) in everything(&patched).iter().zip(&everything(&compiled)) {
                prop_assert_eq!(patched, compiled);
            }
            prop_assert_eq!(copied(&before.snapshot, &patched.snapshot), Vec::<String>::new());
            before = patched;
        }
    }
}

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                        spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\n\
                        apiVersion: v1\nkind: Service\nmetadata: {name: db}\n\
                        spec: {selector: {app: db}, ports: [{port: 5432}]}\n";

fn workload(name: &str, spec: &str) -> String {
    let app = name.split('-').next().unwrap_or(name);
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{{spec}}}\n"
    )
}

/// Two services with two workloads each, every object in a file of its own; and what they compile to.
fn small() -> (Store, Allocations, Compiled) {
    let mut store = Store::default();
    store.apply_file("services", SERVICES.as_bytes());
    for (name, address) in [
        ("web-1", "10.0.0.1"),
        ("web-2", "10.0.0.2"),
        ("db-1", "10.0.0.3"),
        ("db-2", "10.0.0.4"),
    ] {
        store.apply_file(name, workload(name, &format!("address: {address}")).as_bytes());
    }
    let mut allocations = Allocations::default();
    let compiled = support::compile_with(&store, &[], &mut allocations);
    (store, allocations, compiled)
}

fn input(store: &Store) -> CompileInput<'_> {
    CompileInput {
        generation: 2,
        ..CompileInput::of(store)
    }
}

fn endpoints(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let service = snapshot.service("default", service).expect("a service");
    let ports = service.ports.iter();
    ports
        .flat_map(|port| &port.endpoints)
        .map(|endpoint| format!("{} {}", endpoint.address, endpoint.workload))
        .collect()
}

#[test]
fn an_address_that_changes_leaves_all_else_in_its_place() {
    let (mut store, _, before) = small();
    store.apply_file("web-1", workload("web-1", "address: 10.0.0.9").as_bytes());
    let after = patch(&before, &input(&store)).expect("a patch").snapshot;
    let before = before.snapshot;
    assert_eq!(after.generation, 2);
    assert_eq!(
        endpoints(&after, "web"),
        ["10.0.0.9:8080 default/web-1", "10.0.0.2:8080 default/web-2"]
    );
    let owner = |address: &str| after.by_endpoint.get(&(address.parse().unwrap(), Protocol::Tcp));
    assert!(owner("10.0.0.1:8080").is_none());
    assert_eq!(owner("10.0.0.9:8080").expect("an owner").service.name.as_ref(), "web");
    let class_of = |address: &str| after.by_address.get(&address.parse().unwrap());
    assert_eq!(
        (class_of("10.0.0.1"), class_of("10.0.0.9")),
        (None, class_of("10.0.0.2"))
    );

    let same = |name| {
        Arc::ptr_eq(
            before.service("default", name).unwrap(),
            after.service("default", name).unwrap(),
        )
    };
    assert_eq!((same("web"), same("db")), (false, true));
    let changed = before
        .workloads
        .iter()
        .zip(&after.workloads)
        .filter(|(old, new)| !Arc::ptr_eq(old, new));
    let changed: Vec<&str> = changed.map(|(_, new)| &*new.name).collect();
    assert_eq!(changed, ["default/web-1"]);
    assert!(Shared::ptr_eq(&before.statuses, &after.statuses));
    assert!(Shared::ptr_eq(&before.access, &after.access));
    assert!(Shared::ptr_eq(&before.by_vip, &after.by_vip));
}

#[test]
fn several_at_once_and_one_after_another_are_patched() {
    let (mut store, mut allocations, mut before) = small();
    for addresses in [
        ["10.0.1.1", "10.0.1.2"],
        ["10.0.2.1", "10.0.2.2"],
        ["10.0.0.1", "10.0.0.2"],
    ] {
        for (name, address) in ["web-1", "web-2"].into_iter().zip(addresses) {
            store.apply_file(name, workload(name, &format!("address: {address}")).as_bytes());
        }
        let patched = patch(&before, &input(&store)).expect("a patch");
        let compiled = compile(&input(&store), &mut allocations);
        assert_eq!(everything(&patched), everything(&compiled));
        before = patched;
    }
}

#[test]
fn a_line_more_in_the_file_of_many_is_a_patch_of_none() {
    let (mut store, mut allocations, _) = small();
    let names = ["web-1", "web-2"];
    for name in names {
        store.remove_file(name);
    }
    let all = names
        .map(|name| workload(name, &format!("address: 10.0.3.{}", &name[4..])))
        .join("---\n");
    store.apply_file("all", all.as_bytes());
    let before = compile(&input(&store), &mut allocations);
    store.apply_file("all", format!("# more\n{all}").as_bytes());
    let after = patch(&before, &input(&store)).expect("a patch");
    assert_eq!(endpoints(&after.snapshot, "web"), endpoints(&before.snapshot, "web"));
    assert!(copied(&before.snapshot, &after.snapshot).is_empty());
}

/// Whoever reads a folder again applies what is refused there again, too.
#[test]
fn a_refused_file_that_is_read_again_stops_no_patch() {
    let split = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: NAME}\n\
                 spec: {service: web, backends: [{service: db, weight: 1}]}\n";
    for (what, text) in [
        ("not YAML", "a: [".to_owned()),
        ("a mistake", workload("web-3", "address: nowhere")),
        (
            "another kind",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n".to_owned(),
        ),
        ("an object of another file", workload("web-2", "address: 10.0.0.7")),
        ("a claim of another object", split.replace("NAME", "second")),
    ] {
        let (mut store, mut allocations, _) = small();
        store.apply_file("split", split.replace("NAME", "first").as_bytes());
        assert!(!store.apply_file("refused", text.as_bytes()).is_empty(), "{what}");
        let before = compile(&input(&store), &mut allocations);
        store.apply_file("web-1", workload("web-1", "address: 10.0.0.9").as_bytes());
        assert!(!store.apply_file("refused", text.as_bytes()).is_empty(), "{what}");
        let patched = patch(&before, &input(&store)).expect(what);
        let compiled = compile(&input(&store), &mut allocations);
        assert_eq!(everything(&patched), everything(&compiled), "{what}");
    }
}

#[test]
fn what_more_than_one_address_speaks_of_is_compiled() {
    for (what, name, spec) in [
        ("the address of another", "web-1", "address: 10.0.0.4"),
        ("the loopback", "web-1", "address: 127.0.0.1"),
        ("another account", "web-1", "address: 10.0.0.9, serviceAccount: other"),
        (
            "another port",
            "web-1",
            "address: 10.0.0.9, ports: [{port: 80, targetPort: 81}]",
        ),
        ("a capture", "web-1", "address: 10.0.0.9, capture: {cgroup: pods/web}"),
        ("a mistake", "web-1", "address: nowhere"),
        ("a new one", "web-3", "address: 10.0.0.9"),
    ] {
        let (mut store, _, before) = small();
        store.apply_file(name, workload(name, spec).as_bytes());
        assert!(patch(&before, &input(&store)).is_none(), "{what}");
    }
    let (mut store, _, before) = small();
    store.remove_file("web-1");
    assert!(patch(&before, &input(&store)).is_none(), "one that is gone");
    let (store, _, before) = small();
    let running = [support::workload("default/web/1", &[], 7)];
    let more = CompileInput {
        workloads: &running,
        ..input(&store)
    };
    assert!(patch(&before, &more).is_none(), "one that runs here");
    let other = CompileInput {
        acceleration: Acceleration::Full,
        ..input(&store)
    };
    assert!(patch(&before, &other).is_none(), "another default");
    assert!(patch(&before, &input(&store)).is_some(), "nothing");
}

#[test]
fn an_address_that_two_had_is_compiled_when_one_of_them_leaves_it() {
    let (mut store, mut allocations, _) = small();
    store.apply_file("web-2", workload("web-2", "address: 10.0.0.1").as_bytes());
    let before = compile(&input(&store), &mut allocations);
    store.apply_file("web-1", workload("web-1", "address: 10.0.0.9").as_bytes());
    assert!(patch(&before, &input(&store)).is_none());
}
