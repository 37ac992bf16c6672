//! `examples/` has one of every kind, and what it shows works.

use std::{collections::BTreeSet, fs, path::Path};

use weft_policy::{Allocations, Diagnostic, ObjectState, Store, resource::kind_names};

use crate::support;

fn examples() -> Store {
    let mut store = Store::with_adapters(&support::Known);
    for path in support::yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let found = store.apply_file(&name, &fs::read(&path).expect("a readable example"));
        assert_eq!(
            found.iter().map(Diagnostic::to_string).collect::<Vec<_>>(),
            Vec::<String>::new()
        );
    }
    store
}

#[test]
fn examples_parse_without_a_word() {
    examples();
}

#[test]
fn there_is_an_example_of_every_kind() {
    let store = examples();
    let shown: BTreeSet<&str> = store.objects().map(|object| &*object.id.kind).collect();
    assert_eq!(shown, kind_names().collect());
}

#[test]
fn an_object_s_text_gives_the_object_again() {
    let store = examples();
    let mut again = Store::with_adapters(&support::Known);
    for (number, object) in store.objects().enumerate() {
        assert_eq!(
            again.apply_file(&number.to_string(), object.text.as_bytes()),
            Vec::new()
        );
        let found = again.object(&object.id).expect("the object");
        assert_eq!(
            (&found.id, &found.labels, &found.text),
            (&object.id, &object.labels, &object.text)
        );
    }
}

#[test]
fn the_access_examples_are_enforced() {
    let store = examples();
    let running = [
        support::workload("shop/web/1", &["port=80:8080/tcp", "listen=0.0.0.0:8080/tcp"], 1),
        support::workload("shop/client/1", &[], 2),
    ];
    let compiled = support::compile_with(&store, &running, &mut Allocations::default());
    let targets: Vec<_> = compiled
        .snapshot
        .statuses
        .iter()
        .filter(|s| s.object.kind == "TrafficTarget")
        .collect();
    assert_eq!(targets.len(), 2);
    assert!(
        targets.iter().all(|status| status.state == ObjectState::Accepted),
        "{targets:?}"
    );
}

/// They are looked up by it.
#[test]
fn statuses_are_in_the_order_of_their_objects_each_once() {
    let compiled = support::compile_with(&examples(), &[], &mut Allocations::default());
    let statuses = compiled.snapshot.statuses.iter();
    let objects: Vec<_> = statuses.map(|status| &status.object).collect();
    assert!(objects.len() > 1 && objects.is_sorted_by(|a, b| a < b), "{objects:?}");
}
