use std::collections::BTreeMap;

use weft_policy::Severity;

use super::*;

fn object(kind: &str, namespace: Option<&str>, name: &str) -> ObjectRef {
    ObjectRef {
        kind: kind.to_owned().into(),
        namespace: namespace.map(Into::into),
        name: name.to_owned(),
    }
}

fn open() -> (tempfile::TempDir, AppliedObjects) {
    let root = tempfile::tempdir().unwrap();
    let applied = AppliedObjects::open(root.path().join("state/applied")).unwrap();
    (root, applied)
}

#[test]
fn what_was_put_is_listed_and_read_also_after_a_restart() {
    let (_root, applied) = open();
    let (mesh, web) = (
        object("MeshConfig", None, "mesh"),
        object("Service", Some("shop"), "web.v1"),
    );
    applied.put(&web, b"one").unwrap();
    applied.put(&mesh, b"two").unwrap();
    applied.put(&web, b"three").unwrap();
    let again = AppliedObjects::open(applied.folder()).unwrap();
    let files: Vec<_> = again
        .list()
        .unwrap()
        .into_iter()
        .map(|one| (one.path.file_name().unwrap().to_str().unwrap().to_owned(), one.object))
        .collect();
    assert_eq!(
        files,
        [
            ("_MeshConfig_mesh.yaml".to_owned(), mesh.clone()),
            ("shop_Service_web.v1.yaml".to_owned(), web.clone())
        ]
    );
    assert_eq!(again.get(&web).unwrap().unwrap(), b"three");
    assert_eq!(again.get(&mesh).unwrap().unwrap(), b"two");
}

#[test]
fn a_deleted_object_is_gone_and_deleting_it_again_is_no_error() {
    let (_root, applied) = open();
    let web = object("Service", Some("shop"), "web");
    let path = applied.put(&web, b"one").unwrap();
    assert_eq!(applied.delete(&web).unwrap(), Some(path));
    assert_eq!(applied.delete(&web).unwrap(), None);
    assert_eq!(applied.get(&web).unwrap(), None);
    assert_eq!(applied.list().unwrap(), []);
}

#[test]
fn names_cannot_leave_the_folder_or_meet() {
    let (_root, applied) = open();
    let long = "n".repeat(MAX_FILE_NAME);
    for bad in [
        object("Service", Some("shop"), "../../etc/passwd"),
        object("Service", Some(".."), "web"),
        object("Service", Some(""), "web"),
        object("Service", Some("a_b"), "web"),
        object("Ser/vice", None, "web"),
        object("Service", None, ""),
        object("Service", None, "a\0b"),
        object("Service", None, &long),
    ] {
        assert!(
            matches!(applied.put(&bad, b""), Err(SourceError::Name { .. })),
            "{bad:?}"
        );
    }
    assert_eq!(fs::read_dir(applied.folder()).unwrap().count(), 0);
    let longest = "n".repeat(MAX_FILE_NAME - "shop_Service_.yaml".len());
    applied.put(&object("Service", Some("shop"), &longest), b"").unwrap();
}

#[test]
fn a_half_written_file_is_cleared_at_start_and_foreign_files_are_left_alone() {
    let (_root, applied) = open();
    for name in [".pending-77", "notes.txt", "a_b_c_d.yaml", "x.yaml", "_.._.yaml"] {
        fs::write(applied.folder().join(name), "?").unwrap();
    }
    let again = AppliedObjects::open(applied.folder()).unwrap();
    assert_eq!(again.list().unwrap(), []);
    assert_eq!(fs::read_dir(again.folder()).unwrap().count(), 4);
}

#[test]
fn files_and_folder_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let (_root, applied) = open();
    let path = applied.put(&object("Service", Some("shop"), "web"), b"one").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(applied.folder()), mode(&path)), (0o700, 0o600));
}

#[test]
fn a_too_large_object_leaves_the_older_version() {
    let (_root, applied) = open();
    let web = object("Service", Some("shop"), "web");
    applied.put(&web, b"one").unwrap();
    let error = applied.put(&web, &vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error}");
    assert_eq!(applied.get(&web).unwrap().unwrap(), b"one");
}

#[test]
fn a_failed_write_leaves_the_older_version_and_nothing_else() {
    let (_root, applied) = open();
    let web = object("Service", Some("shop"), "web");
    // A folder stands where the file should go: the rename fails.
    let path = applied.path(&web).unwrap();
    fs::create_dir(&path).unwrap();
    let error = applied.put(&web, b"one").unwrap_err();
    assert_eq!(error.to_string(), format!("store the object `{}`", path.display()));
    assert_eq!(applied.names().unwrap(), ["shop_Service_web.yaml"]);
}

#[test]
fn load_hands_every_object_to_the_sink_and_tells_what_it_cannot_read() {
    #[derive(Default)]
    struct Recorder(BTreeMap<String, Vec<u8>>);
    impl Sink for Recorder {
        fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic> {
            self.0.insert(path.to_owned(), bytes.to_owned());
            vec![Diagnostic {
                severity: Severity::Warning,
                file: path.to_owned(),
                line: 1,
                column: 1,
                object: None,
                field: String::new(),
                reason: "odd".to_owned(),
                instead: None,
            }]
        }
        fn remove_file(&mut self, _path: &str) {}
        fn files(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }
    }
    let (_root, applied) = open();
    let path = applied.put(&object("Service", Some("shop"), "web"), b"one").unwrap();
    fs::create_dir(applied.path(&object("Service", Some("shop"), "broken")).unwrap()).unwrap();
    let mut sink = Recorder::default();
    let (diagnostics, errors) = applied.load(&mut sink).unwrap();
    assert_eq!(sink.0, BTreeMap::from([(path.display().to_string(), b"one".to_vec())]));
    assert_eq!((diagnostics.len(), errors.len()), (1, 1));
}
