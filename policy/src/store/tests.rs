use super::*;

fn split(name: &str, root: &str, weight: u32) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: {name}}}\n\
         spec: {{service: {root}, backends: [{{service: v1, weight: {weight}}}]}}\n---\n"
    )
}

fn service(name: &str, port: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n")
}

fn apply(store: &mut Store, path: &str, text: &str) -> Vec<String> {
    store
        .apply_file(path, text.as_bytes())
        .iter()
        .map(Diagnostic::to_string)
        .collect()
}

/// Name and file of everything in force, with ports of services and roots of splits.
fn in_force(store: &Store) -> Vec<String> {
    store
        .objects()
        .map(|object| {
            let what = match &object.spec {
                resource::Spec::Service(spec) => spec.ports.iter().map(|p| p.port.to_string()).collect(),
                resource::Spec::TrafficSplit(spec) => spec.service.value.clone(),
                _ => String::new(),
            };
            format!("{}@{} {what}", object.id.name, object.location.file)
        })
        .collect()
}

#[test]
fn a_refused_object_keeps_its_last_good_version_and_the_others_apply() {
    let mut store = Store::default();
    assert!(apply(&mut store, "f", &(service("a", "80") + &service("b", "80"))).is_empty());
    let found = apply(&mut store, "f", &(service("a", "none") + &service("b", "81")));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f:4:"), "{found:?}");
    assert_eq!(in_force(&store), ["a@f 80", "b@f 81"]);
    let refusals: Vec<_> = store.refusals().collect();
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0].object.name, "a");
    assert!(refusals[0].in_force.is_some());
    assert!(apply(&mut store, "f", &service("a", "82")).is_empty());
    assert_eq!(in_force(&store), ["a@f 82"]);
}

#[test]
fn an_unparseable_file_changes_nothing_and_a_removed_one_takes_its_objects() {
    let mut store = Store::default();
    apply(&mut store, "f", &service("a", "80"));
    assert_eq!(apply(&mut store, "f", "a: [").len(), 1);
    assert_eq!(in_force(&store), ["a@f 80"]);
    assert_eq!(store.refusals().count(), 1);
    assert_eq!(store.apply_file("f", &[0xff, 0x00, 0x12]).len(), 1);
    assert_eq!(in_force(&store), ["a@f 80"]);
    store.remove_file("f");
    assert_eq!(in_force(&store), Vec::<String>::new());
    assert_eq!(store.refusals().count(), 0);
}

#[test]
fn an_object_whose_kind_or_name_was_misspelt_stays() {
    let mut store = Store::default();
    apply(&mut store, "f", &(service("a", "80") + &service("b", "80")));
    assert_eq!(
        apply(
            &mut store,
            "f",
            &(service("a", "80") + &service("b", "80").replace("Service", "Servcie"))
        )
        .len(),
        1
    );
    assert_eq!(in_force(&store), ["a@f 80", "b@f 80"]);
    assert_eq!(
        apply(&mut store, "f", &(service("a", "80") + &service("B_", "80"))).len(),
        1
    );
    assert_eq!(in_force(&store), ["a@f 80", "b@f 80"]);
    // A document that cannot have been `b`: `b` was removed.
    apply(
        &mut store,
        "f",
        &(service("a", "80") + &service("c", "80").replace("Service", "Servcie")),
    );
    assert_eq!(in_force(&store), ["a@f 80"]);
}

#[test]
fn a_document_of_a_foreign_kind_keeps_no_object_of_its_name() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n";
    let target = "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: web}\n\
                  spec:\n  destination: {kind: ServiceAccount, name: web}\n\
                  \x20 sources: [{kind: ServiceAccount, name: client}]\n\
                  \x20 rules: [{kind: TCPRoute, name: any}]\n---\n";
    let both = ["web@f 80", "web@f "];
    let mut store = Store::default();
    let with = |target: &str| deployment.to_owned() + &service("web", "80") + target;
    assert_eq!(apply(&mut store, "f", &with(target)).len(), 1);
    assert_eq!(in_force(&store), both);
    for misspelt in ["TraficTarget", "\"\"", "7"] {
        let misspelt = with(&target.replace("TrafficTarget", misspelt));
        assert_eq!(apply(&mut store, "f", &misspelt).len(), 2, "{misspelt}");
        assert_eq!(in_force(&store), both, "{misspelt}");
    }
    assert_eq!(apply(&mut store, "f", &with("")).len(), 1);
    assert_eq!(in_force(&store), ["web@f 80"]);
}

#[test]
fn the_same_object_twice_names_both_places_and_the_first_stays() {
    let mut store = Store::default();
    apply(&mut store, "b", &service("a", "80"));
    let found = apply(&mut store, "a", &service("a", "81"));
    assert_eq!(
        found,
        ["a:1:1: error: Service default/a: the same object is in b:1:1 already; \
          remove one of the two; the first one stays in force"]
    );
    assert_eq!(in_force(&store), ["a@b 80"]);
    store.remove_file("b");
    assert_eq!(in_force(&store), ["a@a 81"]);
    assert_eq!(store.diagnostics().count(), 0);

    let found = apply(&mut store, "a", &(service("a", "81") + &service("a", "82")));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("is in a:1:1 already"), "{found:?}");
    assert_eq!(in_force(&store), ["a@a 81"]);
}

#[test]
fn a_second_split_of_a_root_waits_until_the_first_is_gone() {
    let mut store = Store::default();
    apply(&mut store, "1", &split("z", "web", 1));
    let found = apply(&mut store, "2", &split("a", "web", 1));
    assert!(
        found[0].contains("the split of service default/web is TrafficSplit default/z already, in 1:1:1"),
        "{found:?}"
    );
    assert_eq!(in_force(&store), ["z@1 web"]);
    assert_eq!(
        store.refusals().next().map(|r| r.object.name.clone()),
        Some("a".to_owned())
    );
    store.remove_file("1");
    assert_eq!(in_force(&store), ["a@2 web"]);
    assert_eq!(store.diagnostics().count(), 0);
}

#[test]
fn in_one_file_the_first_split_of_a_root_wins() {
    let mut store = Store::default();
    assert_eq!(
        apply(&mut store, "1", &(split("z", "web", 1) + &split("a", "web", 1))).len(),
        1
    );
    assert_eq!(in_force(&store), ["z@1 web"]);
}

#[test]
fn a_split_that_moves_to_a_taken_root_keeps_its_last_good_version() {
    let mut store = Store::default();
    apply(&mut store, "1", &(split("a", "web", 1) + &split("b", "api", 1)));
    let found = apply(
        &mut store,
        "1",
        &(split("a", "api", 1) + &split("b", "api", 1) + &split("c", "web", 1)),
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(in_force(&store), ["a@1 web", "b@1 api"]);
}

#[test]
fn splits_may_exchange_their_roots_in_one_change() {
    let mut store = Store::default();
    apply(&mut store, "1", &(split("a", "web", 1) + &split("b", "api", 1)));
    assert_eq!(
        apply(&mut store, "1", &(split("a", "api", 1) + &split("b", "web", 1))),
        Vec::<String>::new()
    );
    assert_eq!(in_force(&store), ["a@1 api", "b@1 web"]);
    assert_eq!(apply(&mut store, "1", &(split("b", "api", 1))), Vec::<String>::new());
    assert_eq!(in_force(&store), ["b@1 api"]);
    store.remove_file("1");
    assert!(store.claims.is_empty());
}

#[test]
fn a_moved_object_is_taken_over_by_its_new_file() {
    let mut store = Store::default();
    apply(&mut store, "1", &service("a", "80"));
    assert_eq!(apply(&mut store, "2", &service("a", "81")).len(), 1);
    apply(&mut store, "1", "");
    assert_eq!(in_force(&store), ["a@2 81"]);
}

#[test]
fn splits_of_two_files_may_exchange_their_roots_one_after_the_other() {
    let mut store = Store::default();
    apply(&mut store, "1", &split("a", "web", 1));
    apply(&mut store, "2", &split("b", "api", 1));
    assert_eq!(apply(&mut store, "1", &split("a", "api", 1)).len(), 1);
    assert_eq!(apply(&mut store, "2", &split("b", "web", 1)), Vec::<String>::new());
    assert_eq!(in_force(&store), ["a@1 api", "b@2 web"]);
    assert!(store.waiting.is_empty());
}

fn workload(name: &str, address: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{address: {address}}}\n---\n"
    )
}

/// Name, line before and line now of what changed since.
fn changed(store: &Store, revision: u64) -> Option<Vec<(String, u32, u32)>> {
    let changes = store.changed_since(revision)?.into_iter();
    let line = |object: &Object| object.location.line;
    Some(
        changes
            .map(|change| (change.now.id.name.clone(), line(&change.before), line(&change.now)))
            .collect(),
    )
}

#[test]
fn of_an_object_that_changed_twice_the_version_before_the_first_change_is_told() {
    let mut store = Store::default();
    apply(
        &mut store,
        "f",
        &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")),
    );
    let first = store.revision();
    assert_eq!(changed(&store, first), Some(Vec::new()));
    assert_eq!(changed(&store, first - 1), None, "they came with it");
    apply(
        &mut store,
        "f",
        &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.3")),
    );
    let second = store.revision();
    assert_eq!(changed(&store, first), Some(vec![("b".to_owned(), 6, 6)]));
    apply(
        &mut store,
        "f",
        &("# b\n".to_owned() + &workload("a", "10.0.0.1") + &workload("b", "10.0.0.3")),
    );
    let both = vec![("a".to_owned(), 1, 2), ("b".to_owned(), 6, 7)];
    assert_eq!(changed(&store, first), Some(both.clone()));
    assert_eq!(changed(&store, second), Some(both));
    assert_eq!(changed(&store, store.revision() + 1), Some(Vec::new()));
}

#[test]
fn an_object_that_is_read_again_as_it_was_is_the_same_memory() {
    let mut store = Store::default();
    let first = |store: &Store| store.objects().next().cloned().unwrap();
    apply(
        &mut store,
        "f",
        &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")),
    );
    let (before, revision) = (first(&store), store.revision());
    apply(
        &mut store,
        "f",
        &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.3")),
    );
    assert!(Arc::ptr_eq(&before, &first(&store)));
    apply(&mut store, "f", "a: [");
    apply(&mut store, "f", &workload("a", "10.0.0.1"));
    assert!(Arc::ptr_eq(&before, &first(&store)), "also after a mistake");
    assert_eq!(changed(&store, revision), None);
}

#[test]
fn what_is_not_told_by_versions_cuts_the_changes() {
    let steps: [(&str, &str, String); 8] = [
        ("one comes", "new", workload("c", "10.0.0.9")),
        ("one goes", "f", workload("a", "10.0.0.1")),
        (
            "one is refused",
            "f",
            workload("a", "10.0.0.1") + &workload("b", "none"),
        ),
        ("a file cannot be read", "f", "a: [".to_owned()),
        ("a second file has it", "g", workload("a", "10.0.0.1")),
        ("a claim is taken away", "mine", split("s", "other", 1)),
        ("one waits", "theirs", split("t", "web", 1)),
        ("one that waits changes", "waits", split("w", "web", 2)),
    ];
    for (what, file, text) in steps {
        let mut store = Store::default();
        apply(
            &mut store,
            "f",
            &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")),
        );
        apply(&mut store, "mine", &split("s", "web", 1));
        apply(&mut store, "waits", &split("w", "web", 1));
        let before = store.revision();
        assert_eq!(changed(&store, before), Some(Vec::new()), "{what}");
        apply(&mut store, file, &text);
        assert_eq!(changed(&store, before), None, "{what}");
        assert_eq!(changed(&store, store.revision()), Some(Vec::new()), "{what}");
        store.remove_file("f");
        assert_eq!(changed(&store, before + 1), None, "{what}");
    }
}

#[test]
fn a_log_of_changes_is_bounded_by_their_number_and_their_text() {
    let mut store = Store::default();
    let put = |store: &mut Store, address: usize, more: &str| {
        let address = format!("10.0.{}.{}", address / 256, address % 256);
        apply(store, "f", &(workload("a", &address) + more));
    };
    put(&mut store, 0, "");
    let first = store.revision();
    (1..=MAX_CHANGES).for_each(|address| put(&mut store, address, ""));
    assert_eq!(changed(&store, first).map(|found| found.len()), Some(1));
    put(&mut store, MAX_CHANGES + 1, "");
    assert_eq!(changed(&store, first), None);
    assert_eq!(changed(&store, first + 1).map(|found| found.len()), Some(1));

    let long = "# ".to_owned() + &"x".repeat(MAX_CHANGED_BYTES / 2) + "\n";
    let mut store = Store::default();
    put(&mut store, 0, "");
    let long = |store: &mut Store, address| {
        let address = format!("10.0.0.{address}");
        apply(store, "f", &(long.clone() + &workload("a", &address)));
    };
    (1..=3).for_each(|address| long(&mut store, address));
    let second = store.revision() - 1;
    assert_eq!(changed(&store, second - 1).map(|found| found.len()), None);
    assert_eq!(changed(&store, second).map(|found| found.len()), Some(1));
}

/// What the index says is what a look at all objects finds.
fn check_index(store: &Store) {
    let refused = store.holders.keys().filter(|key| {
        let slot = store.owner(key).and_then(|path| store.files.get(path)?.slots.get(key));
        slot.is_some_and(|slot| slot.refused) || store.waiting.contains(*key)
    });
    let refused: Vec<_> = refused.map(|key| key.id.clone()).collect();
    let told: Vec<_> = store.refusals().map(|refusal| refusal.object).collect();
    assert_eq!(told, refused);

    let captured = store
        .objects()
        .filter(|object| matches!(&object.spec, resource::Spec::Workload(spec) if spec.capture.is_some()));
    let captured: Vec<_> = captured.map(|object| object.id.clone()).collect();
    let known: Vec<_> = store.captured().map(|object| object.id.clone()).collect();
    assert_eq!(known, captured);

    let files: BTreeSet<&str> = store.objects().map(|object| &*object.location.file).collect();
    for file in files {
        let of_file = store.objects().filter(|object| &*object.location.file == file);
        let of_file: BTreeSet<_> = of_file.map(|object| object.id.clone()).collect();
        let found: BTreeSet<_> = store.objects_of(file).map(|object| object.id.clone()).collect();
        assert_eq!(found, of_file, "{file}");
    }

    let splits = store.objects().filter(|object| object.id.kind == "TrafficSplit");
    let splits: Vec<_> = splits.map(|object| object.id.clone()).collect();
    let found: Vec<_> = store
        .objects_of_kind(&resource::smi::TRAFFIC_SPLIT)
        .map(|object| object.id.clone())
        .collect();
    assert_eq!(found, splits);
}

#[test]
fn the_index_is_what_a_look_at_all_objects_finds() {
    let captured = "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {name: pod}\n\
                    spec: {capture: {cgroup: pods/a}}\n---\n";
    let plain = captured.replace("capture: {cgroup: pods/a}", "addresses: [192.0.2.1]");
    let bad = service("a", "none");
    let steps: [(&str, Option<String>); 16] = [
        ("1", Some(service("a", "80") + &split("a", "web", 1) + captured)),
        ("2", Some(service("a", "81") + &split("b", "web", 1))),
        ("1", Some(bad.clone() + &split("a", "web", 1) + &plain)),
        ("3", Some(captured.to_owned())),
        ("1", Some("a: [".to_owned())),
        ("1", Some(split("a", "api", 1))),
        ("3", Some(captured.to_owned())),
        ("2", Some(bad + &split("a", "web", 1))),
        ("4", Some(split("c", "web", 1))),
        ("1", Some(split("a", "web", 1))),
        ("1", None),
        ("2", None),
        ("4", Some(captured.to_owned())),
        ("3", None),
        ("4", Some(captured.replace("Workload", "Wrokload"))),
        ("4", None),
    ];
    let mut store = Store::default();
    for (path, text) in &steps {
        match text {
            Some(text) => _ = apply(&mut store, path, text),
            None => store.remove_file(path),
        }
        check_index(&store);
    }
    assert!(store.objects().next().is_none());
}

/// The split `a` of file 1 wants a root that is taken, under a name that file 2 has by then: what is in force is that of file 1.
#[test]
fn what_a_file_has_no_more_is_found_under_it_as_long_as_it_is_in_force() {
    let mut store = Store::default();
    apply(&mut store, "1", &split("a", "web", 1));
    apply(&mut store, "2", &(split("b", "api", 1) + &split("a", "api", 1)));
    apply(&mut store, "1", "");
    assert_eq!(in_force(&store), ["a@1 web", "b@2 api"]);
    assert_eq!(store.objects_of("1").count(), 1);
    check_index(&store);
}

#[test]
fn objects_of_several_files_share_equal_labels() {
    let workload = |name: &str, app: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
             spec: {{address: 10.0.0.1}}\n"
        )
    };
    let mut store = Store::default();
    for (path, app) in [("a", "web"), ("b", "web"), ("c", "api")] {
        assert!(apply(&mut store, path, &workload(path, app)).is_empty());
    }
    let labels: Vec<&str> = store.objects().filter_map(|object| object.labels.get("app")).collect();
    assert_eq!(labels, ["web", "web", "api"]);
    assert!(std::ptr::eq(labels[0], labels[1]));
}

#[test]
fn a_file_that_is_read_again_brings_no_second_name_of_an_object() {
    let mut store = Store::default();
    for port in ["80", "81", "none", "82"] {
        apply(&mut store, "f", &service("a", port));
        let (key, object) = store.in_force.iter().next().unwrap();
        let of_file = store.files["f"].slots.keys().next().unwrap();
        for id in [&object.id, &of_file.id] {
            assert!(Arc::ptr_eq(id, &key.id), "{port}");
        }
    }
}
