//! Generations that keep requests waiting.

use std::{future::poll_fn, time::Duration};

use bytes::BytesMut;

use super::{
    wasm::{PASSES, auth, connection, head, stream, tcp, tcp_generations, texts},
    *,
};
use crate::stream::{Lent, Step, StreamFilter, TcpStep};

/// So many streams at most that are held for the test: beyond, the waits of those that there are grow.
const MOST: u64 = 5000;

/// A filter that answers so at the request's head, and with its body: 1 is to hold it.
fn answering(head: u32, body: u32) -> String {
    format!(
        r#"(module
          (memory (export "memory") 1)
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const {head}))
          (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const {body})))"#
    )
}

/// Holds each request until its next tick.
fn ticking(milliseconds: u32) -> String {
    format!(
        r#"(module
          (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
          (import "env" "proxy_set_effective_context" (func $context (param i32) (result i32)))
          (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
          (memory (export "memory") 1)
          (global $next (mut i32) (i32.const 2))
          (global $last (mut i32) (i32.const 1))
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
            (i32.eqz (call $tick (i32.const {milliseconds}))))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $last (local.get 0))
            (i32.const 1))
          (func (export "proxy_on_tick") (param i32)
            (loop $more
              (if (i32.le_u (global.get $next) (global.get $last)) (then
                (drop (call $context (global.get $next)))
                (drop (call $continue (i32.const 0)))
                (global.set $next (i32.add (global.get $next) (i32.const 1)))
                (br $more))))))"#
    )
}

/// Why each generation is out.
fn out(world: &World) -> Vec<Option<String>> {
    let state = world.state("auth");
    state.generations.into_iter().map(|found| found.rolled_back).collect()
}

fn keeps_waiting(why: Option<&String>) -> bool {
    why.is_some_and(|why| why.starts_with("keeps a request waiting for "))
}

/// A request of which the client has sent no more than a part of its body; `None`: its head is held.
fn sending(chains: &Chains, id: u64) -> (Box<dyn StreamFilter>, Option<BytesMut>) {
    let mut filter = stream(chains, id).unwrap();
    if matches!(filter.on_request_headers(&mut head(&[]), false), Step::Pause) {
        return (filter, None);
    }
    let mut body = BytesMut::from("abc");
    _ = filter.on_request_body(&mut body, false);
    (filter, Some(body))
}

#[test]
fn what_a_generation_holds_is_shown_where_it_is_one_of_several() {
    let folder = tempfile::tempdir().unwrap();
    let host = WasmHost::default();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(host.metrics()));
    let page = || {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    };
    let held = |number| format!("weft_adapter_generation_held{{adapter=\"shop/auth\",generation=\"v2\"}} {number}\n");
    let mut world = World::with(host);
    let (passes, holds) = (answering(0, 0), answering(1, 0));
    let list = [(passes.as_str(), "weight: 0"), (holds.as_str(), "weight: 100")];
    let chains = world.apply("auth", &auth(&texts(folder.path(), &list), "params: {}"));
    let waiting = |world: &World, at: usize| world.state("auth").generations[at].waiting.unwrap();
    let filters = [sending(&chains, 1), sending(&chains, 2)];
    let now = waiting(&world, 1);
    assert_eq!((now.requests, now.held), (2, 2));
    assert!(waiting(&world, 1).time > now.time, "they wait on");
    assert!(page().contains(&held(2)), "{}", page());
    drop(filters);
    let over = waiting(&world, 1);
    assert_eq!((over.requests, over.held), (2, 0));
    assert!(over.time > now.time && waiting(&world, 1) == over, "{over:?} {now:?}");
    assert!(page().contains(&held(0)), "{}", page());
    let waited = "weft_adapter_generation_wait_seconds_total{adapter=\"shop/auth\",generation=\"v2\"}";
    assert!(page().contains(waited), "{}", page());
    let other = waiting(&world, 0);
    assert_eq!((other.requests, other.held, other.time), (0, 0, Duration::ZERO));

    // Alone it is not measured, which does not read as if nobody waited.
    let file = folder.path().join("alone.wasm");
    fs::write(&file, wat::parse_str(&holds).unwrap()).unwrap();
    world.apply("auth", &auth(&format!("module: {}", file.display()), "params: {}"));
    let alone = world.state("auth").generations;
    assert_eq!((alone.len(), alone[0].waiting), (1, None));
    assert!(!page().contains("weft_adapter_generation_held{"), "{}", page());
}

#[test]
fn what_a_generation_holds_counts_but_not_while_its_sender_still_sends() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let (passes, bodies, heads) = (answering(0, 0), answering(0, 1), answering(1, 0));
    let list = [
        (passes.as_str(), "weight: 40"),
        (bodies.as_str(), "weight: 40"),
        (heads.as_str(), "weight: 20"),
    ];
    let chains = world.apply("auth", &auth(&texts(folder.path(), &list), "params: {}"));
    let mut requests = Vec::new();
    let mut id = 0;
    until("who holds heads is rolled back", || {
        for _ in 0..20 {
            if id < MOST {
                id += 1;
                requests.push(sending(&chains, id));
            }
        }
        out(&world)[2].is_some()
    });
    let why = out(&world);
    assert!(keeps_waiting(why[2].as_ref()), "{why:?}");
    assert_eq!((&why[0], &why[1]), (&None, &None), "bodies are still coming");

    let send_rest = |(filter, body): &mut (Box<dyn StreamFilter>, Option<BytesMut>)| {
        if let Some(body) = body {
            body.extend_from_slice(b"def");
            _ = filter.on_request_body(body, true);
        }
    };
    requests.iter_mut().for_each(send_rest);
    until("who holds bodies is rolled back", || {
        for _ in 0..20 {
            if id < 2 * MOST {
                id += 1;
                let mut request = sending(&chains, id);
                send_rest(&mut request);
                requests.push(request);
            }
        }
        out(&world)[1].is_some()
    });
    let why = out(&world);
    assert!(keeps_waiting(why[1].as_ref()) && why[0].is_none(), "{why:?}");
}

/// A request through its filter, held or not.
async fn passes(mut filter: Box<dyn StreamFilter>) {
    let mut head = head(&[]);
    let mut step = filter.on_request_headers(&mut head, true);
    if matches!(step, Step::Pause) {
        step = poll_fn(|cx| filter.poll_resume(cx, Lent::RequestHeaders(&mut head))).await;
    }
    assert!(matches!(step, Step::Continue), "{step:?}");
}

#[test]
fn a_generation_that_is_much_slower_is_rolled_back_and_one_as_slow_as_those_before_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    // Two that are made of the same are refused.
    let (slow, as_slow, slower) = (ticking(10), ticking(11), ticking(100));
    let list = [
        (slow.as_str(), "weight: 40"),
        (as_slow.as_str(), "weight: 40"),
        (slower.as_str(), "weight: 20"),
    ];
    let chains = world.apply("auth", &auth(&texts(folder.path(), &list), "params: {}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let asked = async {
        let mut id = 0;
        while out(&world)[2].is_none() {
            let mut requests = Vec::new();
            for _ in 0..100 {
                id += 1;
                requests.push(tokio::task::spawn_local(passes(stream(&chains, id).unwrap())));
            }
            for request in requests {
                request.await.unwrap();
            }
        }
    };
    let asked = tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), asked).await
    });
    let state = world.state("auth");
    assert!(asked.is_ok(), "{state:?}");
    let why = out(&world);
    assert!(keeps_waiting(why[2].as_ref()), "{why:?}");
    // They were compared too: the last one waits for as many requests of these.
    assert_eq!((&why[0], &why[1]), (&None, &None));
    assert!(
        state.generations.iter().all(|found| found.stats.streams >= 200),
        "{state:?}"
    );
}

#[test]
fn a_generation_that_holds_connections_is_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let (passes, holds) = (tcp(PASSES, PASSES), tcp("(i32.const 1)", PASSES));
    let list = [(passes.as_str(), "weight: 50"), (holds.as_str(), "weight: 50")];
    let chains = world.apply("auth", &tcp_generations(folder.path(), &list, ""));
    let mut connections = Vec::new();
    let mut id = 0;
    until("who holds them is rolled back", || {
        for _ in 0..20 {
            if id < MOST {
                id += 1;
                let mut filter = connection(&chains, id).unwrap();
                let step = filter.on_connection();
                assert!(matches!(step, TcpStep::Continue | TcpStep::Pause), "{step:?}");
                connections.push(filter);
            }
        }
        out(&world)[1].is_some()
    });
    let why = out(&world);
    assert!(keeps_waiting(why[1].as_ref()) && why[0].is_none(), "{why:?}");
}
