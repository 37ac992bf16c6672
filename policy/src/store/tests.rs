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
