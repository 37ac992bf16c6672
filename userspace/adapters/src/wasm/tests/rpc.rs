//! Calls to services over gRPC, by filters written as text.

use http::{HeaderMap, HeaderValue};

use super::{
    callout::{Answer, resumed, service, status},
    *,
};

/// Asks `authz` by gRPC with each request, and writes the answer, or the status, into a header.
const GRPC: &str = r#"(module
  (import "env" "proxy_grpc_call"
    (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "authzpkg.AuthCheckhellox-answer")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (call $call (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 8) (i32.const 13) (i32.const 5)
          (i32.const 0) (i32.const 0) (i32.const 18) (i32.const 5) (i32.const 1000) (i32.const 512))
      (then unreachable))
    (i32.const 1))
  (func (export "proxy_on_grpc_receive") (param i32 i32 i32)
    (drop (call $bytes (i32.const 5) (i32.const 0) (local.get 2) (i32.const 516) (i32.const 520)))
    (drop (call $add (i32.const 0) (i32.const 23) (i32.const 8) (i32.load (i32.const 516)) (i32.load (i32.const 520))))
    (drop (call $continue (i32.const 0))))
  (func (export "proxy_on_grpc_close") (param i32 i32 i32)
    (drop (call $respond (i32.add (i32.const 500) (local.get 2)) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const -1)))))"#;

fn grpc_answer(status: &'static str, message: &[u8]) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let body = match message {
        b"" => Bytes::new(),
        message => grpc::framed(message),
    };
    Some((Response::new(()), body, trailers))
}

#[test]
fn grpc_carries_a_message_each_way() {
    local(async {
        let (authz, seen) = service(grpc_answer("0", b"welcome"));
        let module = Module::compile(&text(GRPC)).expect("a filter");
        let plugin = plugin_with(&module, config(""), authz);
        let mut filter = stream(&plugin);
        let mut head = get("/", &[]);
        waits(filter.on_request_headers(&mut head, true));
        goes_on(resumed(&mut *filter, &mut head).await);
        assert_eq!(head.headers["x-answer"], "welcome");
        let (_, asked, body) = seen.try_recv().expect("the service was asked");
        assert_eq!((asked.method.as_str(), asked.uri.path()), ("POST", "/pkg.Auth/Check"));
        assert_eq!(asked.headers["content-type"], "application/grpc");
        assert_eq!(body, grpc::framed(b"hello"));
    });
}

#[test]
fn a_grpc_call_that_cannot_be_made_is_a_parse_failure() {
    local(async {
        let (authz, _seen) = service(None);
        // 4: beside an internal failure, the one failure at which the Rust SDK does not end the module.
        let module = GRPC
            .replace("authzpkg", "nobodpkg")
            .replace("(if (call $call", "(if (i32.ne (i32.const 4) (call $call")
            .replace("(i32.const 512))\n      (then", "(i32.const 512)))\n      (then");
        let plugin = plugin_with(&Module::compile(&text(&module)).expect("a filter"), config(""), authz);
        waits(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        assert_eq!((plugin.stats().traps, plugin.stats().call_outs), (0, 0));
    });
}

#[test]
fn the_longest_message_has_room_for_its_prefix() {
    local(async {
        let longest = vec![b'm'; grpc::MAX_MESSAGE];
        let (authz, _seen) = service(grpc_answer("0", &longest));
        // What comes is written beyond all else, and what of it becomes a header is short.
        let module = GRPC
            .replace("(memory (export \"memory\") 1)", "(memory (export \"memory\") 32)")
            .replace("(i32.load (i32.const 520))))", "(i32.const 5)))");
        let plugin = plugin_with(&Module::compile(&text(&module)).expect("a filter"), config(""), authz);
        let mut filter = stream(&plugin);
        let mut head = get("/", &[]);
        waits(filter.on_request_headers(&mut head, true));
        goes_on(resumed(&mut *filter, &mut head).await);
        assert_eq!(head.headers["x-answer"], "mmmmm");
    });
}

#[test]
fn grpc_failures_come_as_their_status() {
    for (answer, expected) in [
        (grpc_answer("7", b""), 507),
        (grpc_answer("0", b""), 513),
        (status(599), 514),
        (status(503), 514),
    ] {
        local(async {
            let (authz, _seen) = service(answer);
            let module = Module::compile(&text(GRPC)).expect("a filter");
            let plugin = plugin_with(&module, config(""), authz);
            let mut filter = stream(&plugin);
            let mut head = get("/", &[]);
            waits(filter.on_request_headers(&mut head, true));
            assert_eq!(answered(resumed(&mut *filter, &mut head).await).0, expected);
        });
    }
}

#[test]
fn a_call_that_is_closed_is_not_made_and_nobody_knows_it_any_more() {
    local(async {
        let (authz, seen) = service(grpc_answer("0", b"welcome"));
        // Nothing can be sent on what is no stream (2: a bad argument), nor closed or cancelled what is gone or never was
        // (1: not found).
        let module = GRPC
            .replace(
                "(memory",
                r#"(import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))
                   (import "env" "proxy_grpc_close" (func $close (param i32) (result i32)))
                   (import "env" "proxy_grpc_cancel" (func $cancel (param i32) (result i32)))
                   (func $is (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then unreachable)))
                   (memory"#,
            )
            .replace(
                "(i32.const 1))\n  (func (export \"proxy_on_grpc_receive\")",
                "(call $is (i32.const 2)
                   (call $send (i32.load (i32.const 512)) (i32.const 0) (i32.const 1) (i32.const 0)))
                 (call $is (i32.const 0) (call $close (i32.load (i32.const 512))))
                 (call $is (i32.const 1) (call $close (i32.load (i32.const 512))))
                 (call $is (i32.const 1) (call $cancel (i32.load (i32.const 512))))
                 (call $is (i32.const 1) (call $cancel (i32.const 99)))
                 (call $is (i32.const 1) (call $send (i32.const 99) (i32.const 0) (i32.const 1) (i32.const 0)))
                 (i32.const 0))\n  (func (export \"proxy_on_grpc_receive\")",
            );
        let plugin = plugin_with(&Module::compile(&text(&module)).expect("a filter"), config(""), authz);
        goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        tokio::task::yield_now().await;
        assert_eq!((seen.try_iter().count(), plugin.stats().traps), (0, 0));
    });
}

/// Opens a stream for each request, and ends it at the first message, whatever else there is. Counts what it is told.
const ONE_OF_MANY: &str = r#"(module
  (import "env" "proxy_grpc_stream" (func $open (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_grpc_close" (func $close (param i32) (result i32)))
  (import "env" "proxy_grpc_cancel" (func $cancel (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "authzpkg.AuthWatchmessagesends")
  (func (export "proxy_abi_version_0_2_1"))
  (func $count (param i32) (drop (call $increment (i32.load (local.get 0)) (i64.const 1))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 18) (i32.const 8) (i32.const 516)))
    (drop (call $define (i32.const 0) (i32.const 26) (i32.const 4) (i32.const 520)))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (call $open (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 8) (i32.const 13) (i32.const 5)
          (i32.const 0) (i32.const 0) (i32.const 512))
      (then unreachable))
    (if (call $close (i32.load (i32.const 512))) (then unreachable))
    (i32.const HELD))
  (func (export "proxy_on_grpc_receive") (param i32 i32 i32)
    (call $count (i32.const 516))
    (if (call $cancel (local.get 1)) (then unreachable))
    (drop (call $continue (i32.const 0))))
  (func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32) (call $count (i32.const 520)))
  (func (export "proxy_on_grpc_close") (param i32 i32 i32) (call $count (i32.const 520))))"#;

#[test]
fn of_a_stream_that_is_cancelled_nothing_more_is_told() {
    for held in [false, true] {
        local(async {
            // Both messages come at once.
            let (head, first, trailers) = grpc_answer("0", b"one").expect("an answer");
            let both = [first, grpc::framed(b"two")].concat().into();
            let (authz, _seen) = service(Some((head, both, trailers)));
            let module = ONE_OF_MANY.replace("HELD", if held { "1" } else { "0" });
            let plugin = plugin_with(&Module::compile(&text(&module)).expect("a filter"), config(""), authz);
            let mut filter = stream(&plugin);
            let mut head = get("/", &[]);
            let step = filter.on_request_headers(&mut head, true);
            if held {
                waits(step);
                goes_on(resumed(&mut *filter, &mut head).await);
            } else {
                goes_on(step);
            }
            beside::until("a message", || beside::metric(&plugin, "messages") > 0).await;
            let told = (beside::metric(&plugin, "messages"), beside::metric(&plugin, "ends"));
            assert_eq!((told, plugin.stats().traps), ((1, 0), 0), "held: {held}");
        });
    }
}
