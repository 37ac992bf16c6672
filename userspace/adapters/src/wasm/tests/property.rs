//! What filters may ask about a stream.

use bytes::BytesMut;
use http::{HeaderValue, StatusCode};

use super::*;
use crate::stream::{Direction, StreamFailure, TcpStep};

/// Answers each request with the property that the configuration names, or with 404.
pub(super) const PROPERTY: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32)
    (global.get $free) (global.set $free (i32.add (global.get $free) (local.get 0))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $bytes (i32.const 7) (i32.const 0) (i32.const 1000) (i32.const 0) (i32.const 4)))
    (if (call $property (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 8) (i32.const 12))
      (then (drop (call $respond (i32.const 404) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const -1))))
      (else (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.load (i32.const 8))
        (i32.load (i32.const 12)) (i32.const 0) (i32.const 0) (i32.const -1)))))
    (i32.const 1)))"#;

#[test]
fn properties_have_envoys_names() {
    let module = Module::compile(&text(PROPERTY)).expect("a filter");
    let number = |number: u64| number.to_le_bytes().to_vec();
    for (path, expected) in [
        ("request\0path", Some(b"/a/b?c=d".to_vec())),
        ("request\0url_path", Some(b"/a/b".to_vec())),
        ("request\0query", Some(b"c=d".to_vec())),
        ("request\0method", Some(b"GET".to_vec())),
        ("request\0host", Some(b"cart".to_vec())),
        ("request\0scheme", Some(b"http".to_vec())),
        ("request\0protocol", Some(b"HTTP/1.1".to_vec())),
        ("request\0headers\0X-One", Some(b"1".to_vec())),
        ("request\0headers\0x-two", None),
        ("request\0headers\0:path", Some(b"/a/b?c=d".to_vec())),
        ("request\0headers\0:method", Some(b"GET".to_vec())),
        ("request\0headers\0:authority", Some(b"cart".to_vec())),
        ("request\0headers\0:scheme", Some(b"http".to_vec())),
        ("request\0headers\0host", Some(b"cart".to_vec())),
        ("request\0headers\0:status", None),
        ("request\0id", Some(b"r1".to_vec())),
        ("response\0headers\0:status", None),
        ("request\0size", Some(number(12))),
        ("response\0code", None),
        ("connection\0id", Some(number(3))),
        ("connection_id", Some(number(3))),
        ("connection\0mtls", Some(vec![0])),
        ("listener_direction", Some(number(2))),
        ("source\0address", Some(b"10.0.0.1:40000".to_vec())),
        ("source\0port", Some(number(40_000))),
        ("source\0service", Some(b"web".to_vec())),
        ("destination\0port", Some(number(80))),
        ("upstream\0address", Some(b"10.0.0.2:8080".to_vec())),
        ("cluster_name", Some(b"cart".to_vec())),
        ("plugin_name", Some(b"test".to_vec())),
        ("plugin_root_id", Some(Vec::new())),
        ("a\0b\0c\0d\0e\0f\0g\0h\0i\0j", None),
        ("", None),
    ] {
        let plugin = plugin(&module, config(path));
        let mut head = get(
            "/a/b?c=d",
            &[("x-one", "1"), ("content-length", "12"), ("x-request-id", "r1")],
        );
        let Step::Respond(response) = stream(&plugin).on_request_headers(&mut head, true) else {
            panic!("{path:?}: no answer");
        };
        let found = (response.status() == 200).then(|| response.body().to_vec());
        assert_eq!(found, expected, "{path:?}");
    }
}

#[test]
fn the_status_is_among_the_headers_of_an_answer() {
    let asks = PROPERTY.replace("proxy_on_request_headers", "proxy_on_response_headers");
    let module = Module::compile(&text(&asks)).expect("a filter");
    for (path, expected) in [
        ("response\0headers\0:status", Some("404")),
        ("response\0headers\0X-One", Some("1")),
        ("response\0headers\0:path", None),
    ] {
        let plugin = plugin(&module, config(path));
        let mut head = ok();
        head.status = StatusCode::NOT_FOUND;
        head.headers.map_mut().insert("x-one", HeaderValue::from_static("1"));
        let (status, body) = answered(stream(&plugin).on_response_headers(&mut head, true));
        assert_eq!((status == 200).then_some(&*body), expected, "{path:?}");
    }
}

/// The same, after it has set that property.
fn sets_and_asks() -> String {
    let with_call = PROPERTY.replace(
        r#"(memory (export "memory") 1)"#,
        r#"(import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
           (memory (export "memory") 1) (data (i32.const 64) "alice")"#,
    );
    with_call.replace(
        "(if (call $property",
        "(if (call $set (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 64) (i32.const 5)) (then unreachable))
         (if (call $property",
    )
}

#[test]
fn what_filters_set_does_not_pass_for_what_the_proxy_says() {
    let module = Module::compile(&text(&sets_and_asks())).expect("a filter");
    for (path, expected) in [
        ("user", Some("alice")),
        ("my\0own\0name", Some("alice")),
        ("source\0account", Some("web")),
        ("source\0nothing", None),
        ("request\0headers\0x-user", None),
        ("filter_state\0wasm.user", None),
        ("node\0id", None),
        ("plugin_name", Some("test")),
    ] {
        let plugin = plugin(&module, config(path));
        let (status, body) = answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        assert_eq!((status == 200).then_some(&*body), expected, "{path:?}");
        assert_eq!(plugin.stats().traps, 0);
    }
}

#[test]
fn what_filters_set_is_in_the_filter_state() {
    // Asks for another name than it sets: one segment before it, and `wasm.`.
    let asks = sets_and_asks().replace(
        "(if (call $set (i32.load (i32.const 0)) (i32.load (i32.const 4))",
        "(if (call $set (i32.add (i32.load (i32.const 0)) (i32.const 18)) (i32.const 4)",
    );
    let plugin = plugin(
        &Module::compile(&text(&asks)).expect("a filter"),
        config("filter_state\0wasm.user"),
    );
    let (status, body) = answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
    assert_eq!((status, &*body), (200, "alice"));
}

#[test]
fn what_came_in_is_inbound() {
    let Some(mut inbound) = Arc::into_inner(info()) else {
        panic!("it is shared")
    };
    inbound.direction = TrafficDirection::Inbound;
    let plugin = plugin(
        &Module::compile(&text(PROPERTY)).expect("a filter"),
        config("listener_direction"),
    );
    let mut filter = plugin.stream(&Arc::new(inbound)).expect("a filter");
    let Step::Respond(response) = filter.on_request_headers(&mut get("/", &[]), true) else {
        panic!("no answer");
    };
    assert_eq!(&response.body()[..], 1_u64.to_le_bytes());
}

/// At the end counts `found`, and in `flags` what the response's flags are then.
const FLAGS: &str = r#"(module
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "response\00flagsfound")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $flags (result i32) (call $property (i32.const 16) (i32.const 14) (i32.const 0) (i32.const 4)))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 30) (i32.const 5) (i32.const 512)))
    (drop (call $define (i32.const 0) (i32.const 25) (i32.const 5) (i32.const 516)))
    (i32.const 1))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $flags)) (then unreachable))
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (if (i32.eqz (call $flags)) (then
      (drop (call $increment (i32.load (i32.const 512)) (i64.const 1)))
      (drop (call $increment (i32.load (i32.const 516)) (i64.load (i32.load (i32.const 0)))))))))"#;

#[test]
fn the_flags_of_an_answer_are_envoys_and_known_at_its_end() {
    let module = Module::compile(&text(FLAGS)).expect("a filter");
    for (failure, found, flags) in [
        (None, 1, 0),
        (Some(StreamFailure::Connect), 1, 0x20),
        (Some(StreamFailure::Upstream), 1, 0x40),
        (Some(StreamFailure::Downstream), 1, 0x4000),
        (Some(StreamFailure::Held), 1, 0x1_0000),
        (Some(StreamFailure::UpstreamProtocol), 1, 0x80_0000),
        (Some(StreamFailure::Other), 0, 0),
    ] {
        let plugin = plugin(&module, config(""));
        let mut filter = stream(&plugin);
        goes_on(filter.on_response_headers(&mut ok(), true));
        filter.on_end(&StreamEnd { failure, ..end() });
        let counted = ["found", "flags"].map(|name| beside::metric(&plugin, name));
        assert_eq!(counted, [found, flags], "{failure:?}");
        assert_eq!(plugin.stats().traps, 0);
    }
}

/// Traps where a request is found before there is one.
const NO_REQUEST: &str = r#"(module
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $value (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "request\00method")
  (data (i32.const 32) ":method")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $method (result i32) (call $property (i32.const 16) (i32.const 14) (i32.const 0) (i32.const 4)))
  (func $nothing
    (if (i32.ne (call $method) (i32.const 1)) (then unreachable))
    (if (i32.ne (call $value (i32.const 0) (i32.const 32) (i32.const 7) (i32.const 0) (i32.const 4)) (i32.const 1))
      (then unreachable))
    (if (i32.or (call $size (i32.const 0) (i32.const 8)) (i32.load (i32.const 8))) (then unreachable)))
  (func (export "proxy_on_context_create") (param i32 i32) (call $nothing))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $method))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (call $nothing) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32) (call $nothing) (i32.const 0)))"#;

#[test]
fn a_connection_has_no_request_and_a_request_none_before_its_head() {
    let plugin = plugin(&Module::compile(&text(NO_REQUEST)).expect("a filter"), config(""));
    let mut connection = plugin.tcp(&info()).expect("a filter");
    assert_eq!(connection.on_connection(), TcpStep::Continue);
    let step = connection.on_data(Direction::Downstream, &mut BytesMut::from("abc"), true);
    assert_eq!(step, TcpStep::Continue);
    goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
    assert_eq!(plugin.stats().traps, 0);
}
