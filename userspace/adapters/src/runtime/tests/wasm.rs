//! Adapters as WebAssembly: real modules, as `cargo xtask build --filters` made them.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use http::{Request, request};

use super::*;
use crate::{
    record::{Destination, FlowProtocol, Peer},
    stream::{
        Direction, FilterFactory, FilterState, Step, StreamEnd, StreamFilter, StreamInfo, TcpFilter, TcpStep,
        TrafficDirection,
    },
    upstreams::NoUpstreams,
};

pub(super) fn module(name: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/wasm/{name}.wasm"));
    assert!(
        file.is_file(),
        "{} is missing: run `cargo xtask build --filters`",
        file.display()
    );
    file
}

/// A module written as text, in a folder that goes with the first.
pub(super) fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("filter.wasm");
    fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
    (folder, file)
}

pub(super) fn auth(wasm: &str, rest: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: auth, namespace: shop}}\n\
         spec: {{backend: wasm, target: {{services: [web]}}, wasm: {{{wasm}}}, {rest}}}\n"
    )
}

/// The filter of request number `id` to `web`.
pub(super) fn stream(chains: &Chains, id: u64) -> Option<Box<dyn StreamFilter>> {
    factory(chains)?.stream(&info(id))
}

/// The filter of connection number `id` to `web`.
pub(super) fn connection(chains: &Chains, id: u64) -> Option<Box<dyn TcpFilter>> {
    factory(chains)?.tcp(&info(id))
}

pub(super) fn factory(chains: &Chains) -> Option<Arc<dyn FilterFactory>> {
    let name = service("web");
    chains.of(Some(&name), Some(&name))?.filters.first().cloned()
}

pub(super) fn info(id: u64) -> Arc<StreamInfo> {
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    Arc::new(StreamInfo {
        id,
        connection: id,
        direction: TrafficDirection::Outbound,
        began: SystemTime::now(),
        source: Arc::new(Peer {
            namespace: "shop".into(),
            service: None,
            account: "client".into(),
        }),
        source_address: address,
        destination: Arc::new(Destination {
            namespace: "shop".into(),
            service: Some("web".into()),
            account: None,
            address: address.ip(),
            port: 80,
        }),
        original: address,
        protocol: FlowProtocol::Http,
        state: FilterState::default(),
    })
}

pub(super) fn head(headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().uri("/").header("host", "web");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// What a request of these headers is answered; 200: it passes.
pub(super) fn status(chains: &Chains, id: u64, headers: &[(&str, &str)]) -> u16 {
    let Some(mut filter) = stream(chains, id) else {
        return 200;
    };
    match filter.on_request_headers(&mut head(headers), true) {
        Step::Continue => 200,
        Step::Respond(response) => response.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

pub(super) const TOKEN: (&str, &str) = ("authorization", "Bearer s3cret");
pub(super) const PARAMS: &str = "params: {tokens: {s3cret: alice}}";

#[test]
fn an_unchanged_module_goes_on_and_one_that_cannot_run_leaves_it_in_force() {
    let mut world = World::new();
    let good = format!("module: {}", module("header-auth").display());
    let chains = world.apply("auth", &auth(&good, PARAMS));
    assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[TOKEN])), (401, 200));
    // Other priority, other object text: the same plugin.
    let chains = world.apply("auth", &auth(&good, &format!("{PARAMS}, priority: 3")));
    assert_eq!(status(&chains, 3, &[]), 401);
    assert_eq!(world.state("auth").generations[0].stats.streams, 3);

    for (wasm, params, problem) in [
        (
            "module: /nowhere.wasm".to_owned(),
            PARAMS,
            "read module `/nowhere.wasm`: No such file",
        ),
        ("module: /etc".to_owned(), PARAMS, "it is no regular file"),
        ("module: /etc/hostname".to_owned(), PARAMS, "not a WebAssembly module"),
        (good.clone(), "params: {}", "said no"),
        (
            format!("{good}, sha256: {}", "ab".repeat(32)),
            PARAMS,
            "and sha256:abababab",
        ),
    ] {
        let chains = world.apply("auth", &auth(&wasm, params));
        let state = world.state("auth");
        assert!(
            state.problem.as_ref().is_some_and(|found| found.contains(problem)) && state.earlier,
            "{wasm}: {state:?}"
        );
        assert_eq!(status(&chains, 4, &[]), 401, "{wasm}");
    }
    let chains = world.apply("auth", &auth(&good, PARAMS));
    let state = world.state("auth");
    assert_eq!((state.problem, state.generations[0].stats.traps), (None, 0));
    assert_eq!(status(&chains, 5, &[]), 401);
    assert_eq!(world.state("auth").generations[0].stats.streams, 9);

    let chains = world.apply("auth", "");
    assert_eq!(status(&chains, 6, &[]), 200);
}

#[test]
fn what_never_ran_is_decided_by_the_failure_policy() {
    let mut world = World::new();
    let chains = world.apply("auth", &auth("module: /nowhere.wasm", PARAMS));
    assert!(ask(&chains, "web").is_err());
    let chains = world.apply(
        "auth",
        &auth("module: /nowhere.wasm", &format!("{PARAMS}, failurePolicy: open")),
    );
    assert!(ask(&chains, "web").is_ok());
    assert!(!world.state("auth").earlier);
}

pub(super) fn generations(list: &[(&str, &str, &str)], rest: &str) -> String {
    let list: Vec<String> = list
        .iter()
        .map(|(name, filter, share)| format!("{{name: {name}, module: {}, {share}}}", module(filter).display()))
        .collect();
    auth(&format!("generations: [{}]", list.join(", ")), rest)
}

const TRAP: (&str, &str) = ("x-trap", "1");

/// Two generations, of which the newer has all requests and traps when it is asked to: once is enough, for a busy machine may
/// take longer than a look of the watcher for several.
fn trapping() -> String {
    let text = generations(
        &[("v1", "deny-path", "weight: 0"), ("v2", "trap", "weight: 100")],
        "params: {prefixes: [/never]}",
    );
    text.replace("generations:", "rollback: {failures: 1}, generations:")
}

/// Knows who was rolled back from there, and keeps it there.
fn keeping(kept: &Arc<Mutex<Vec<u8>>>) -> WasmHost {
    let (text, keep) = (kept.lock().unwrap().clone(), Arc::clone(kept));
    WasmHost::default().keeping(
        &text,
        Box::new(move |text| keep.lock().unwrap().clone_from(&text.to_vec())),
    )
}

#[test]
fn what_a_generation_fails_on_another_takes_and_the_bad_one_is_rolled_back_for_good() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let mut world = World::with(keeping(&kept));
    let chains = world.apply("auth", &trapping());
    assert_eq!(status(&chains, 1, &[]), 200);
    let seen = |world: &World| {
        let state = world.state("auth");
        let seen: Vec<_> = state.generations.iter().map(|found| found.stats.streams).collect();
        (seen, state.generations[1].rolled_back.is_some())
    };
    assert_eq!(seen(&world), (vec![0, 1], false));
    for id in 0..3 {
        assert_eq!(status(&chains, id, &[TRAP]), 200, "closed, but another one took it");
    }
    let state = world.state("auth");
    assert_eq!(
        state.generations[1].rolled_back.as_deref(),
        Some("failed on 1 requests within 1s"),
        "{state:?}"
    );
    assert_eq!(state.problem, None);
    assert_eq!(status(&chains, 9, &[TRAP]), 200);
    assert_eq!(seen(&world), (vec![4, 2], true));

    // Other weights are no reason to try it again, nor is another process.
    until("it is kept", || !kept.lock().unwrap().is_empty());
    let again = trapping().replace("weight: 0", "weight: 1");
    let chains = world.apply("auth", &again);
    assert_eq!(status(&chains, 10, &[]), 200);
    assert_eq!(seen(&world), (vec![5, 2], true));
    let mut other = World::with(keeping(&kept));
    let chains = other.apply("auth", &again);
    assert_eq!(status(&chains, 11, &[]), 200);
    assert_eq!(seen(&other), (vec![1, 0], true));

    let object = other.state("auth").object;
    other.runtime.restore(&object, ["v2"].into_iter()).unwrap();
    assert!(!seen(&other).1);
    assert_eq!(other.runtime.roll_back(&object, None).unwrap(), "v2");
    assert!(seen(&other).1);
    let alone = other.runtime.roll_back(&object, None).unwrap_err();
    assert!(alone.to_string().contains("no other generation"), "{alone}");
    let unknown = other.runtime.roll_back(&object, Some("v3")).unwrap_err();
    assert!(unknown.to_string().contains("but v1, v2"), "{unknown}");

    other.apply("auth", "");
    assert_eq!(*kept.lock().unwrap(), b"{}");
}

#[test]
fn generations_that_an_open_connection_keeps_judge_no_more() {
    let mut world = World::new();
    let text = generations(
        &[("v1", "trap", "weight: 50"), ("v2", "header-auth", "weight: 50")],
        PARAMS,
    );
    let earlier = world.apply("auth", &text);
    world.apply("auth", &text.replace("generations:", "rollback: manual, generations:"));
    for id in 0..1000 {
        status(&earlier, id, &[]);
    }
    // Others, whose look comes later than theirs would.
    let mut other = World::new();
    let chains = other.apply("auth", &text);
    rolled_back(&other, &chains, &[]);
    assert_eq!(world.state("auth").generations[1].rolled_back, None);
}

/// The watcher of rollbacks may be at its look when its adapter changes or goes.
#[test]
fn who_is_out_is_kept_by_those_in_force_alone() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let mut world = World::with(keeping(&kept));
    world.apply("auth", &trapping());
    let object = world.state("auth").object;
    let set = |world: &World| Arc::clone(world.runtime.generations(&object).unwrap().set());
    let first = set(&world);
    world.runtime.roll_back(&object, None).unwrap();
    let out = kept.lock().unwrap().clone();
    assert_ne!(out, b"");

    let other = trapping().replace("prefixes: [/never]", "prefixes: [/other]");
    world.apply("auth", &other);
    assert_eq!(*kept.lock().unwrap(), b"{}");
    first.record();
    assert_eq!(*kept.lock().unwrap(), b"{}");

    let second = set(&world);
    world.runtime.roll_back(&object, None).unwrap();
    assert_ne!(*kept.lock().unwrap(), b"{}");
    world.apply("auth", "");
    second.record();
    assert_eq!(*kept.lock().unwrap(), b"{}");
}

#[test]
fn under_reload_a_trap_fails_its_request_and_the_next_meets_a_new_instance() {
    let mut world = World::new();
    let trap = format!("module: {}", module("trap").display());
    let chains = world.apply("auth", &auth(&trap, "failurePolicy: reload"));
    assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[TRAP])), (200, 503));
    until("there is a new instance", || status(&chains, 3, &[]) == 200);
    assert_eq!(world.state("auth").generations[0].stats.traps, 1);
}

/// Why v2 of two is out, after as many requests as that takes, of these headers.
fn rolled_back(world: &World, chains: &Chains, headers: &[(&str, &str)]) -> String {
    let mut id = 0;
    let why = || world.state("auth").generations[1].rolled_back.clone();
    until("it is rolled back", || {
        for _ in 0..20 {
            id += 1;
            status(chains, id, headers);
        }
        why().is_some()
    });
    assert_eq!(world.state("auth").generations[0].rolled_back, None);
    why().unwrap()
}

#[test]
fn a_generation_that_denies_more_is_rolled_back() {
    let mut world = World::new();
    let text = generations(
        &[("v1", "trap", "weight: 50"), ("v2", "header-auth", "weight: 50")],
        PARAMS,
    );
    let chains = world.apply("auth", &text);
    let why = rolled_back(&world, &chains, &[]);
    assert_eq!(why, "answers 100% of the requests itself, those before it 0%");
    assert_eq!(status(&chains, 1, &[]), 200);
}

/// Never so many within a second that they are a burst.
#[test]
fn a_generation_that_fails_at_a_low_rate_is_rolled_back() {
    let mut world = World::new();
    let text = generations(
        &[("v1", "deny-path", "weight: 90"), ("v2", "trap", "weight: 10")],
        "params: {prefixes: [/never]}",
    );
    let text = text.replace(
        "generations:",
        "rollback: {failures: 1000000, slowerPercent: 1000000}, generations:",
    );
    let chains = world.apply("auth", &text);
    let why = rolled_back(&world, &chains, &[TRAP]);
    assert!(
        why.starts_with("fails on ") && why.ends_with("those before it on 0%"),
        "{why}"
    );
}

/// Traps at its first tick, and lets requests pass before.
pub(super) const TICKS: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.eqz (call $tick (i32.const 1))))
  (func (export "proxy_on_tick") (param i32) unreachable))"#;

#[test]
fn a_generation_that_fails_at_ticks_is_rolled_back() {
    let (_folder, file) = written(TICKS);
    let mut world = World::new();
    let text = generations(
        &[("v1", "deny-path", "weight: 50"), ("v2", "trap", "weight: 50")],
        "params: {prefixes: [/never]}",
    );
    let text = text
        .replace(module("trap").to_str().unwrap(), file.to_str().unwrap())
        .replace("generations:", "rollback: {failures: 1000000}, generations:");
    let chains = world.apply("auth", &text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    let asked = async {
        let mut id = 0;
        while world.state("auth").generations[1].rolled_back.is_none() {
            for _ in 0..20 {
                id += 1;
                assert_eq!(status(&chains, id, &[]), 200);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let asked = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), asked).await });
    let state = world.state("auth");
    assert!(asked.is_ok(), "{state:?}");
    let why = state.generations[1].rolled_back.clone().unwrap_or_default();
    assert!(why.starts_with("fails on "), "{why}");
}

#[test]
fn a_shadow_changes_nothing_and_is_compared() {
    let mut world = World::new();
    let text = generations(
        &[("v1", "trap", "weight: 1"), ("v2", "header-auth", "shadow: true")],
        PARAMS,
    );
    let chains = world.apply("auth", &text);
    for (id, headers) in [(1, &[][..]), (2, &[TOKEN]), (3, &[])] {
        let mut filter = stream(&chains, id).unwrap();
        let mut head = head(headers);
        assert!(matches!(filter.on_request_headers(&mut head, true), Step::Continue));
        assert!(!head.headers.contains_key("x-user"), "{head:?}");
        filter.on_end(&StreamEnd {
            status: 200,
            duration: Duration::from_millis(1),
            request_bytes: 0,
            response_bytes: 0,
            failure: None,
        });
    }
    let state = world.state("auth");
    let [v1, v2] = &*state.generations else {
        panic!("{state:?}")
    };
    assert_eq!((v1.stats.streams, v1.stats.local_responses), (3, 0));
    assert_eq!((v2.stats.streams, v2.stats.local_responses, v2.disagreed), (3, 2, 2));
    // What can trap may also see the copies.
    let text = generations(
        &[("v1", "header-auth", "weight: 1"), ("v2", "trap", "shadow: true")],
        PARAMS,
    );
    let chains = world.apply("auth", &text);
    assert_eq!(status(&chains, 4, &[TRAP]), 401);
    assert_eq!(world.state("auth").generations[1].stats.traps, 1);
}

/// A filter on connections: what it does at a new one, and with the client's bytes.
pub(super) fn tcp(connection: &str, data: &str) -> String {
    format!(
        r#"(module
          (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
          (memory (export "memory") 1)
          (global $bytes (mut i32) (i32.const 0))
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "proxy_on_new_connection") (param i32) (result i32) {connection})
          (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32) {data}))"#
    )
}

pub(super) const PASSES: &str = "(i32.const 0)";
const TRAPS: &str = "unreachable";
const HOLDS_TWO: &str = "(i32.le_u (local.get 1) (i32.const 2))";
const CLOSES_AFTER_FOUR: &str = "(global.set $bytes (i32.add (global.get $bytes) (local.get 1)))
    (if (i32.gt_u (global.get $bytes) (i32.const 4)) (then (drop (call $close (i32.const 2)))))
    (i32.const 0)";

/// Generations v1, v2, ... of filters on connections.
pub(super) fn tcp_generations(folder: &Path, list: &[(&str, &str)], rest: &str) -> String {
    auth(
        &format!("protocols: [tcp], {rest} {}", texts(folder, list)),
        "params: {}",
    )
}

/// Generations v1, v2, ... of these texts and shares, in this folder.
pub(super) fn texts(folder: &Path, list: &[(&str, &str)]) -> String {
    let write = |(at, (text, share)): (usize, &(&str, &str))| {
        let file = folder.join(format!("v{}.wasm", at + 1));
        fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
        format!("{{name: v{}, module: {}, {share}}}", at + 1, file.display())
    };
    let list: Vec<String> = list.iter().enumerate().map(write).collect();
    format!("generations: [{}]", list.join(", "))
}

#[test]
fn a_shadow_of_connections_sees_every_byte_once_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let (holds, closes) = (tcp(PASSES, HOLDS_TWO), tcp(PASSES, CLOSES_AFTER_FOUR));
    let list = [(holds.as_str(), "weight: 1"), (closes.as_str(), "shadow: true")];
    let chains = world.apply("auth", &tcp_generations(folder.path(), &list, ""));
    let mut filter = connection(&chains, 1).unwrap();
    assert_eq!(filter.on_connection(), TcpStep::Continue);
    let mut data = BytesMut::from("ab");
    let mut client = |data: &mut BytesMut| filter.on_data(Direction::Downstream, data, false);
    assert_eq!(client(&mut data), TcpStep::Pause);
    data.extend_from_slice(b"cd");
    assert_eq!(client(&mut data), TcpStep::Continue);
    assert_eq!(data, "abcd");
    filter.on_end();
    let disagreed = |world: &World| world.state("auth").generations[1].disagreed;
    assert_eq!(disagreed(&world), 0, "it saw four bytes");

    let mut filter = connection(&chains, 2).unwrap();
    assert_eq!(filter.on_connection(), TcpStep::Continue);
    assert_eq!(
        filter.on_data(Direction::Downstream, &mut BytesMut::from("efg"), true),
        TcpStep::Continue
    );
    filter.on_end();
    assert_eq!(disagreed(&world), 1, "it would have closed");
    assert_eq!(world.state("auth").generations[1].stats.streams, 2);
}

#[test]
fn a_connection_that_a_generation_fails_on_is_anothers_and_the_bad_one_is_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let (passes, traps) = (tcp(PASSES, PASSES), tcp(TRAPS, PASSES));
    let list = [(passes.as_str(), "weight: 0"), (traps.as_str(), "weight: 100")];
    let text = tcp_generations(folder.path(), &list, "rollback: {failures: 1},");
    let chains = world.apply("auth", &text);
    for id in 0..2 {
        assert_eq!(connection(&chains, id).unwrap().on_connection(), TcpStep::Continue);
    }
    let state = world.state("auth");
    let [v1, v2] = &*state.generations else {
        panic!("{state:?}")
    };
    assert!(v2.rolled_back.is_some() && v1.rolled_back.is_none(), "{state:?}");
    assert_eq!((v1.stats.streams, v2.stats.traps), (2, 1));
}

#[test]
fn one_of_several_that_cannot_run_gets_nothing() {
    let mut world = World::new();
    let text = generations(
        &[("v1", "header-auth", "weight: 1"), ("v2", "trap", "weight: 1000")],
        PARAMS,
    );
    let chains = world.apply("auth", &text.replace("trap.wasm", "nothing.wasm"));
    for id in 0..20 {
        assert_eq!(status(&chains, id, &[]), 401);
    }
    let state = world.state("auth");
    assert_eq!((state.problem.clone(), state.earlier), (None, false), "{state:?}");
    assert!(
        state.generations[1]
            .problem
            .as_ref()
            .is_some_and(|why| why.contains("nothing.wasm")),
        "{state:?}"
    );
}

/// Counts requests, sets a gauge to -7 (0 - 7) and records 3 in a histogram, at each.
const MEASURES: &str = r#"(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "seen \"twice\"lagsize")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 0) (i32.const 12) (i32.const 512)))
    (drop (call $define (i32.const 1) (i32.const 12) (i32.const 3) (i32.const 516)))
    (drop (call $define (i32.const 2) (i32.const 15) (i32.const 4) (i32.const 520)))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1)))
    (drop (call $record (i32.load (i32.const 516)) (i64.const 0)))
    (drop (call $increment (i32.load (i32.const 516)) (i64.const -7)))
    (call $record (i32.load (i32.const 520)) (i64.const 3))))"#;

#[test]
fn what_modules_measure_is_on_the_metrics_page() {
    let host = WasmHost::default();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(host.metrics()));
    let mut world = World::with(host);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("measures.wasm");
    fs::write(&file, wat::parse_str(MEASURES).unwrap()).unwrap();
    let chains = world.apply("auth", &auth(&format!("module: {}", file.display()), "params: {}"));
    assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[])), (200, 200));
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    let of = |metric: &str| format!(r#"{{adapter="shop/auth",metric="{metric}""#);
    for line in [
        format!("weft_adapter_counter_total{}}} 2\n", of(r#"seen \"twice\""#)),
        format!("weft_adapter_gauge{}}} -7\n", of("lag")),
        format!("weft_adapter_histogram_sum{}}} 6.0\n", of("size")),
        format!("weft_adapter_histogram_count{}}} 2\n", of("size")),
        format!(
            r#"weft_adapter_histogram_bucket{{le="1.0",adapter="shop/auth",metric="size"}} 0{}"#,
            "\n"
        ),
        format!(
            r#"weft_adapter_histogram_bucket{{le="5.0",adapter="shop/auth",metric="size"}} 2{}"#,
            "\n"
        ),
        format!(
            r#"weft_adapter_histogram_bucket{{le="+Inf",adapter="shop/auth",metric="size"}} 2{}"#,
            "\n"
        ),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

/// Counts its starts.
const STARTS: &str = r#"(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "starts")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 512)))
    (i32.eqz (call $increment (i32.load (i32.const 512)) (i64.const 1)))))"#;

#[test]
fn no_start_is_made_only_to_try() {
    let workers = NonZeroUsize::new(3).unwrap();
    let host = WasmHost::new(|_| Arc::new(NoUpstreams), workers);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(host.metrics()));
    let mut world = World::with(host);
    let (_folder, file) = written(STARTS);
    let chains = world.apply("auth", &auth(&format!("module: {}", file.display()), "params: {}"));
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    let starts = "weft_adapter_counter_total{adapter=\"shop/auth\",metric=\"starts\"} 3\n";
    assert!(page.contains(starts), "one a worker: {page}");
    assert_eq!(status(&chains, 1, &[]), 200);
}

#[test]
fn generations_are_on_the_metrics_page() {
    let host = WasmHost::default();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(host.metrics()));
    let mut world = World::with(host);
    let chains = world.apply("auth", &trapping());
    status(&chains, 1, &[]);
    status(&chains, 2, &[TRAP]);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    for line in [
        "weft_adapter_generation_streams_total{adapter=\"shop/auth\",generation=\"v2\"} 2",
        "weft_adapter_generation_streams_total{adapter=\"shop/auth\",generation=\"v1\"} 1",
        "weft_adapter_generation_traps_total{adapter=\"shop/auth\",generation=\"v2\"} 1",
        "weft_adapter_generation_deadlines_total{adapter=\"shop/auth\",generation=\"v2\"} 0",
        "weft_adapter_generation_memory_refusals_total{adapter=\"shop/auth\",generation=\"v2\"} 0",
        "weft_adapter_generation_refused_calls_total{adapter=\"shop/auth\",generation=\"v2\"} 0",
        "weft_adapter_generation_unfit_headers_total{adapter=\"shop/auth\",generation=\"v2\"} 0",
        "weft_adapter_generation_weight{adapter=\"shop/auth\",generation=\"v2\"} 100",
        "weft_adapter_generation_rolled_back{adapter=\"shop/auth\",generation=\"v1\"} 0",
        "weft_adapter_generation_memory_bytes{adapter=\"shop/auth\",generation=\"v1\"}",
        "weft_adapter_generation_callback_seconds_total{adapter=\"shop/auth\",generation=\"v1\"}",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    drop(chains);
    drop(world);
    // The watcher may be looking at them.
    until("they are gone from the page", || {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        !page.contains("weft_adapter_generation")
    });
}

#[test]
fn a_module_is_one_generation_and_a_closed_adapter_never_looks_away() {
    let mut world = World::new();
    let good = module("header-auth").display().to_string();
    let other = tempfile::tempdir().unwrap();
    let gone = other.path().join("v1.wasm");
    // Another module, by a section that says nothing.
    let mut bytes = fs::read(module("header-auth")).unwrap();
    bytes.extend([0, 2, 1, b'x']);
    fs::write(&gone, bytes).unwrap();
    let two = |first: &str| {
        format!("generations: [{{name: v1, module: {first}, weight: 0}}, {{name: v2, module: {good}, weight: 100}}]")
    };
    world.apply("auth", &auth(&two(&good), PARAMS));
    let twin = world.state("auth").problem.unwrap_or_default();
    assert!(twin.contains("generation `v1` is this module already"), "{twin}");

    world.apply("auth", &auth(&two(&gone.display().to_string()), PARAMS));
    let object = world.state("auth").object;
    assert_eq!(world.runtime.roll_back(&object, None).unwrap(), "v2");
    // The one that took over cannot be read any more: the one that is out looks, rather than nobody.
    fs::remove_file(&gone).unwrap();
    let chains = world.apply(
        "auth",
        &auth(&two(&gone.display().to_string()), &format!("{PARAMS}, priority: 1")),
    );
    assert_eq!(status(&chains, 1, &[]), 401);
    assert!(
        world.state("auth").generations[1].rolled_back.is_some(),
        "it is remembered"
    );
}
