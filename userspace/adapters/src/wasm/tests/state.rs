//! What the filters of a stream tell each other by properties.

use super::{
    context::{NEVER_DONE, PROPERTIES},
    property::PROPERTY,
    *,
};

/// Sets `user` to the configuration at the request's head.
const SETS: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "user")
  (global $free (mut i32) (i32.const 1024))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32)
    (global.get $free) (global.set $free (i32.add (global.get $free) (local.get 0))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $bytes (i32.const 7) (i32.const 0) (i32.const 1000) (i32.const 0) (i32.const 4)))
    (if (call $set (i32.const 16) (i32.const 4) (i32.load (i32.const 0)) (i32.load (i32.const 4))) (then unreachable))
    (i32.const 0)))"#;

/// Sets `user` to `alice` by the foreign function.
const SETS_STATE: &str = r#"(module
  (import "env" "proxy_call_foreign_function" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "set_envoy_filter_state\0a\04user\12\05alice")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $call (i32.const 16) (i32.const 22) (i32.const 38) (i32.const 13) (i32.const 0) (i32.const 0))))"#;

fn at_answers(text: &str) -> String {
    text.replace("proxy_on_request_headers", "proxy_on_response_headers")
}

fn made(text_of: &str, json: &str) -> Plugin {
    plugin(&Module::compile(&text(text_of)).expect("a filter"), config(json))
}

fn of(plugin: &Plugin, info: &Arc<StreamInfo>) -> Box<dyn StreamFilter> {
    plugin.stream(info).expect("a filter")
}

#[test]
fn what_a_filter_sets_the_later_ones_of_the_stream_see_and_no_others() {
    for sets in [SETS, SETS_STATE] {
        let (sets, asks) = (made(sets, "alice"), made(PROPERTY, "user"));
        let one = info();
        let (mut first, mut later) = (of(&sets, &one), of(&asks, &one));
        goes_on(first.on_request_headers(&mut get("/", &[]), true));
        let found = answered(later.on_request_headers(&mut get("/", &[]), true));
        assert_eq!(found, (200, "alice".to_owned()));
        let other = of(&asks, &info()).on_request_headers(&mut get("/", &[]), true);
        assert_eq!(answered(other).0, 404);
    }
}

#[test]
fn what_a_filter_sets_at_the_answer_the_earlier_ones_see() {
    let (asks, sets) = (made(&at_answers(PROPERTY), "user"), made(&at_answers(SETS), "bob"));
    let one = info();
    let (mut earlier, mut last) = (of(&asks, &one), of(&sets, &one));
    for filter in [&mut earlier, &mut last] {
        goes_on(filter.on_request_headers(&mut get("/", &[]), true));
    }
    goes_on(last.on_response_headers(&mut ok(), true));
    assert_eq!(
        answered(earlier.on_response_headers(&mut ok(), true)),
        (200, "bob".to_owned())
    );
}

#[test]
fn the_last_of_two_filters_that_set_the_same_counts() {
    let [alice, bob] = ["alice", "bob"].map(|user| made(SETS, user));
    let asks = made(PROPERTY, "user");
    let one = info();
    for sets in [&alice, &bob] {
        goes_on(of(sets, &one).on_request_headers(&mut get("/", &[]), true));
    }
    let found = answered(of(&asks, &one).on_request_headers(&mut get("/", &[]), true));
    assert_eq!(found, (200, "bob".to_owned()));
}

/// What a filter of these answers at a request's head: 200 where it could set all that it wanted to, else 500.
fn sets_all(plugin: &Plugin, info: &Arc<StreamInfo>) -> bool {
    answered(of(plugin, info).on_request_headers(&mut get("/", &[]), true)).0 == 200
}

#[test]
fn a_filter_that_sets_too_many_takes_none_from_the_others() {
    let many = PROPERTIES.replace("(i32.const 97)", "(i32.const 98)");
    let ten = PROPERTIES
        .replace("(i32.const 33)", "(i32.const 98)")
        .replace("(i32.const 97)", "(i32.const 108)");
    let (many, all, ten) = (made(&many, ""), made(PROPERTIES, ""), made(&ten, ""));
    let one = info();
    assert!(!sets_all(&many, &one), "64 and one more");
    assert!(sets_all(&ten, &one), "further ones");
    assert!(sets_all(&all, &one), "the same 64");
}

#[test]
fn who_replaces_a_value_has_it_and_the_room_of_the_last_one_is_free() {
    let (first, second) = (made(PROPERTIES, ""), made(PROPERTIES, ""));
    let streams: Vec<_> = (0..15).map(|_| info()).collect();
    assert!(streams.iter().all(|info| sets_all(&first, info)));
    assert!(!sets_all(&first, &info()), "it has no more room");
    assert!(sets_all(&second, &streams[0]));
    assert!(sets_all(&first, &info()));
}

#[test]
fn a_filter_that_is_never_done_keeps_no_room_of_another_ones() {
    let (sets, never_done) = (made(PROPERTIES, ""), made(NEVER_DONE, ""));
    for _ in 0..40 {
        let one = info();
        let (mut first, mut later) = (of(&sets, &one), of(&never_done, &one));
        drop(one);
        assert_eq!(answered(first.on_request_headers(&mut get("/", &[]), true)).0, 200);
        goes_on(later.on_request_headers(&mut get("/", &[]), true));
        first.on_end(&end());
        later.on_end(&end());
    }
}
