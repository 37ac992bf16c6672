//! What is refused, what starts, what harms only itself.

use std::{thread, time::Instant};

use super::*;
use crate::{
    stream::{Lent, TcpStep},
    wasm::engine::thread_time,
};

fn refused(bytes: &[u8]) -> String {
    Module::compile(bytes).expect_err("it is no filter").to_string()
}

/// Why a plugin does not start.
fn fails(module: &Module, config: PluginConfig) -> String {
    plugin(module, config)
        .canary()
        .expect_err("it does not start")
        .to_string()
}

#[test]
fn garbage_is_refused_saying_what_it_is() {
    for bytes in [&b""[..], b"no module at all", b"\0asm", b"\0asm\x01\0\0\0\xff"] {
        let error = refused(bytes);
        assert!(error.starts_with("not a WebAssembly module: "), "{error}");
    }
    let error = refused(&text("(module)"));
    assert!(error.contains("proxy_abi_version_0_2_1"), "{error}");
    let marker = r#"(func (export "proxy_abi_version_0_2_1"))"#;
    let error = refused(&text(&format!("(module {marker})")));
    assert!(error.starts_with("export `memory`: "), "{error}");
    let memory = r#"(memory (export "memory") 1)"#;
    let import = r#"(import "env" "proxy_teleport" (func))"#;
    let error = refused(&text(&format!("(module {import} {memory} {marker})")));
    assert!(error.starts_with("imports `env.proxy_teleport`, which"), "{error}");
    let import = r#"(import "env" "proxy_log" (func (param i64)))"#;
    let error = refused(&text(&format!("(module {import} {memory} {marker})")));
    assert!(error.contains("proxy_log"), "{error}");
}

#[test]
fn versions_are_told_by_their_markers() {
    for (version, marker) in [
        (AbiVersion::V0_1_0, "proxy_abi_version_0_1_0"),
        (AbiVersion::V0_2_0, "proxy_abi_version_0_2_0"),
        (AbiVersion::V0_2_1, "proxy_abi_version_0_2_1"),
        (AbiVersion::V0_2_100, "proxy_abi_version_0_2_100"),
    ] {
        let bytes = text(&format!(
            r#"(module (memory (export "memory") 1) (func (export "{marker}")))"#
        ));
        let module = Module::compile(&bytes).expect("a filter");
        assert_eq!(module.abi(), version);
        assert_eq!(module.digest(), Digest::of(&bytes));
        plugin(&module, config("")).canary().expect("it has nothing to start");
    }
}

#[test]
fn a_configuration_that_is_refused_says_why() {
    let module = filter("header-auth");
    plugin(&module, config(r#"{"tokens": {"s": "alice"}}"#))
        .canary()
        .expect("a good configuration");
    let error = fails(&module, config("{}"));
    assert!(
        error.starts_with("proxy_on_configure said no; the module says: "),
        "{error}"
    );
    assert!(error.contains("missing field `tokens`"), "{error}");
}

#[test]
fn a_start_that_traps_loops_or_eats_is_an_error() {
    let module = |body: &str| {
        let bytes = text(&format!(
            r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
               (func (export "proxy_on_vm_start") (param i32 i32) (result i32) {body}))"#
        ));
        Module::compile(&bytes).expect("a filter")
    };
    let short = |memory| PluginConfig {
        limits: Limits {
            start_deadline: Duration::from_millis(20),
            memory,
            ..Limits::default()
        },
        ..config("")
    };
    let error = fails(&module("unreachable"), config(""));
    assert!(
        error.starts_with("proxy_on_vm_start: ") && error.contains("unreachable"),
        "{error}"
    );
    let error = fails(&module("(loop (br 0)) (i32.const 1)"), short(DEFAULT_MEMORY));
    assert_eq!(error, "proxy_on_vm_start: used more than 20 ms of CPU time");
    let eats = "(i32.ne (memory.grow (i32.const 16)) (i32.const -1))";
    plugin(&module(eats), short(2 << 20))
        .canary()
        .expect("it may have two megabytes");
    let error = fails(&module(eats), short(1 << 20));
    assert_eq!(error, "proxy_on_vm_start said no");
    let error = fails(&module("(i32.const 1)"), short(1024));
    assert!(error.starts_with("instantiate: "), "{error}");
}

#[test]
fn what_a_request_leaves_behind_is_found_by_the_next_one_of_its_instance_alone() {
    // Goes on once, and holds everybody after that.
    let bytes = text(
        r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
           (global $asked (mut i32) (i32.const 0))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (global.get $asked) (global.set $asked (i32.const 1))))"#,
    );
    let module = Module::compile(&bytes).expect("a filter");
    let worker = plugin(&module, config(""));
    goes_on(stream(&worker).on_request_headers(&mut get("/", &[]), true));
    waits(stream(&worker).on_request_headers(&mut get("/", &[]), true));
    assert_eq!(worker.stats().instances, 1);

    let alone = PluginConfig {
        instances: Instances::Stream,
        ..config("")
    };
    let alone = plugin(&module, alone);
    alone.prepare(2).expect("it starts");
    alone.warm();
    assert_eq!(alone.stats().instances, 0, "none waits for anybody");
    let (mut one, mut other) = (stream(&alone), stream(&alone));
    goes_on(one.on_request_headers(&mut get("/", &[]), true));
    goes_on(other.on_request_headers(&mut get("/", &[]), true));
    assert_eq!(alone.stats().instances, 2);
    one.on_end(&end());
    drop((one, other));
    let stats = alone.stats();
    assert_eq!((stats.instances, stats.streams), (0, 2));
}

#[test]
fn a_trap_harms_the_requests_in_there_and_nobody_else() {
    let trapping = plugin(&filter("trap"), config(""));
    trapping.prepare(2).expect("it starts");
    let other = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "alice"}}"#));
    let mut before = stream(&trapping);
    goes_on(before.on_request_headers(&mut get("/", &[]), true));
    let mut elsewhere = stream(&other);

    let mut victim = stream(&trapping);
    let (status, body) = answered(victim.on_request_headers(&mut get("/", &[("x-trap", "1")]), true));
    assert_eq!((status, &*body), (503, "adapter test failed\n"));
    let (status, _) = answered(before.on_response_headers(&mut ok(), true));
    assert_eq!(status, 503, "it was in the same instance");
    before.on_end(&end());

    let mut after = stream(&trapping);
    goes_on(after.on_request_headers(&mut get("/", &[]), true));
    goes_on(elsewhere.on_request_headers(&mut get("/", &[("authorization", "Bearer s")]), true));
    let stats = trapping.stats();
    assert_eq!((stats.traps, stats.deadlines, stats.failed_streams), (1, 0, 2));
    assert_eq!(other.stats().traps, 0);
}

#[test]
fn a_failed_instance_is_gone_though_a_request_in_it_goes_on() {
    let plugin = plugin(&filter("trap"), config(""));
    let mut open = stream(&plugin);
    goes_on(open.on_request_headers(&mut get("/", &[]), true));
    let victim = stream(&plugin).on_request_headers(&mut get("/", &[("x-trap", "1")]), true);
    assert_eq!(answered(victim).0, 503);
    let stats = plugin.stats();
    assert_eq!((stats.instances, stats.memory), (0, 0));
    assert_eq!(answered(open.on_response_headers(&mut ok(), true)).0, 503);
    open.on_end(&end());
}

#[test]
fn open_lets_requests_pass_when_the_filter_fails() {
    let open = PluginConfig {
        failure: FailurePolicy::Open,
        ..config("")
    };
    let plugin = plugin(&filter("trap"), open);
    let mut victim = stream(&plugin);
    let mut head = get("/a?b", &[("x-trap", "1")]);
    let same = head.headers.clone();
    goes_on(victim.on_request_headers(&mut head, true));
    assert_eq!(head.headers, same);
    assert_eq!(head.uri, "/a?b");
    goes_on(victim.on_response_headers(&mut ok(), true));
    assert_eq!(plugin.stats().failed_streams, 1);
}

#[test]
fn an_answer_holds_though_the_filter_fails_after_it() {
    // Denies, or closes a connection, and traps; a held request it denies with a tick.
    let bytes = text(
        r#"(module
             (import "env" "proxy_send_local_response"
               (func $deny (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
             (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
             (import "env" "proxy_set_effective_context" (func $about (param i32) (result i32)))
             (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
             (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
             (func $no (drop (call $deny (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0)
               (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))))
             (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
               ;; One more header than the others have.
               (if (i32.eq (local.get 1) (i32.const 5)) (then
                 (drop (call $period (i32.const 1)))
                 (return (i32.const 1))))
               (call $no) unreachable)
             (func (export "proxy_on_tick") (param i32)
               (drop (call $about (i32.const 2))) (call $no) unreachable)
             (func (export "proxy_on_new_connection") (param i32) (result i32)
               (drop (call $close (i32.const 2))) unreachable))"#,
    );
    let module = Module::compile(&bytes).expect("a filter");
    for failure in [FailurePolicy::Open, FailurePolicy::Closed] {
        let plugin = plugin(&module, PluginConfig { failure, ..config("") });
        let mut denied = stream(&plugin);
        let (status, _) = answered(denied.on_request_headers(&mut get("/", &[]), true));
        assert_eq!((status, denied.has_failed()), (403, true));
        local(async {
            let mut held = stream(&plugin);
            let mut head = get("/", &[("x-held", "1")]);
            waits(held.on_request_headers(&mut head, true));
            let step = std::future::poll_fn(|cx| held.poll_resume(cx, Lent::RequestHeaders(&mut head))).await;
            assert_eq!((answered(step).0, held.has_failed()), (403, true));
        });
        let mut closed = plugin.tcp(&info()).expect("a filter");
        assert_eq!(closed.on_connection(), TcpStep::Reset);
        assert_eq!(plugin.stats().failed_streams, 3);
    }
}

#[test]
fn a_request_that_is_over_before_the_module_saw_anything_of_it_calls_nothing() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "alice"}}"#));
    plugin.warm();
    let before = plugin.stats();
    stream(&plugin).on_end(&end());
    drop(stream(&plugin));
    let stats = plugin.stats();
    assert_eq!((stats.callbacks, stats.streams), (before.callbacks, 2));
    goes_on(stream(&plugin).on_request_headers(&mut get("/", &[("authorization", "Bearer s")]), true));
    assert!(plugin.stats().callbacks > before.callbacks);
}

#[test]
fn a_context_that_cannot_be_created_fails_its_request_at_the_head() {
    // Of the plugin's own, it is no trap.
    let bytes = text(
        r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
           (func (export "proxy_on_context_create") (param i32 i32)
             (if (i32.ne (local.get 0) (i32.const 1)) (then unreachable))))"#,
    );
    let module = Module::compile(&bytes).expect("a filter");
    let closed = plugin(&module, config(""));
    let mut victim = stream(&closed);
    let (status, body) = answered(victim.on_request_headers(&mut get("/", &[]), true));
    assert_eq!(
        (status, &*body, victim.has_failed()),
        (503, "adapter test failed\n", true)
    );
    victim.on_end(&end());

    let open = PluginConfig {
        failure: FailurePolicy::Open,
        ..config("")
    };
    let open = plugin(&module, open);
    let mut passed = stream(&open);
    let mut head = get("/a?b", &[("x-mine", "1")]);
    let same = head.headers.clone();
    goes_on(passed.on_request_headers(&mut head, true));
    goes_on(passed.on_response_headers(&mut ok(), true));
    assert_eq!((head.headers, passed.has_failed()), (same, true));
    for plugin in [closed, open] {
        let stats = plugin.stats();
        assert_eq!((stats.traps, stats.streams, stats.failed_streams), (1, 1, 1));
    }
}

#[test]
fn an_endless_loop_is_ended_after_its_deadline() {
    let plugin = plugin(&filter("loop"), config(""));
    plugin.prepare(2).expect("it starts");
    let (status, _) = answered(stream(&plugin).on_request_headers(&mut get("/", &[("x-loop", "1")]), true));
    assert_eq!(status, 503);
    goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
    let stats = plugin.stats();
    assert_eq!((stats.traps, stats.deadlines), (1, 1));
}

#[test]
fn memory_ends_at_the_limit_and_the_next_instance_is_small_again() {
    let limited = PluginConfig {
        limits: Limits {
            memory: 8 << 20,
            deadline: Duration::from_secs(5),
            ..Limits::default()
        },
        ..config("")
    };
    let plugin = plugin(&filter("eat"), limited);
    plugin.prepare(2).expect("it starts");
    let (status, _) = answered(stream(&plugin).on_request_headers(&mut get("/", &[("x-eat", "1")]), true));
    assert_eq!(status, 503);
    goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
    let stats = plugin.stats();
    assert!(stats.memory_refusals > 0, "{stats:?}");
    assert_eq!((stats.traps, stats.deadlines), (1, 0));
    assert!(stats.memory / stats.instances < 4 << 20, "{stats:?}");
}

#[test]
fn a_plugin_that_does_not_start_answers_as_its_policy_says() {
    let module = filter("header-auth");
    let closed = plugin(&module, config("{}"));
    assert_eq!(
        answered(stream(&closed).on_request_headers(&mut get("/", &[]), true)).0,
        503
    );
    let open = PluginConfig {
        failure: FailurePolicy::Open,
        ..config("{}")
    };
    assert!(plugin(&module, open).stream(&info()).is_none());
    assert!(closed.prepare(1).is_err());
}

#[test]
fn prepared_instances_are_taken_by_workers() {
    let plugin = plugin(&filter("header-auth"), config(r#"{"tokens": {"s": "alice"}}"#));
    plugin.prepare(2).expect("it starts");
    let stats = plugin.stats();
    assert_eq!((stats.instances, stats.streams), (2, 0));
    let (callbacks, time) = (stats.callbacks, stats.callback_time);
    assert!(time > Duration::ZERO, "of the starts");
    goes_on(stream(&plugin).on_request_headers(&mut get("/", &[("authorization", "Bearer s")]), true));
    let stats = plugin.stats();
    assert_eq!(stats.streams, 1);
    assert!(stats.callbacks > callbacks && stats.callback_time > time);
}

#[test]
fn what_compilers_add_needs_no_capability() {
    let bytes = text(
        r#"(module (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
             (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
             (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
               (call $abort (i32.const 0) (i32.const 0) (i32.const 3) (i32.const 4)) (i32.const 1)))"#,
    );
    let none = PluginConfig {
        capabilities: Capabilities::Only(Default::default()),
        ..config("")
    };
    let error = fails(&Module::compile(&bytes).expect("a filter"), none);
    assert_eq!(error, "proxy_on_vm_start: aborted at line 3, column 4");
}

#[test]
fn what_is_not_allowed_answers_an_error_and_is_counted() {
    // Ends itself if it may log.
    let bytes = text(
        r#"(module (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
             (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
             (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
               (call $log (i32.const 2) (i32.const 0) (i32.const 0))))"#,
    );
    let module = Module::compile(&bytes).expect("a filter");
    let quiet = PluginConfig {
        capabilities: Capabilities::Only(Default::default()),
        ..config("")
    };
    let quiet = plugin(&module, quiet);
    quiet.canary().expect("the error is not zero");
    assert_eq!(quiet.stats().refused_calls, 1);
    let error = fails(&module, config(""));
    assert_eq!(error, "proxy_on_vm_start said no");
}

#[test]
fn a_slow_start_is_not_made_on_the_worker() {
    // Starts for a while, and fails on each request.
    let bytes = text(
        r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
           (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (local $turns i32)
             (loop $more
               (local.set $turns (i32.add (local.get $turns) (i32.const 1)))
               (br_if $more (i32.lt_u (local.get $turns) (i32.const 50000000))))
             (i32.const 1))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable))"#,
    );
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), config(""));
    let began = thread_time();
    plugin.prepare(1).expect("it starts");
    let start = thread_time() - began;
    assert!(start > Duration::from_millis(5), "{start:?}");
    let fails = || {
        assert_eq!(
            answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true)).0,
            503
        )
    };
    let began = thread_time();
    for _ in 0..20 {
        fails();
    }
    let spent = thread_time() - began;
    assert!(
        spent < start / 2,
        "{spent:?} of this thread's time, of {start:?} for one start"
    );
    // Meanwhile the next one is made.
    let began = Instant::now();
    while plugin.stats().traps < 3 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", plugin.stats());
        thread::sleep(Duration::from_millis(1));
        fails();
    }
}
