//! Heads, bodies and answers through filters of the Rust and AssemblyScript SDKs.

use bytes::BytesMut;

use super::*;

#[test]
fn a_header_decides_and_the_service_is_told() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s3cret": "alice"}}"#));
    let (status, body) = answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
    assert_eq!((status, &*body), (401, "header-auth: no token\n"));
    let wrong = [("authorization", "Bearer wrong")];
    let (status, body) = answered(stream(&plugin).on_request_headers(&mut get("/", &wrong), true));
    assert_eq!((status, &*body), (403, "header-auth: unknown token\n"));
    let mut head = get("/", &[("authorization", "Bearer s3cret"), ("x-user", "root")]);
    let mut filter = stream(&plugin);
    goes_on(filter.on_request_headers(&mut head, true));
    assert_eq!(head.headers["x-user"], "alice");
    assert_eq!(head.headers.get_all("x-user").iter().count(), 1);
    assert_eq!(head.headers["host"], "cart");
    goes_on(filter.on_response_headers(&mut ok(), true));
    filter.on_end(&end());
    let stats = plugin.stats();
    assert_eq!((stats.streams, stats.local_responses, stats.traps), (3, 2, 0));
}

#[test]
fn a_head_that_is_a_text_stays_one_where_a_header_is_set() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s3cret": "alice"}}"#));
    let (status, _) = answered(stream(&plugin).on_request_head(&mut get_text("/", &[]), true));
    assert_eq!(status, 401);
    let mut head = get_text(
        "/a",
        &[("Authorization", "Bearer s3cret"), ("X-User", "root"), ("x-user", "me")],
    );
    goes_on(stream(&plugin).on_request_head(&mut head, true));
    let HeaderSection::Text(lines) = &head.headers else {
        panic!("a map was made");
    };
    let expect = [
        ("host", "cart"),
        ("authorization", "Bearer s3cret"),
        ("x-user", "alice"),
    ];
    let expect = expect.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    assert_eq!(lines.iter().collect::<Vec<_>>(), expect);
    assert_eq!((head.method.as_str(), head.uri.path()), ("GET", "/a"));
    assert_eq!(plugin.stats().traps, 0);
}

#[test]
fn challenges_carry_their_headers() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "a"}}"#));
    let Step::Respond(response) = stream(&plugin).on_request_headers(&mut get("/", &[]), true) else {
        panic!("no answer");
    };
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[test]
fn a_header_that_is_no_text_does_not_trap() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "a"}}"#));
    let mut head = get("/", &[]);
    let value = http::HeaderValue::from_bytes(b"Bearer \xff\xfe").expect("bytes are allowed");
    head.headers.insert("authorization", value);
    let (status, _) = answered(stream(&plugin).on_request_headers(&mut head, true));
    assert_eq!((status, plugin.stats().traps), (403, 0));
}

#[test]
fn a_value_that_no_header_can_hold_does_not_trap() {
    // The Rust SDK ends the module on any answer but `Ok`.
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "al\nice"}}"#));
    let mut other = stream(&plugin);
    let mut head = get("/", &[("authorization", "Bearer s"), ("x-user", "root")]);
    goes_on(stream(&plugin).on_request_headers(&mut head, true));
    assert!(
        !head.headers.contains_key("x-user"),
        "the client's must not pass for the filter's"
    );
    goes_on(other.on_request_headers(&mut get("/", &[("authorization", "Bearer s")]), true));
    assert_eq!(plugin.stats().traps, 0);
}

/// Asks for what no head can hold, in all ways that there are; traps on any answer but `Ok`.
const UNFIT: &str = r#"(module
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_header_map_pairs" (func $set (param i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "x-user" "a\0ab" ":path" ":method" ":other" "bad name" "fit")
  (data (i32.const 64) "\02\00\00\00" "\01\00\00\00\03\00\00\00" "\01\00\00\00\01\00\00\00" "y\00a\0ab\00" "z\001\00")
  (func (export "proxy_abi_version_0_2_1"))
  (func $ok (param i32) (if (local.get 0) (then unreachable)))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $ok (call $replace (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 6) (i32.const 3)))
    (call $ok (call $add (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 6) (i32.const 3)))
    (call $ok (call $replace (i32.const 0) (i32.const 9) (i32.const 5) (i32.const 6) (i32.const 3)))
    (call $ok (call $replace (i32.const 0) (i32.const 14) (i32.const 7) (i32.const 6) (i32.const 3)))
    (call $ok (call $replace (i32.const 0) (i32.const 21) (i32.const 6) (i32.const 35) (i32.const 3)))
    (call $ok (call $add (i32.const 0) (i32.const 27) (i32.const 8) (i32.const 35) (i32.const 3)))
    ;; Too long.
    (call $ok (call $replace (i32.const 0) (i32.const 1) (i32.const 5) (i32.const 1024) (i32.const 65537)))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $ok (call $set (i32.const 2) (i32.const 64) (i32.const 30)))
    (i32.const 0))
  (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
    (call $ok (call $respond (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 64)
      (i32.const 30) (i32.const -1)))
    (i32.const 1)))"#;

#[test]
fn what_no_head_can_hold_is_dropped_and_counted() {
    let plugin = plugin(&Module::compile(&text(UNFIT)).expect("a filter"), config(""));
    let mut filter = stream(&plugin);
    let mut head = get("/a", &[("x-user", "root"), ("-user", "1"), ("fit", "1")]);
    goes_on(filter.on_request_headers(&mut head, false));
    assert_eq!((head.uri.path(), head.method.as_str()), ("/a", "GET"));
    // What it was to replace is gone, all else is as it was.
    let mut names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["fit", "host"]);
    let mut answer = ok();
    goes_on(filter.on_response_headers(&mut answer, true));
    assert_eq!((answer.headers.len(), answer.headers.find(b"z")), (1, Some(&b"1"[..])));
    let Step::Respond(denied) = filter.on_request_trailers(&mut http::HeaderMap::new(), &mut BytesMut::new()) else {
        panic!("no answer");
    };
    assert!(denied.headers().contains_key("z") && !denied.headers().contains_key("y"));
    let stats = plugin.stats();
    assert_eq!((stats.traps, stats.unfit_headers), (0, 9));
}

#[test]
fn answers_to_grpc_clients_keep_the_http_status_for_the_proxy_to_translate() {
    for (kind, code, given, expected) in [
        ("application/grpc", 403, -1, None),
        ("application/grpc+proto", 403, 16, Some("16")),
        ("application/grpc", 200, -1, Some("0")),
        ("text/plain", 403, 16, None),
    ] {
        let bytes = text(&format!(
            r#"(module
              (import "env" "proxy_send_local_response"
                (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
              (memory (export "memory") 1)
              (data (i32.const 0) "no")
              (func (export "proxy_abi_version_0_2_1"))
              (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (drop (call $respond (i32.const {code}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2)
                  (i32.const 0) (i32.const 0) (i32.const {given})))
                (i32.const 1)))"#
        ));
        let plugin = plugin(&Module::compile(&bytes).expect("a filter"), config(""));
        let mut head = get("/", &[("content-type", kind)]);
        let Step::Respond(response) = stream(&plugin).on_request_headers(&mut head, true) else {
            panic!("no answer");
        };
        let status = response.headers().get("grpc-status").map(|status| status.as_bytes());
        assert_eq!(
            (response.status().as_u16(), status),
            (code, expected.map(str::as_bytes))
        );
        assert_eq!(response.body(), "no");
    }
}

#[test]
fn bodies_are_held_until_they_are_whole_and_then_replaced() {
    let json = r#"{"requests": [{"from": "cat", "to": "tiger"}], "responses": [{"from": "tiger", "to": "cat"}]}"#;
    let plugin = plugin(&filter("body-rewrite"), config(json));
    let mut filter = stream(&plugin);
    let mut head = get("/", &[("content-length", "9"), ("accept-encoding", "gzip")]);
    goes_on(filter.on_request_headers(&mut head, false));
    assert!(!head.headers.contains_key("content-length"));
    assert!(!head.headers.contains_key("accept-encoding"));
    let mut body = BytesMut::from("a ca");
    waits(filter.on_request_body(&mut body, false));
    assert_eq!(body, "a ca", "what is held is the proxy's to keep");
    body.extend_from_slice(b"t sat");
    goes_on(filter.on_request_body(&mut body, true));
    assert_eq!(body, "a tiger sat");

    let mut head = ok();
    head.headers.map_mut().insert("content-length", 5.into());
    goes_on(filter.on_response_headers(&mut head, false));
    assert_eq!(head.headers.find(b"content-length"), None);
    let mut body = BytesMut::from("tiger");
    goes_on(filter.on_response_body(&mut body, true));
    assert_eq!(body, "cat");
    filter.on_end(&end());
    assert_eq!(plugin.stats().traps, 0);
}

#[test]
fn assemblyscript_denies_a_path_and_marks_answers() {
    let module = filter("deny-path");
    assert_eq!(module.abi(), AbiVersion::V0_2_0);
    let plugin = plugin(&module, config(r#"{"prefixes": ["/admin"]}"#));
    let (status, body) = answered(stream(&plugin).on_request_headers(&mut get("/admin/x", &[]), true));
    assert_eq!((status, &*body), (403, "deny-path: /admin is closed\n"));
    let mut filter = stream(&plugin);
    goes_on(filter.on_request_headers(&mut get("/shop", &[]), true));
    let mut head = ok();
    goes_on(filter.on_response_headers(&mut head, true));
    assert_eq!(head.headers.find(b"x-adapter"), Some(&b"deny-path"[..]));
    filter.on_end(&end());
}

#[test]
fn a_rate_is_kept_over_all_instances_of_an_adapter() {
    let services = Services::default();
    let module = filter("rate-limit");
    let json = r#"{"rate": 0.001, "burst": 3}"#;
    let make = || {
        module
            .plugin(config(json), &services, Arc::new(NoUpstreams))
            .expect("a plugin")
    };
    let (one, other) = (make(), make());
    goes_on(stream(&one).on_request_headers(&mut get("/", &[]), true));
    goes_on(stream(&other).on_request_headers(&mut get("/", &[]), true));
    goes_on(stream(&one).on_request_headers(&mut get("/", &[]), true));
    assert_eq!(
        answered(stream(&other).on_request_headers(&mut get("/", &[]), true)).0,
        429
    );
    assert_eq!(
        answered(stream(&one).on_request_headers(&mut get("/", &[]), true)).0,
        429
    );
}
