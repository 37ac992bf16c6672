//! Resources to snapshot or diagnostics, as files: `cases/KIND/CASE.yaml` and `CASE.expected` beside it.
//!
//! `WEFT_BLESS=1 cargo test -p weft-policy --test all` rewrites the expected side; read the difference before you keep it.

use std::{fs, path::Path};

use weft_policy::{Allocations, Store};

use crate::support;

#[test]
fn every_case_gives_what_is_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let bless = std::env::var_os("WEFT_BLESS").is_some();
    let mut wrong = Vec::new();
    let files = support::yaml_files(&folder);
    assert!(!files.is_empty());
    for path in files {
        let bytes = fs::read(&path).expect("a readable case");
        let script = support::script(&String::from_utf8_lossy(&bytes));
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let mut store = Store::with_adapters(&support::Known);
        let diagnostics = store.apply_file(&name, &bytes);
        let compiled =
            support::compile_captured(&store, &script.workloads, &script.captured, &mut Allocations::default());
        let found = support::render::case(&diagnostics, &compiled, &script);
        let expected_path = path.with_extension("expected");
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if found == expected {
            continue;
        }
        if bless {
            fs::write(&expected_path, found).expect("a writable folder");
        } else {
            wrong.push(format!(
                "=== {}\n--- expected\n{expected}\n--- found\n{found}",
                path.display()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nWEFT_BLESS=1 rewrites the expected side",
        wrong.join("\n")
    );
}
