//! Bytes that nobody meant: no panic, no unbounded answer, whatever is in a file.

use std::{fs, path::Path};

use proptest::prelude::*;
use weft_policy::{Allocations, Store};

use crate::support;

/// The store keeps 1000 messages of a file, and one that counts the rest; each object adds at most one.
const MAX_MESSAGES: usize = 1001;

fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = support::yaml_files(&root.join("examples"));
    paths.extend(support::yaml_files(&root.join("tests/cases")));
    paths
        .iter()
        .map(|path| fs::read(path).expect("a readable file"))
        .collect()
}

/// Everything that is done with a file: apply it, compile, ask for all that can be asked.
fn swallow(store: &mut Store, path: &str, bytes: &[u8]) {
    let found = store.apply_file(path, bytes);
    assert!(found.len() <= MAX_MESSAGES + store.objects().count());
    for diagnostic in &found {
        assert!(diagnostic.to_string().len() < 4096, "{diagnostic}");
    }
    let compiled = support::compile_with(store, &[], &mut Allocations::default());
    assert_eq!(compiled.snapshot.generation, 1);
    let _ = (store.refusals().count(), store.diagnostics().count());
}

/// One careless edit.
#[derive(Debug, Clone)]
enum Edit {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    Repeat(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = prop_oneof![
        any::<Vec<u8>>(),
        "[-:{}\\[\\]&*!|>'\"%@`#,? \n\t]{1,8}".prop_map(String::into_bytes),
        "&a |\\*a |<<: |!!str |---\n|\\.\\.\\.\n".prop_map(String::into_bytes),
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<usize>(), bytes).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<usize>(), 0..40usize).prop_map(|(at, n)| Edit::Delete(at, n)),
        (any::<usize>(), 0..40usize, 0..20usize).prop_map(|(at, n, times)| Edit::Repeat(at, n, times)),
    ]
}

fn apply(edit: &Edit, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    let place = |at: usize, n: usize| {
        let at = at % (len + 1);
        (at, (at + n).min(len))
    };
    match edit {
        Edit::Set(at, byte) if len > 0 => bytes[at % len] = *byte,
        Edit::Set(..) => {}
        Edit::Insert(at, more) => {
            let (at, _) = place(*at, 0);
            bytes.splice(at..at, more.iter().copied());
        }
        Edit::Delete(at, n) => {
            let (from, to) = place(*at, *n);
            bytes.drain(from..to);
        }
        Edit::Repeat(at, n, times) => {
            let (from, to) = place(*at, *n);
            let part = bytes[from..to].repeat(*times);
            bytes.splice(to..to, part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        swallow(&mut Store::default(), "random", &bytes);
    }

    #[test]
    fn random_yaml_like_text_never_panics(text in "[-a-c:{}\\[\\]&*!|>'\"%@`#,? \n\t]{0,300}") {
        swallow(&mut Store::default(), "text", text.as_bytes());
    }

    #[test]
    fn edited_resources_never_panic_and_refusals_never_take_the_good_ones(
        seed in any::<prop::sample::Index>(),
        edits in prop::collection::vec(edit(), 1..6),
    ) {
        let seeds = seeds();
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        let mut store = Store::default();
        swallow(&mut store, "file", &bytes);
        let before = store.objects().count();
        for edit in &edits {
            apply(edit, &mut bytes);
        }
        swallow(&mut store, "file", &bytes);
        // A file that cannot be read as a whole changes nothing.
        if store.apply_file("file", b"a: [").len() == 1 {
            swallow(&mut store, "file", b"\0");
        }
        prop_assert!(before <= 100 && store.objects().count() <= 1000);
        store.remove_file("file");
        prop_assert_eq!(store.objects().count(), 0);
    }
}

#[test]
fn files_made_to_be_expensive_are_refused_or_cheap() {
    /// An eighth of the largest file: the cost grows with the size, as was measured.
    const SIZE: usize = 512 << 10;
    let line = |text: &str| text.repeat(SIZE / text.len());
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: x}]}\n---\n";
    for text in [
        line("["),
        line("{"),
        line("- "),
        line("? "),
        line("a: "),
        line("&a "),
        line("*a "),
        line("!a "),
        line("\""),
        line("'"),
        line("|\n"),
        line("%\n"),
        line("#\n"),
        line("\n"),
        line(" "),
        line("x"),
        line("---\n"),
        line("- a\n"),
        line("a:\n"),
        line("[a,"),
        line("{a: b,"),
        line("\"\\u0041"),
        line(service),
        (0..100_000).map(|i| format!("k{i}: {i}\n")).collect(),
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {}}}\n", line("a")),
        line("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, oops: 1}\n---\n"),
        line("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n---\n"),
        (0..3000).map(second_split).collect(),
        params(&format!(
            "? {}\n    : [{}1e999]",
            "k".repeat(SIZE / 4),
            "1, ".repeat(3000)
        )),
        params(&("{".to_owned() + &nested(&"k".repeat(1000), 50) + "}")),
        service.replace(
            "port: x}]",
            &format!("port: 80}}], selector: {{? {} : 1}}", "k".repeat(SIZE)),
        ),
    ] {
        swallow(&mut Store::default(), "expensive", text.as_bytes());
    }
}

fn params(text: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: a}}\n\
         spec:\n  backend: native\n  native: denier\n  target: all\n  params:\n    {text}\n"
    )
}

/// Maps in each other, around what is no number.
fn nested(key: &str, levels: usize) -> String {
    format!("{key}: {{").repeat(levels) + "a: 1e999" + &"}".repeat(levels)
}

fn second_split(i: usize) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: s{i}}}\n\
         spec: {{service: web, backends: [{{service: a, weight: 1}}]}}\n---\n"
    )
}
