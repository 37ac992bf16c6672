//! Contexts: requests that others resume, the end of one; and what a module may pass to host calls.

use std::{
    future::poll_fn,
    task::{Context as TaskContext, Poll, Waker},
};

use bytes::BytesMut;
use http::HeaderMap;

use super::*;
use crate::stream::Lent;

/// Holds each request; the next tick lets the last one go, with a header more. Waits with its end for another tick.
const HOLD: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $context (param i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (import "env" "proxy_done" (func $done (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "x-tickended")
  (global $held (mut i32) (i32.const 0))
  (global $ended (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 6) (i32.const 5) (i32.const 512)))
    (drop (call $tick (i32.const 1)))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $held (local.get 0))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (if (global.get $held) (then
      (drop (call $context (global.get $held)))
      (drop (call $add (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 2) (i32.const 4)))
      (drop (call $continue (i32.const 0)))
      (global.set $held (i32.const 0))))
    (if (global.get $ended) (then
      (drop (call $context (global.get $ended)))
      (if (call $done) (then unreachable))
      (global.set $ended (i32.const 0)))))
  (func (export "proxy_on_done") (param i32) (result i32)
    (global.set $ended (local.get 0))
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1)))))"#;

#[test]
fn a_tick_changes_a_held_request_lets_it_go_and_ends_it() {
    local(async {
        let module = Module::compile(&text(HOLD)).expect("a filter");
        for is_text in [false, true] {
            let plugin = plugin(&module, config(""));
            let mut filter = stream(&plugin);
            let sent = [("x-mine", "1")];
            let mut head = if is_text {
                let mut head = get_text("/", &sent);
                waits(filter.on_request_head(&mut head, true));
                head.into_parts()
            } else {
                let mut head = get("/", &sent);
                waits(filter.on_request_headers(&mut head, true));
                head
            };
            goes_on(poll_fn(|cx| filter.poll_resume(cx, Lent::RequestHeaders(&mut head))).await);
            assert_eq!(head.headers["x-tick"], "tick");
            assert_eq!(head.headers["x-mine"], "1");
            filter.on_end(&end());
            drop(filter);
            beside::until("the end", || beside::metric(&plugin, "ended") == 1).await;
            assert_eq!(plugin.stats().traps, 0);
        }
    });
}

#[test]
fn a_context_that_is_done_twice_ends_once() {
    local(async {
        let twice = HOLD
            .replace(
                "(if (call $done) (then unreachable))",
                "(drop (call $done)) (drop (call $done))",
            )
            .replace(
                r#"(func (export "proxy_on_log") (param i32)"#,
                r#"(func (export "proxy_on_log") (param i32) (drop (call $done))"#,
            );
        let plugin = plugin(&Module::compile(&text(&twice)).expect("a filter"), config(""));
        let mut filter = stream(&plugin);
        goes_on(filter.on_response_headers(&mut ok(), true));
        filter.on_end(&end());
        drop(filter);
        beside::until("the end", || beside::metric(&plugin, "ended") > 0).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!((beside::metric(&plugin, "ended"), plugin.stats().traps), (1, 0));
    });
}

#[test]
fn a_held_request_learns_that_its_instance_failed() {
    local(async {
        // The tick finds no held request of its own, but a trap.
        let module = HOLD.replace("(call $continue (i32.const 0))", "(unreachable)");
        let module = Module::compile(&text(&module)).expect("a filter");
        let plugin = plugin(&module, config(""));
        let mut filter = stream(&plugin);
        let mut head = get("/", &[]);
        waits(filter.on_request_headers(&mut head, true));
        let step = poll_fn(|cx| filter.poll_resume(cx, Lent::RequestHeaders(&mut head))).await;
        assert_eq!(answered(step).0, 503);
    });
}

#[test]
fn version_0_1_0_reads_its_configuration_and_goes_on_by_old_names() {
    let bytes = text(
        r#"(module
          (import "env" "proxy_get_configuration" (func $configuration (param i32 i32) (result i32)))
          (import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_continue_request" (func $continue (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "x-conf")
          (func (export "proxy_abi_version_0_1_0"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
            (drop (call $configuration (i32.const 512) (i32.const 516)))
            (drop (call $replace (i32.const 0) (i32.const 0) (i32.const 6) (i32.load (i32.const 512))
              (i32.load (i32.const 516))))
            (drop (call $continue))
            (i32.const 1)))"#,
    );
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), config("hello"));
    let mut head = get("/", &[]);
    goes_on(stream(&plugin).on_request_headers(&mut head, true));
    assert_eq!(head.headers["x-conf"], "hello");
}

#[test]
fn trailers_are_changed_and_wishes_out_of_time_do_nothing() {
    let bytes = text(
        r#"(module
          (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
          (import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "x-sum42")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            ;; Neither trailers nor a response are there yet, and nothing is held.
            (drop (call $add (i32.const 1) (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 2)))
            (drop (call $size (i32.const 1) (i32.const 16)))
            (if (i32.load (i32.const 16)) (then unreachable))
            (drop (call $continue (i32.const 1)))
            (call $add (i32.const 2) (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 2)))
          (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
            (call $add (i32.const 1) (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 2)))
          (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 1)))"#,
    );
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), config(""));
    let mut filter = stream(&plugin);
    goes_on(filter.on_request_headers(&mut get("/", &[]), false));
    let mut trailers = HeaderMap::new();
    goes_on(filter.on_request_trailers(&mut trailers, &mut BytesMut::new()));
    assert_eq!(trailers["x-sum"], "42");
    let mut head = ok();
    waits(filter.on_response_headers(&mut head, true));
    assert!(head.headers.is_empty());
    let mut cx = TaskContext::from_waker(Waker::noop());
    assert!(matches!(
        filter.poll_resume(&mut cx, Lent::ResponseHeaders(&mut head)),
        Poll::Pending
    ));
}

#[test]
fn a_body_that_was_held_is_there_with_the_trailers() {
    let bytes = text(
        r#"(module
          (import "env" "proxy_get_buffer_status" (func $status (param i32 i32 i32) (result i32)))
          (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "-end")
          (func (export "proxy_abi_version_0_2_1"))
          ;; Puts that behind the three bytes that are there.
          (func $extend (param $buffer i32) (result i32)
            (if (call $status (local.get $buffer) (i32.const 8) (i32.const 12)) (then unreachable))
            (if (i32.ne (i32.load (i32.const 8)) (i32.const 3)) (then unreachable))
            (call $set (local.get $buffer) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4)))
          (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 1))
          (func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (call $extend (i32.const 0)))
          (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (i32.const 1))
          (func (export "proxy_on_response_trailers") (param i32 i32) (result i32) (call $extend (i32.const 1))))"#,
    );
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), config(""));
    let mut filter = stream(&plugin);
    let (mut body, mut trailers) = (BytesMut::from("abc"), HeaderMap::new());
    waits(filter.on_request_body(&mut body, false));
    goes_on(filter.on_request_trailers(&mut trailers, &mut body));
    assert_eq!(body, "abc-end");
    let mut body = BytesMut::from("def");
    waits(filter.on_response_body(&mut body, false));
    goes_on(filter.on_response_trailers(&mut trailers, &mut body));
    assert_eq!(body, "def-end");
    assert_eq!(plugin.stats().traps, 0);
}

#[test]
fn a_command_starts_with_its_environment_and_exits() {
    let bytes = text(
        r#"(module
          (import "wasi_unstable" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1)
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "_start")
            (drop (call $sizes (i32.const 0) (i32.const 4)))
            (drop (call $environ (i32.const 8) (i32.const 64)))
            ;; Prints the first of them on standard error, without its zero byte.
            (i32.store (i32.const 16) (i32.load (i32.const 8)))
            (i32.store (i32.const 20) (i32.sub (i32.load (i32.const 4)) (i32.const 1)))
            (drop (call $write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 24)))
            ;; ENOTSUP
            (if (i32.ne (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0)
                  (i64.const 0) (i32.const 0) (i32.const 0)) (i32.const 58))
              (then unreachable))
            (call $exit (i32.const 0)))
          (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 0)))"#,
    );
    let named = PluginConfig {
        environment: vec![("ZONE".into(), "eu-1".into())],
        ..config("")
    };
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), named);
    let error = plugin.canary().expect_err("it says no").to_string();
    assert_eq!(error, "proxy_on_configure said no; the module says: ZONE=eu-1");
}

/// Never done with a request.
pub(super) const NEVER_DONE: &str = r#"(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "lastdeleted")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 1) (i32.const 0) (i32.const 4) (i32.const 512)))
    (drop (call $define (i32.const 0) (i32.const 4) (i32.const 7) (i32.const 516)))
    (i32.const 1))
  (func (export "proxy_on_done") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_delete") (param i32)
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1)))
    (drop (call $increment (i32.load (i32.const 516)) (i64.const 1)))))"#;

#[test]
fn of_contexts_that_are_never_done_the_oldest_ends() {
    let plugin = plugin(&Module::compile(&text(NEVER_DONE)).expect("a filter"), config(""));
    for _ in 0..2000 {
        let mut filter = stream(&plugin);
        goes_on(filter.on_request_headers(&mut get("/", &[]), true));
        filter.on_end(&end());
    }
    assert_eq!(beside::metric(&plugin, "deleted"), 2000 - 1024);
    assert_eq!(plugin.stats().traps, 0);
}

/// Sets 64 properties of 16 KiB, and answers 200; 500 where one cannot be set.
pub(super) const PROPERTIES: &str = r#"(module
  (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $code i32)
    (i32.store8 (i32.const 0) (i32.const 33))
    (local.set $code (i32.const 200))
    (loop $more
      (if (call $set (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 16384))
        (then (local.set $code (i32.const 500))))
      (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
      (br_if $more (i32.lt_u (i32.load8_u (i32.const 0)) (i32.const 97))))
    (drop (call $respond (local.get $code) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
      (i32.const 0) (i32.const -1)))
    (i32.const 1)))"#;

#[test]
fn what_the_host_keeps_for_an_instance_is_bounded() {
    let plugin = plugin(&Module::compile(&text(PROPERTIES)).expect("a filter"), config(""));
    let ask = |filter: &mut Box<dyn StreamFilter>| answered(filter.on_request_headers(&mut get("/", &[]), true)).0;
    let mut filters: Vec<_> = (0..20).map(|_| stream(&plugin)).collect();
    let answers: Vec<u16> = filters.iter_mut().map(ask).collect();
    // Names count too.
    assert_eq!(answers, [[200; 15].as_slice(), &[500; 5]].concat());
    filters.truncate(3);
    assert_eq!(ask(&mut stream(&plugin)), 200);
}

/// Host calls and how many numbers they take, of those whose numbers all have 32 bits.
const CALLS: &[(&str, usize)] = &[
    ("log", 3),
    ("get_log_level", 1),
    ("get_current_time_nanoseconds", 1),
    ("set_tick_period_milliseconds", 1),
    ("get_buffer_bytes", 5),
    ("get_buffer_status", 3),
    ("set_buffer_bytes", 5),
    ("get_header_map_size", 2),
    ("get_header_map_pairs", 3),
    ("set_header_map_pairs", 3),
    ("get_header_map_value", 5),
    ("add_header_map_value", 5),
    ("replace_header_map_value", 5),
    ("remove_header_map_value", 3),
    ("continue_stream", 1),
    ("http_call", 10),
    ("grpc_call", 12),
    ("grpc_stream", 9),
    ("grpc_send", 4),
    ("grpc_cancel", 1),
    ("grpc_close", 1),
    ("get_status", 3),
    ("get_property", 4),
    ("set_property", 4),
    ("get_shared_data", 5),
    ("set_shared_data", 5),
    ("register_shared_queue", 3),
    ("resolve_shared_queue", 5),
    ("enqueue_shared_queue", 3),
    ("dequeue_shared_queue", 3),
    ("define_metric", 4),
    ("get_metric", 2),
    ("set_effective_context", 1),
    ("done", 0),
    ("call_foreign_function", 6),
    ("send_local_response", 8),
    ("close_stream", 1),
];

/// The same of WASI.
const WASI_CALLS: &[(&str, usize)] = &[
    ("fd_write", 4),
    ("fd_close", 1),
    ("fd_fdstat_get", 2),
    ("random_get", 2),
    ("environ_sizes_get", 2),
    ("environ_get", 2),
    ("args_sizes_get", 2),
    ("args_get", 2),
    ("poll_oneoff", 4),
    ("sched_yield", 0),
];

#[test]
fn no_number_that_a_module_passes_harms_the_host() {
    let all = CALLS
        .iter()
        .map(|(name, count)| ("env", format!("proxy_{name}"), *count));
    let wasi = WASI_CALLS
        .iter()
        .map(|(name, count)| ("wasi_snapshot_preview1", (*name).to_owned(), *count));
    let (mut imports, mut body) = (String::new(), String::new());
    for (space, name, count) in all.chain(wasi) {
        let parameters = "i32 ".repeat(count);
        imports += &format!("(import \"{space}\" \"{name}\" (func ${name} (param {parameters}) (result i32)))\n");
        for number in [0_i64, 1, 2, 7, 65_535, 65_536, 0x7fff_ffff, 0xffff_fff0, 0xffff_ffff] {
            let same = format!("(i32.const {number}) ").repeat(count);
            body += &format!("(drop (call ${name} {same}))\n");
            // A good number in all places but one.
            for place in 0..count {
                let numbers: String = (0..count)
                    .map(|at| format!("(i32.const {}) ", if at == place { number } else { 4 }))
                    .collect();
                body += &format!("(drop (call ${name} {numbers}))\n");
            }
        }
    }
    let module = format!(
        r#"(module {imports} (memory (export "memory") 1)
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 8))
          (func (export "proxy_on_vm_start") (param i32 i32) (result i32) {body} (i32.const 1))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {body} (i32.const 1)))"#
    );
    let generous = PluginConfig {
        limits: Limits {
            deadline: Duration::from_secs(10),
            start_deadline: Duration::from_secs(10),
            ..Limits::default()
        },
        ..config("{}")
    };
    let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), generous);
    plugin.canary().expect("every call answered");
    let step = stream(&plugin).on_request_headers(&mut get("/", &[]), true);
    assert!(matches!(step, Step::Reset | Step::Respond(_) | Step::Pause), "{step:?}");
    assert_eq!(plugin.stats().traps, 0);
}
