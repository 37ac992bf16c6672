//! Foreign functions: what a module gets of each.

use super::*;

/// What a call of a function answers: 200 and its result, or 500 and the status.
fn called(name: &str, arguments: &[u8]) -> (u16, Vec<u8>) {
    let module = format!(
        r#"(module
          (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 32)
          (data (i32.const 64) "{name}")
          (data (i32.const 128) "{data}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 8192))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $status i32)
            ;; Overwritten also where there is no result: nothing could be answered with these.
            (i64.store (i32.const 8) (i64.const -1))
            (local.set $status (call $foreign (i32.const 64) (i32.const {name_length}) (i32.const 128)
              (i32.const {length}) (i32.const 8) (i32.const 12)))
            (if (local.get $status) (then (i64.store (i32.const 8) (i64.const 0))))
            (drop (call $respond
              (select (i32.add (i32.const 500) (local.get $status)) (i32.const 200) (local.get $status))
              (i32.const 0) (i32.const 0) (i32.load (i32.const 8)) (i32.load (i32.const 12))
              (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 1)))"#,
        data = escaped(arguments),
        name_length = name.len(),
        length = arguments.len(),
    );
    let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), config(""));
    let Step::Respond(response) = stream(&plugin).on_request_headers(&mut get("/", &[]), true) else {
        panic!("{name}: no answer");
    };
    (response.status().as_u16(), response.body().to_vec())
}

/// Bytes as modules written as text have them.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

#[test]
fn functions_answer_as_those_of_envoy() {
    let done = (200, Vec::new());
    assert_eq!(called("clear_route_cache", b""), done);
    assert_eq!(called("declare_property", b"\x0a\x04tier"), done);
    assert_eq!(called("set_envoy_filter_state", b"\x0a\x04tier\x12\x04gold"), done);
    // Bad arguments: no path, no message.
    assert_eq!(called("set_envoy_filter_state", b"\x12\x04gold").0, 502);
    assert_eq!(called("set_envoy_filter_state", b"\xff").0, 502);
    // Not found.
    for unknown in ["expr_create", "compress", ""] {
        assert_eq!(called(unknown, b"").0, 501, "{unknown}");
    }
}

/// Does SET with each request, and answers with the property PATH, or with 404.
fn read_back(set: &str, path: &str) -> (u16, String) {
    let module = format!(
        r#"(module
          (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_get_property" (func $get (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "set_envoy_filter_state" "\0a\04tier\12\04gold" "silver")
          (data (i32.const 128) "{path}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if {set} (then unreachable))
            (if (call $get (i32.const 128) (i32.const {length}) (i32.const 8) (i32.const 12))
              (then (drop (call $respond (i32.const 404) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const 0) (i32.const -1))))
              (else (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.load (i32.const 8))
                (i32.load (i32.const 12)) (i32.const 0) (i32.const 0) (i32.const -1)))))
            (i32.const 1)))"#,
        path = escaped(path.as_bytes()),
        length = path.len(),
    );
    let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), config(""));
    answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true))
}

#[test]
fn what_a_filter_set_reads_back() {
    let found = |value: &str| (200, value.to_owned());
    let gold = "(call $set (i32.const 88) (i32.const 4) (i32.const 94) (i32.const 4))";
    assert_eq!(read_back(gold, "tier"), found("gold"));
    let silver = "(call $set (i32.const 88) (i32.const 4) (i32.const 98) (i32.const 6))";
    assert_eq!(read_back(&format!("(i32.or {gold} {silver})"), "tier"), found("silver"));
    let state =
        "(call $foreign (i32.const 64) (i32.const 22) (i32.const 86) (i32.const 12) (i32.const 8) (i32.const 12))";
    assert_eq!(read_back(state, "tier"), found("gold"));
    assert_eq!(read_back(state, "filter_state\0tier"), found("gold"));
    // Who wants no result says so by a zero.
    let silent = state.replace("(i32.const 8) (i32.const 12)", "(i32.const 0) (i32.const 0)");
    assert_eq!(read_back(&silent, "tier"), found("gold"));
    for path in ["tier", "filter_state\0tier", "filter_state"] {
        assert_eq!(read_back("(i32.const 0)", path).0, 404, "{path:?}");
    }
    assert_eq!(read_back(gold, "tie").0, 404);
}
