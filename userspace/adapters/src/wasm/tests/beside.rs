//! What happens beside requests: ticks, queues, the end of a plugin.

use std::time::Instant;

use super::*;

/// Counts ticks and messages of its queue `q`, into which each request puts one.
pub(super) const BESIDE: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
  (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "ticksmessagesqm")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 512)))
    (drop (call $define (i32.const 0) (i32.const 5) (i32.const 8) (i32.const 516)))
    (drop (call $register (i32.const 13) (i32.const 1) (i32.const 520)))
    (drop (call $tick (i32.const 1)))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1))))
  (func (export "proxy_on_queue_ready") (param i32 i32)
    (if (call $dequeue (local.get 1) (i32.const 524) (i32.const 528)) (then unreachable))
    (drop (call $increment (i32.load (i32.const 516)) (i64.const 1))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $enqueue (i32.load (i32.const 520)) (i32.const 14) (i32.const 1))))"#;

/// Value of a metric that the filter defined.
pub(super) fn metric(plugin: &Plugin, name: &str) -> i64 {
    value(plugin.metrics(), name)
}

fn value(metrics: &Metrics, name: &str) -> i64 {
    let metrics = metrics.all();
    let found = metrics.iter().find(|(found, _)| **found == *name);
    found.map_or(0, |(_, metric)| metric.value())
}

/// Lets tasks run until `ready`.
pub(super) async fn until(what: &str, ready: impl Fn() -> bool) {
    let waiting = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn ticks_come_before_any_request_where_a_plugin_is_in_force() {
    local(async {
        let module = Module::compile(&text(BESIDE)).expect("a filter");
        let plugin = plugin(&module, config(""));
        plugin.prepare(1).expect("it starts");
        plugin.warm();
        until("ticks", || metric(&plugin, "ticks") >= 2).await;
        // One at work, and one in stock in its place.
        until("it is restocked", || plugin.stats().instances == 2).await;
        // It stays in force.
        plugin.warm();
        assert_eq!(plugin.stats().instances, 2);
    });
}

#[test]
fn ticks_come_and_queues_are_told() {
    local(async {
        let module = Module::compile(&text(BESIDE)).expect("a filter");
        let plugin = plugin(&module, config(""));
        plugin.prepare(2).expect("it starts");
        goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        until("a message", || metric(&plugin, "messages") == 1).await;
        until("ticks", || metric(&plugin, "ticks") >= 3).await;
        assert_eq!(plugin.stats().traps, 0);
    });
}

/// Computes for some milliseconds at each tick, and asks for one each millisecond.
const BUSY: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (i32.eqz (call $tick (i32.const 1))))
  (func (export "proxy_on_tick") (param i32) (local $turns i32)
    (drop (call $tick (i32.const 1)))
    (loop $more
      (local.set $turns (i32.add (local.get $turns) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $turns) (i32.const 5000000))))))"#;

#[test]
fn ticks_leave_the_worker_to_others() {
    local(async {
        let generous = PluginConfig {
            limits: Limits {
                deadline: Duration::from_secs(1),
                ..Limits::default()
            },
            ..config("")
        };
        let plugin = plugin(&Module::compile(&text(BUSY)).expect("a filter"), generous);
        drop(stream(&plugin));
        let (began, before) = (Instant::now(), plugin.stats());
        until("ticks", || plugin.stats().callbacks >= before.callbacks + 10).await;
        let after = plugin.stats();
        let spent = after.callback_time - before.callback_time;
        // With the rest that follows the last of them.
        until("one more", || plugin.stats().callbacks > after.callbacks).await;
        let took = began.elapsed();
        assert!(spent * 4 < took, "{spent:?} of {took:?}");
    });
}

#[test]
fn a_queue_that_is_never_empty_leaves_the_worker_to_others() {
    let (done, others) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        local(async {
            let again = "(drop (call $enqueue (local.get 1) (i32.const 14) (i32.const 1)))
                (drop (call $increment (i32.load (i32.const 516))";
            let busy = BESIDE.replace("(drop (call $increment (i32.load (i32.const 516))", again);
            let plugin = plugin(&Module::compile(&text(&busy)).expect("a filter"), config(""));
            goes_on(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
            until("messages", || metric(&plugin, "messages") > 10).await;
            done.send(plugin.stats().traps).expect("somebody waits");
        });
    });
    assert_eq!(others.recv_timeout(Duration::from_secs(20)), Ok(0));
}

#[test]
fn a_dropped_plugin_ends_its_instances_but_not_the_requests_in_them() {
    local(async {
        let module = Module::compile(&text(BESIDE)).expect("a filter");
        let old = plugin(&module, config(""));
        let mut last = stream(&old);
        goes_on(last.on_request_headers(&mut get("/", &[]), true));
        let metrics = Arc::downgrade(old.metrics());
        drop(old);
        goes_on(last.on_response_headers(&mut ok(), true));
        last.on_end(&end());
        drop(last);
        until("the instance is gone", || metrics.strong_count() == 0).await;
    });
}

/// Counts what is called at the end of a context. Ticks each millisecond, and is done after the third of these.
const END: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (import "env" "proxy_done" (func $done (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "donelogdelete")
  (global $left (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func $count (param i32) (drop (call $increment (i32.load (local.get 0)) (i64.const 1))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 512)))
    (drop (call $define (i32.const 0) (i32.const 4) (i32.const 3) (i32.const 516)))
    (drop (call $define (i32.const 0) (i32.const 7) (i32.const 6) (i32.const 520)))
    (i32.eqz (call $tick (i32.const 1))))
  (func (export "proxy_on_tick") (param i32)
    (if (global.get $left) (then
      (global.set $left (i32.sub (global.get $left) (i32.const 1)))
      (if (i32.eqz (global.get $left)) (then (if (call $done) (then unreachable)))))))
  (func (export "proxy_on_done") (param i32) (result i32)
    (if (i32.ne (local.get 0) (i32.const 1)) (then (return (i32.const STREAM))))
    (call $count (i32.const 512))
    (global.set $left (i32.const LEFT))
    (i32.const ROOT))
  (func (export "proxy_on_log") (param i32) (call $count (i32.const 516)))
  (func (export "proxy_on_delete") (param i32) (call $count (i32.const 520))))"#;

/// What was counted when the plugin and its instance are gone, after one request: done of the plugin's own context, log and
/// delete of all.
async fn ended(module: &str, during: impl AsyncFnOnce(&dyn Fn(&str) -> i64)) -> (i64, i64, i64) {
    let plugin = plugin(&Module::compile(&text(module)).expect("a filter"), config(""));
    let defined = plugin.metrics().clone();
    let count = |name: &str| value(&defined, name);
    let mut last = stream(&plugin);
    goes_on(last.on_request_headers(&mut get("/", &[]), true));
    drop(plugin);
    during(&count).await;
    last.on_end(&end());
    drop(last);
    until("the instance is gone", || Arc::strong_count(&defined) == 1).await;
    (count("done"), count("log"), count("delete"))
}

#[test]
fn the_plugins_context_ends_after_the_last_request() {
    local(async {
        let module = END.replace("STREAM", "1").replace("LEFT", "0").replace("ROOT", "1");
        let counted = ended(&module, async |count: &dyn Fn(&str) -> i64| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(count("done"), 0, "a request is in there");
        });
        // As in Envoy, only streams are logged.
        assert_eq!(counted.await, (1, 1, 2));
    });
}

#[test]
fn a_request_that_its_module_has_not_seen_yet_keeps_the_instance() {
    local(async {
        let module = END.replace("STREAM", "1").replace("LEFT", "0").replace("ROOT", "1");
        let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), config(""));
        let defined = plugin.metrics().clone();
        let (mut last, unseen) = (stream(&plugin), stream(&plugin));
        drop(plugin);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(value(&defined, "done"), 0, "requests are in there");
        goes_on(last.on_request_headers(&mut get("/", &[]), true));
        drop(last);
        drop(unseen);
        until("the instance is gone", || Arc::strong_count(&defined) == 1).await;
        let counted = ["done", "log", "delete"].map(|name| value(&defined, name));
        assert_eq!(counted, [1, 1, 2], "of the other one it knows nothing");
    });
}

#[test]
fn the_plugins_context_may_flush_and_say_when_it_is_done() {
    local(async {
        let module = END.replace("STREAM", "1").replace("LEFT", "3").replace("ROOT", "0");
        let began = Instant::now();
        assert_eq!(ended(&module, async |_: &dyn Fn(&str) -> i64| ()).await, (1, 1, 2));
        assert!(began.elapsed() < Duration::from_secs(4), "it did not wait for long");
    });
}

#[test]
fn contexts_that_are_never_done_end_with_the_plugin() {
    local(async {
        let module = END.replace("STREAM", "0").replace("LEFT", "0").replace("ROOT", "0");
        assert_eq!(ended(&module, async |_: &dyn Fn(&str) -> i64| ()).await, (1, 1, 2));
    });
}
