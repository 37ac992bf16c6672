//! What small host calls tell a module, byte for byte.

use tracing::{Event, Metadata, Subscriber, level_filters::LevelFilter, span};

use super::*;

/// Answers each request with what the host call answers, and with what that left at address 8.
fn asking(import: &str, call: &str) -> Module {
    let module = format!(
        r#"(module
          {import}
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "collector" "q" "nobody")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (i32.store (i32.const 0) {call})
            (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 0)
              (i32.const 0) (i32.const -1)))
            (i32.const 1)))"#
    );
    Module::compile(&text(&module)).expect("a filter")
}

/// Status and number.
fn told(plugin: &Plugin) -> (u32, u64) {
    let mut head = get("/a?b", &[("x-one", "1")]);
    let Step::Respond(response) = stream(plugin).on_request_headers(&mut head, true) else {
        panic!("no answer");
    };
    let body = response.body();
    let status = body[..4].try_into().expect("four bytes");
    let number = body[8..].try_into().expect("eight bytes");
    (u32::from_le_bytes(status), u64::from_le_bytes(number))
}

#[test]
fn the_size_of_a_map_is_that_of_its_names_and_values() {
    let import = r#"(import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))"#;
    let request = [
        (":authority", "cart"),
        (":path", "/a?b"),
        (":method", "GET"),
        (":scheme", "http"),
        ("x-one", "1"),
    ];
    let request = request.iter().map(|(name, value)| name.len() + value.len());
    for (map, expected) in [
        (0, (0, request.sum::<usize>() as u64)),
        // No trailers came, no answer, no metadata of a call.
        (1, (0, 0)),
        (2, (0, 0)),
        (4, (0, 0)),
        // There is no such map: a bad argument.
        (8, (2, 0)),
    ] {
        let module = asking(import, &format!("(call $size (i32.const {map}) (i32.const 8))"));
        assert_eq!(told(&plugin(&module, config(""))), expected, "{map}");
    }
}

/// Lets events down to a level pass.
struct DownTo(LevelFilter);

impl Subscriber for DownTo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn the_level_of_the_log_is_the_lowest_that_is_written() {
    let import = r#"(import "env" "proxy_get_log_level" (func $level (param i32) (result i32)))"#;
    let plugin = plugin(&asking(import, "(call $level (i32.const 8))"), config(""));
    for (level, number) in [
        (LevelFilter::TRACE, 0),
        (LevelFilter::DEBUG, 1),
        (LevelFilter::INFO, 2),
        (LevelFilter::WARN, 3),
        (LevelFilter::ERROR, 4),
    ] {
        let found = tracing::subscriber::with_default(DownTo(level), || told(&plugin));
        assert_eq!(found, (0, number), "{level}");
    }
}

#[test]
fn a_metric_is_read_as_it_was_written() {
    let imports = r#"(import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
        (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
        (import "env" "proxy_get_metric" (func $get (param i32 i32) (result i32)))"#;
    // A counter takes both, a gauge what was last recorded, a histogram has the sum of what was recorded.
    for (kind, expected) in [(0, (0, 12)), (1, (0, 5)), (2, (0, 5))] {
        let call = format!(
            "(block (result i32)
               (drop (call $define (i32.const {kind}) (i32.const 73) (i32.const 1) (i32.const 24)))
               (drop (call $increment (i32.load (i32.const 24)) (i64.const 7)))
               (drop (call $record (i32.load (i32.const 24)) (i64.const 5)))
               (call $get (i32.load (i32.const 24)) (i32.const 8)))"
        );
        let plugin = plugin(&asking(imports, &call), config(""));
        assert_eq!(told(&plugin), expected, "{kind}");
    }
    let plugin = plugin(&asking(imports, "(call $get (i32.const 7) (i32.const 8))"), config(""));
    assert_eq!(told(&plugin), (1, 0), "not found");
}

#[test]
fn a_queue_is_found_by_the_vm_that_registered_it_and_its_name() {
    let imports = r#"(import "env" "proxy_resolve_shared_queue" (func $resolve (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))"#;
    local(async {
        let services = Services::default();
        let start = |module: &Module, vm_id: &str| {
            let config = PluginConfig {
                vm_id: vm_id.into(),
                shares: Some("all".into()),
                ..config("")
            };
            module
                .plugin(config, &services, Arc::new(NoUpstreams))
                .expect("a plugin")
        };
        let collector = start(&Module::compile(&text(beside::BESIDE)).expect("a filter"), "collector");
        // Its instance registers the queue.
        drop(stream(&collector));
        let find = |vm_id: &str, name: &str| {
            let call = format!("(call $resolve {vm_id} {name} (i32.const 8))");
            told(&start(&asking(imports, &call), "other"))
        };
        let (collector_id, nobody) = ("(i32.const 64) (i32.const 9)", "(i32.const 74) (i32.const 6)");
        let queue = "(i32.const 73) (i32.const 1)";
        assert_eq!(find(nobody, queue), (1, 0), "not found");
        assert_eq!(find(collector_id, nobody), (1, 0), "not found");
        let (status, token) = find(collector_id, queue);
        assert_eq!(status, 0);
        let call = format!("(call $enqueue (i32.const {token}) (i32.const 73) (i32.const 1))");
        assert_eq!(told(&start(&asking(imports, &call), "other")), (0, 0));
        beside::until("the message", || beside::metric(&collector, "messages") == 1).await;
    });
}
