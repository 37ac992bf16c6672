//! Calls to services over HTTP.

use std::{
    cell::Cell,
    future::poll_fn,
    sync::{Mutex, mpsc},
};

use http::HeaderMap;
use http_body_util::{BodyExt, Full};

use super::*;
use crate::{
    stream::Lent,
    upstreams::{CallError, CallProtocol, Calling},
};

/// What reached a service: name, head, body.
pub(super) type Seen = (String, request::Parts, Bytes);

/// How a service answers: head, body, trailers. `None`: never.
pub(super) type Answer = Option<(Response<()>, Bytes, HeaderMap)>;

/// One service, `authz`, that answers everything the same.
pub(super) struct Service {
    answer: Mutex<Answer>,
    seen: Mutex<mpsc::Sender<Seen>>,
}

impl Upstreams for Service {
    fn knows(&self, upstream: &str) -> bool {
        upstream == "authz"
    }

    fn call(&self, upstream: &str, request: Request<crate::CallBody>, protocol: CallProtocol) -> Calling {
        let answer = self.answer.lock().expect("no panic").clone();
        let seen = self.seen.lock().expect("no panic").clone();
        let upstream = upstream.to_owned();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            assert_eq!(protocol == CallProtocol::Grpc, head.headers.contains_key("te"));
            let body = body.collect().await?.to_bytes();
            let _ = seen.send((upstream.clone(), head, body));
            let Some((head, body, trailers)) = answer else {
                return std::future::pending().await;
            };
            if head.status() == 599 {
                return Err(CallError::NoEndpoint { upstream });
            }
            let body = Full::new(body).map_err(|never| match never {});
            Ok(head.map(|()| body.with_trailers(async { Some(Ok(trailers)) }).boxed_unsync()))
        })
    }
}

pub(super) fn service(answer: Answer) -> (Arc<Service>, mpsc::Receiver<Seen>) {
    let (sender, seen) = mpsc::channel();
    let service = Service {
        answer: Mutex::new(answer),
        seen: Mutex::new(sender),
    };
    (Arc::new(service), seen)
}

pub(super) fn status(status: u16) -> Answer {
    let head = Response::builder().status(status).header("x-level", "gold");
    Some((head.body(()).expect("a head"), Bytes::from("why"), HeaderMap::new()))
}

/// What becomes of a request that the filter holds.
pub(super) async fn resumed(filter: &mut dyn StreamFilter, head: &mut request::Parts) -> Step {
    poll_fn(|cx| filter.poll_resume(cx, Lent::RequestHeaders(head))).await
}

const ASK: &str = r#"{"upstream": "authz", "path": "/ask", "ask_headers": ["x-token"], "answer_headers": ["x-level"], "timeout_ms": 20}"#;

#[test]
fn an_answer_lets_the_request_go_with_what_it_says() {
    local(async {
        let (authz, seen) = service(status(200));
        let plugin = plugin_with(&filter("call-out"), config(ASK), authz);
        let mut filter = stream(&plugin);
        let mut head = get("/", &[("x-token", "t"), ("x-level", "forged")]);
        waits(filter.on_request_headers(&mut head, true));
        goes_on(resumed(&mut *filter, &mut head).await);
        assert_eq!(head.headers["x-level"], "gold");
        let (upstream, asked, _) = seen.try_recv().expect("the service was asked");
        assert_eq!(upstream, "authz");
        assert_eq!(asked.uri, "http://authz/ask");
        assert_eq!(asked.headers["x-token"], "t");
        assert!(seen.try_recv().is_err(), "once");
        filter.on_end(&end());
        assert_eq!((plugin.stats().call_outs, plugin.stats().traps), (1, 0));
    });
}

#[test]
fn a_no_a_failure_and_silence_deny() {
    for answer in [status(403), status(599), None] {
        local(async {
            let (authz, _seen) = service(answer);
            let plugin = plugin_with(&filter("call-out"), config(ASK), authz);
            let mut filter = stream(&plugin);
            let mut head = get("/", &[]);
            waits(filter.on_request_headers(&mut head, true));
            assert_eq!(answered(resumed(&mut *filter, &mut head).await).0, 403);
            assert_eq!(plugin.stats().traps, 0);
        });
    }
}

#[test]
fn nobody_is_called_whom_the_operator_or_the_mesh_does_not_name() {
    local(async {
        let (authz, seen) = service(status(200));
        let other = ASK.replace("\"authz\"", "\"elsewhere\"");
        let plugin = plugin_with(&filter("call-out"), config(&other), authz.clone());
        let (status, _) = answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        assert_eq!(status, 403);
        let nobody = PluginConfig {
            may_call: MayCall::Only(Default::default()),
            ..config(ASK)
        };
        let plugin = plugin_with(&filter("call-out"), nobody, authz);
        let (status, _) = answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        assert_eq!((status, plugin.stats().refused_calls), (403, 1));
        assert!(seen.try_recv().is_err());
    });
}

#[test]
fn an_answer_for_a_request_that_is_gone_reaches_nobody() {
    local(async {
        let (authz, seen) = service(status(200));
        let plugin = plugin_with(&filter("call-out"), config(ASK), authz);
        let mut gone = stream(&plugin);
        waits(gone.on_request_headers(&mut get("/", &[]), true));
        gone.on_end(&end());
        drop(gone);
        let mut filter = stream(&plugin);
        let mut head = get("/", &[]);
        waits(filter.on_request_headers(&mut head, true));
        goes_on(resumed(&mut *filter, &mut head).await);
        assert_eq!(plugin.stats().traps, 0);
        assert_eq!(
            seen.try_iter().count(),
            1,
            "the first call was cancelled before it began"
        );
    });
}

/// A module that has what an HTTP call to `authz` needs, and `more`. `$call` takes the length of the body.
fn caller(more: &str) -> Module {
    caller_with("", more)
}

/// The same with further imports.
fn caller_with(imports: &str, more: &str) -> Module {
    let module = format!(
        r#"(module
          (import "env" "proxy_http_call"
            (func $http (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_grpc_cancel" (func $cancel (param i32) (result i32)))
          {imports}
          (memory (export "memory") 32)
          (data (i32.const 0) "authz")
          (data (i32.const 16) "\03\00\00\00" "\07\00\00\00\03\00\00\00" "\05\00\00\00\01\00\00\00"
            "\0a\00\00\00\05\00\00\00" ":method\00GET\00" ":path\00/\00" ":authority\00authz\00")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func $call (param i32) (result i32)
            (call $http (i32.const 0) (i32.const 5) (i32.const 16) (i32.const 65) (i32.const 1024) (local.get 0)
              (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 512)))
          {more})"#
    );
    Module::compile(&text(&module)).expect("a filter")
}

#[test]
fn the_calls_of_an_instance_that_goes_are_ended() {
    local(async {
        let (authz, seen) = service(None);
        let module = caller(
            r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.eqz (call $call (i32.const 0))))"#,
        );
        let calls = Arc::downgrade(&authz);
        let plugin = plugin_with(&module, config(""), authz);
        drop(stream(&plugin));
        beside::until("the call", || seen.try_recv().is_ok()).await;
        drop(plugin);
        beside::until("nobody calls", || calls.strong_count() == 0).await;
    });
}

#[test]
fn what_a_plugin_flushes_at_its_end_arrives() {
    local(async {
        let (authz, seen) = service(status(200));
        let module = caller_with(
            r#"(import "env" "proxy_done" (func $done (result i32)))"#,
            r#"(func (export "proxy_on_done") (param i32) (result i32)
                 (if (i32.ne (local.get 0) (i32.const 1)) (then (return (i32.const 1))))
                 (i32.ne (call $call (i32.const 3)) (i32.const 0)))
               (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
                 (if (call $done) (then unreachable)))"#,
        );
        let plugin = plugin_with(&module, config(""), authz);
        drop(stream(&plugin));
        let metrics = Arc::downgrade(plugin.metrics());
        drop(plugin);
        let began = std::time::Instant::now();
        beside::until("the instance is gone", || metrics.strong_count() == 0).await;
        assert!(began.elapsed() < Duration::from_secs(4), "it went when it was done");
        assert_eq!(seen.try_iter().map(|(_, _, body)| body.len()).collect::<Vec<_>>(), [3]);
    });
}

#[test]
fn a_call_that_is_cancelled_where_it_was_made_is_not_made() {
    local(async {
        let (authz, seen) = service(None);
        let module = caller(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                 (if (call $call (i32.const 0)) (then unreachable))
                 (call $cancel (i32.load (i32.const 512))))"#,
        );
        let plugin = plugin_with(&module, config(""), authz);
        let mut filter = stream(&plugin);
        // More than may be under way.
        for _ in 0..1100 {
            goes_on(filter.on_request_headers(&mut get("/", &[]), true));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!((seen.try_iter().count(), plugin.stats().traps), (0, 0));
    });
}

#[test]
fn a_body_that_is_too_long_is_no_call() {
    local(async {
        let (authz, seen) = service(status(200));
        // 2: a bad argument.
        let module = caller(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                 (if (i32.ne (call $call (i32.const 1048577)) (i32.const 2)) (then unreachable))
                 (if (call $call (i32.const 1048576)) (then unreachable))
                 (i32.const 0))"#,
        );
        let plugin = plugin_with(&module, config(""), authz);
        let mut filter = stream(&plugin);
        goes_on(filter.on_request_headers(&mut get("/", &[]), true));
        let sent = Cell::new(None);
        beside::until("the call", || {
            sent.set(seen.try_recv().ok().map(|(_, _, body)| body.len()));
            sent.get().is_some()
        })
        .await;
        assert_eq!((sent.get(), plugin.stats().call_outs), (Some(1 << 20), 1));
    });
}

/// Calls with a body of 1 MiB, and holds the request if it may.
fn large_calls() -> Module {
    caller(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (i32.eqz (call $call (i32.const 1048576))))"#,
    )
}

#[test]
fn calls_under_way_are_bounded_by_their_bytes() {
    local(async {
        let (authz, _seen) = service(None);
        let plugin = plugin_with(&large_calls(), config(""), authz);
        let mut filters: Vec<_> = (0..20).map(|_| stream(&plugin)).collect();
        let mut waiting = filters
            .iter_mut()
            .map(|filter| matches!(filter.on_request_headers(&mut get("/", &[]), true), Step::Pause));
        assert_eq!(waiting.by_ref().take_while(|waits| *waits).count(), 15);
        filters.clear();
        tokio::time::sleep(Duration::from_millis(5)).await;
        waits(stream(&plugin).on_request_headers(&mut get("/", &[]), true));
        assert_eq!(plugin.stats().traps, 0);
    });
}

#[test]
fn answers_that_do_not_fit_into_the_bound_are_none() {
    local(async {
        let head = Response::builder().status(200).body(()).expect("a head");
        let large = Some((head, Bytes::from(vec![0; 1 << 20]), HeaderMap::new()));
        let (authz, _seen) = service(large);
        // Holds the request until an answer is there, and says how many bytes that has.
        let module = caller_with(
            r#"(import "env" "proxy_send_local_response"
                 (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#,
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                 (i32.eqz (call $call (i32.const 0))))
               (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
                 (drop (call $respond (select (i32.const 200) (i32.const 504) (local.get 3)) (i32.const 0) (i32.const 0)
                   (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))))"#,
        );
        let plugin = plugin_with(&module, config(""), authz);
        let mut filters: Vec<_> = (0..20).map(|_| stream(&plugin)).collect();
        let mut heads: Vec<_> = (0..20).map(|_| get("/", &[])).collect();
        for (filter, head) in filters.iter_mut().zip(&mut heads) {
            waits(filter.on_request_headers(head, true));
        }
        // The answers wait for the requests to be looked at again.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut answers = [0, 0];
        for (filter, head) in filters.iter_mut().zip(&mut heads) {
            let (status, _) = answered(resumed(&mut **filter, head).await);
            answers[usize::from(status == 504)] += 1;
        }
        assert_eq!(answers, [15, 5]);
        assert_eq!(plugin.stats().traps, 0);
    });
}
