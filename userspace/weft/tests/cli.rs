//! The built binary: usage, exit codes, and what needs no daemon.

use std::{
    path::Path,
    process::{Command, Output},
};

fn weft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn exits(args: &[&str], code: i32, says: &str) {
    let output = weft(args);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(says), "{args:?}: expected {says:?} in: {said}");
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("plain path").to_owned()
}

const GOOD: &str =
    "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec:\n  accessDefault: deny\n";

#[test]
fn wrong_usage_exits_2() {
    exits(&[], 2, "Usage: weft");
    exits(&["frobnicate"], 2, "unrecognized subcommand");
    exits(&["run", "--service", "web"], 2, "CMD");
    exits(
        &["run", "--service", "web", "--port", "x", "--", "true"],
        2,
        "`x` is no port; expected 1 to 65535",
    );
    exits(
        &["run", "--service", "web", "--label", "x", "--", "true"],
        2,
        "expected KEY=VALUE",
    );
    exits(&["flows", "--verdict", "maybe"], 2, "possible values: allow, deny");
    exits(
        &["explain", "--from", "a", "--to", "b", "--port", "0"],
        2,
        "0 is not in 1..=65535",
    );
    exits(&["delete", "Service"], 2, "NAME");
    exits(&["get", "Sevrice"], 2, "unknown kind `Sevrice`; known: Service");
    exits(&["--version"], 0, env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_missing_daemon_is_one_line_and_exit_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().to_str().expect("plain path");
    for verb in ["status", "flows", "doctor", "get"] {
        let output = weft(&[verb, "--state-dir", state]);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let said = stderr(&output);
        assert!(
            said.starts_with("weft: no daemon answers at ") && said.lines().count() == 1,
            "{verb}: {said}"
        );
    }
}

#[test]
fn run_without_a_daemon_waits_says_so_and_exits_125() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().to_str().expect("plain path");
    let output = weft(&["run", "--state-dir", state, "--service", "web", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let said = stderr(&output);
    assert!(
        said.contains("waiting for the daemon") && said.contains("no daemon answers"),
        "{said}"
    );
    exits(
        &[
            "run",
            "--state-dir",
            state,
            "--service",
            "web",
            "--user",
            "no-such-user",
            "--",
            "true",
        ],
        125,
        "no user",
    );
}

#[test]
fn a_bad_daemon_config_is_named_by_line_and_exits_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = file(dir.path(), "weft.yaml", "log: info\nbpfs: /x\n");
    let output = weft(&["daemon", "--config", &config]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(
        said.starts_with(&format!("weft: {config}:2:1: unknown key `bpfs`")),
        "{said}"
    );
    exits(&["daemon", "--vip-cidr", "10.0.0.0/99"], 2, "is no range");
}

#[test]
fn check_accepts_what_is_right() {
    let dir = tempfile::tempdir().expect("a directory");
    exits(
        &["check", "-f", &file(dir.path(), "mesh.yaml", GOOD)],
        0,
        "1 object in 1 file: 0 errors",
    );
    exits(
        &["check", "-f", dir.path().to_str().expect("plain path")],
        0,
        "1 object in 1 file",
    );
}

#[test]
fn check_names_file_line_and_column_and_exits_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = file(dir.path(), "good.yaml", GOOD);
    let broken = file(
        dir.path(),
        "broken.yaml",
        &GOOD.replace("accessDefault: deny", "accessDefault: maybe"),
    );
    let output = weft(&["check", "-f", &good, &broken]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains(&format!("{broken}:5:18: error: ")), "{said}");

    let output = weft(&["check", "-o", "json", "-f", &broken]);
    assert_eq!(output.status.code(), Some(2));
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(outcome["diagnostics"][0]["line"], 5, "{outcome}");
    exits(&["check", "-f", "/does/not/exist.yaml"], 2, "read /does/not/exist.yaml");
    exits(
        &["check", "-f", &file(dir.path(), "garbage.yaml", "\u{1}\u{2}[")],
        2,
        "garbage.yaml:1:",
    );
}

#[test]
fn check_lets_a_dangling_reference_pass_with_a_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let split = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: s, namespace: default}\n\
                 spec:\n  service: web\n  backends:\n  - {service: nowhere, weight: 1}\n";
    exits(&["check", "-f", &file(dir.path(), "split.yaml", split)], 0, "warning");
}
