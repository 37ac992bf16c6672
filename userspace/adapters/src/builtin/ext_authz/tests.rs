use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use http::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::runtime;

use self::service::{Answer, Service};
use super::{
    proto::{
        Address, AppendAction, AttributeContext, BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse,
        HeaderValueOption, HttpRequest, HttpResponse, HttpStatus, OkHttpResponse, Peer, Request, SocketAddress, Status,
        Timestamp, TlsSession,
    },
    *,
};
use crate::{attribute::tests::with_bag, pipeline::HeaderOperation, tls::tests::Pki};

mod messages;
pub(crate) mod service;

fn adapter(config: serde_json::Value) -> ExtAuthz {
    let config = serde_json::from_value(config).unwrap();
    ExtAuthz::new("authz", config, None, &CheckMetrics::default()).unwrap()
}

/// Asks as workers do: on a runtime of one thread, which stays the same for all `asks`.
fn with_runtime<T>(body: impl FnOnce(&runtime::Runtime) -> T) -> T {
    body(&runtime::Builder::new_current_thread().enable_all().build().unwrap())
}

fn ask_in(runtime: &runtime::Runtime, adapter: &ExtAuthz, generation: u64, headers: &[(&str, &str)]) -> CheckResult {
    with_bag(headers, |bag| {
        let bag = Bag { generation, ..bag };
        runtime.block_on(async {
            match adapter.check(&bag) {
                Checking::Ready(result) => result,
                Checking::Pending(answer) => answer.await,
            }
        })
    })
}

fn ask(adapter: &ExtAuthz, headers: &[(&str, &str)]) -> CheckResult {
    with_runtime(|runtime| ask_in(runtime, adapter, 1, headers))
}

fn allow() -> CheckResponse {
    CheckResponse {
        status: Some(Status::default()),
        http_response: None,
    }
}

fn status(code: i32, message: &str) -> Option<Status> {
    Some(Status {
        code,
        message: message.to_owned(),
    })
}

fn option(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(proto::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append: append.map(|value| BoolValue { value }),
        append_action,
    }
}

fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn map(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn the_service_is_told_everything_about_a_request() {
    let service = Service::start(|_| Answer::Say(allow()));
    let adapter = service.adapter(json!({"context_extensions": {"realm": "shop"}}));
    let before = SystemTime::now();
    let headers = [
        ("x-request-id", "r-1"),
        ("Content-Length", "12"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ];
    assert_eq!(ask(&adapter, &headers), CheckResult::Allow);
    let mut told = service.last();
    let request = told.request.as_mut().unwrap();
    let time = request.time.take().unwrap();
    let since = before.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((since..since + 60).contains(&time.seconds.try_into().unwrap()));
    let peer = |address: Option<(&str, u32)>, service: &str, principal: &str| {
        Some(Peer {
            address: address.map(|(address, port)| Address {
                socket_address: Some(SocketAddress {
                    address: address.to_owned(),
                    port_value: Some(port),
                }),
            }),
            service: service.to_owned(),
            principal: principal.to_owned(),
        })
    };
    let expect = AttributeContext {
        source: peer(None, "", "spiffe://cluster.local/ns/default/sa/client"),
        destination: peer(
            Some(("240.240.0.1", 80)),
            "web",
            "spiffe://cluster.local/ns/shop/sa/web",
        ),
        request: Some(Request {
            time: None,
            http: Some(HttpRequest {
                id: "r-1".to_owned(),
                method: "GET".to_owned(),
                headers: map(&[
                    (":method", "GET"),
                    (":path", "/a/b?c=d"),
                    (":authority", "web"),
                    ("x-request-id", "r-1"),
                    ("content-length", "12"),
                    ("x-a", "1,2"),
                    ("cookie", "a=1; b=2"),
                ]),
                path: "/a/b?c=d".to_owned(),
                host: "web".to_owned(),
                scheme: "http".to_owned(),
                size: 12,
            }),
        }),
        context_extensions: map(&[("realm", "shop")]),
        tls_session: None,
    };
    assert_eq!(told, expect);
    assert_eq!(*service.seen.timeouts.lock().unwrap(), [Some("20000m".to_owned())]);
}

#[test]
fn headers_that_are_not_allowed_stay_here() {
    let service = Service::start(|_| Answer::Say(allow()));
    let adapter = service.adapter(json!({"allowed_headers": ["X-A"], "trust_domain": "example.org"}));
    ask(&adapter, &[("x-a", "1"), ("authorization", "secret")]);
    let told = service.last();
    let http = told.request.unwrap().http.unwrap();
    assert_eq!(
        http.headers,
        map(&[
            (":method", "GET"),
            (":path", "/a/b?c=d"),
            (":authority", "web"),
            ("x-a", "1")
        ])
    );
    assert_eq!(http.size, -1);
    assert_eq!(
        told.source.unwrap().principal,
        "spiffe://example.org/ns/default/sa/client"
    );
}

#[test]
fn an_allowed_request_carries_what_the_service_says() {
    let ok = OkHttpResponse {
        headers: vec![option("x-set", "1", None, 0), option("x-more", "2", Some(true), 0)],
        headers_to_remove: vec!["x-secret".to_owned()],
        response_headers_to_add: vec![
            option("x-1", "1", None, AppendAction::AppendIfExistsOrAdd as i32),
            option("x-2", "2", None, AppendAction::AddIfAbsent as i32),
            option("x-3", "3", None, AppendAction::OverwriteIfExistsOrAdd as i32),
            option("x-4", "4", None, AppendAction::OverwriteIfExists as i32),
            option("x-5", "5", Some(false), 0),
        ],
    };
    let service = Service::start(move |_| {
        Answer::Say(CheckResponse {
            status: None,
            http_response: Some(HttpResponse::Ok(ok.clone())),
        })
    });
    let CheckResult::AllowWith(directives) = ask(&service.adapter(json!({})), &[]) else {
        panic!("it is allowed with changes");
    };
    let ((set, one), (more, two)) = (header("x-set", "1"), header("x-more", "2"));
    assert_eq!(
        directives.request,
        [
            HeaderOperation::Replace(set, one),
            HeaderOperation::Append(more, two),
            HeaderOperation::Remove(HeaderName::from_static("x-secret")),
        ]
    );
    // What that makes of an answer that has all but the second.
    let mut answer: HeaderMap = [1, 3, 5]
        .map(|n| {
            (
                format!("x-{n}").parse::<HeaderName>().unwrap(),
                HeaderValue::from_static("old"),
            )
        })
        .into_iter()
        .collect();
    for operation in &directives.response {
        operation.apply(&mut answer);
    }
    let values = |name: &str| -> Vec<_> { answer.get_all(name).iter().map(|v| v.to_str().unwrap()).collect() };
    assert_eq!(
        ["x-1", "x-2", "x-3", "x-4", "x-5"].map(values),
        [vec!["old", "1"], vec!["2"], vec!["3"], vec![], vec!["5"]]
    );
}

#[test]
fn a_denial_is_told_with_status_headers_and_body() {
    let service = Service::start(|request| {
        let headers = &request
            .attributes
            .as_ref()
            .unwrap()
            .request
            .as_ref()
            .unwrap()
            .http
            .as_ref()
            .unwrap()
            .headers;
        let response = headers.get("x-bare").is_none().then(|| {
            HttpResponse::Denied(DeniedHttpResponse {
                status: Some(HttpStatus { code: 302 }),
                headers: vec![option("location", "/login", None, 0)],
                body: "please log in".to_owned(),
            })
        });
        Answer::Say(CheckResponse {
            status: status(16, "not logged in"),
            http_response: response,
        })
    });
    let adapter = service.adapter(json!({}));
    let (location, login) = header("location", "/login");
    let mut expect = Deny::new(302, "not logged in").with_header(location, login);
    expect.body = Some("please log in".into());
    assert_eq!(ask(&adapter, &[]), CheckResult::Deny(Box::new(expect)));
    let bare = Deny::new(403, "not logged in");
    assert_eq!(ask(&adapter, &[("x-bare", "")]), CheckResult::Deny(Box::new(bare)));
    assert_eq!(adapter.outage.failures.get(), 0);
}

/// Also where the failure policy is open.
#[test]
fn what_is_unfit_about_a_denial_is_left_out() {
    for (code, expect) in [(404, 404), (0, 403), (200, 403), (-1, 403), (70_000, 403)] {
        let service = Service::start(move |_| {
            Answer::Say(CheckResponse {
                status: status(7, "no"),
                http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
                    status: Some(HttpStatus { code }),
                    headers: vec![
                        option("a b", "1", None, 0),
                        option("x-a", "1\r\nx-b: 2", None, 0),
                        option("Transfer-Encoding", "chunked", None, 0),
                        option("x-why", "7", None, 0),
                    ],
                    body: String::new(),
                })),
            })
        });
        let adapter = service.adapter(json!({"failure_policy": "open"}));
        let (why, seven) = header("x-why", "7");
        let expect = Deny::new(expect, "no").with_header(why, seven);
        assert_eq!(ask(&adapter, &[]), CheckResult::Deny(Box::new(expect)), "{code}");
        assert_eq!(adapter.outage.failures.get(), 0);
    }
}

#[test]
fn where_there_is_no_verdict_the_failure_policy_applies() {
    let failed = |adapter: &ExtAuthz| {
        let result = ask(adapter, &[]);
        assert_eq!(adapter.outage.failures.get(), 1);
        result
    };
    let denied = Some(Box::new(Deny::new(503, UNAVAILABLE)));
    let policies = [
        ("open", CheckResult::Unjudged(None)),
        ("closed", CheckResult::Unjudged(denied)),
    ];
    for (policy, expect) in &policies {
        let config = json!({"address": "127.0.0.1:1", "failure_policy": policy, "status_on_error": 503});
        assert_eq!(failed(&adapter(config)), *expect, "nobody listens");
    }
    let ok = |options: Vec<HeaderValueOption>, removed: &[&str]| {
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        HttpResponse::Ok(OkHttpResponse {
            headers: options,
            headers_to_remove: removed,
            response_headers_to_add: Vec::new(),
        })
    };
    let denial = |code| {
        HttpResponse::Denied(DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            ..DeniedHttpResponse::default()
        })
    };
    let no_verdicts = [
        (0, HttpResponse::Error(DeniedHttpResponse::default())),
        (0, denial(403)),
        (0, ok(vec![option("a b", "1", None, 0)], &[])),
        (0, ok(vec![option("x-a", "1\r\nx-b: 2", None, 0)], &[])),
        (0, ok(vec![option("Transfer-Encoding", "chunked", None, 0)], &[])),
        (0, ok(vec![], &["Host"])),
        (0, ok(vec![], &[":path"])),
    ];
    for (code, response) in no_verdicts {
        let said = CheckResponse {
            status: status(code, ""),
            http_response: Some(response),
        };
        let again = said.clone();
        let service = Service::start(move |_| Answer::Say(said.clone()));
        for (policy, expect) in &policies {
            let config = json!({"failure_policy": policy, "status_on_error": 503});
            assert_eq!(failed(&service.adapter(config)), *expect, "{again:?}");
        }
    }
    let broken = Service::start(|_| Answer::Fail(tonic::Status::unavailable("no")));
    let hanging = Service::start(|_| Answer::Hang);
    for (policy, expect) in &policies {
        let config = json!({"failure_policy": policy, "status_on_error": 503, "timeout": "30ms"});
        assert_eq!(failed(&hanging.adapter(config.clone())), *expect, "it hangs");
        let config = json!({"failure_policy": policy, "status_on_error": 503});
        assert_eq!(failed(&broken.adapter(config)), *expect, "it fails");
    }
}

#[test]
fn a_worker_keeps_one_connection_and_replaces_one_that_is_lost() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service::start_on(listener.try_clone().unwrap(), |_| Answer::Say(allow()));
    let adapter = service.adapter(json!({}));
    with_runtime(|runtime| {
        with_bag(&[], |bag| {
            runtime.block_on(async {
                let asking = (0..50).map(|_| match adapter.check(&bag) {
                    Checking::Pending(answer) => answer,
                    Checking::Ready(_) => panic!("there is no cache"),
                });
                for answer in futures_join(asking).await {
                    assert_eq!(answer, CheckResult::Allow);
                }
            });
        });
        assert_eq!(service.seen.connections.load(Ordering::SeqCst), 1);
        // Cut, and another one in its place.
        drop(service);
        let service = Service::start_on(listener, |_| Answer::Say(allow()));
        assert_eq!(ask_in(runtime, &adapter, 1, &[]), CheckResult::Allow);
        assert_eq!(service.requests(), 1);
        assert_eq!(adapter.outage.failures.get(), 0);
    });
}

/// All at once.
async fn futures_join<F: Future + Unpin>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<F> = futures.collect();
    let mut results = Vec::new();
    std::future::poll_fn(|cx| {
        waiting.retain_mut(|future| match Pin::new(future).poll(cx) {
            std::task::Poll::Ready(result) => {
                results.push(result);
                false
            }
            std::task::Poll::Pending => true,
        });
        match waiting.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    results
}

#[test]
fn a_kept_verdict_spares_the_question_until_the_configuration_changes() {
    let service = Service::start(|_| {
        Answer::Say(CheckResponse {
            status: status(7, "no"),
            http_response: None,
        })
    });
    let adapter = service.adapter(json!({"cache": {"key": ["request.headers[x-user]"], "ttl": "1h"}}));
    let denied = CheckResult::Deny(Box::new(Deny::new(403, "no")));
    with_runtime(|runtime| {
        for (generation, user, asked) in [
            (1, "ann", 1),
            (1, "ann", 1),
            (1, "bob", 2),
            (2, "ann", 3),
            (2, "ann", 3),
        ] {
            assert_eq!(ask_in(runtime, &adapter, generation, &[("x-user", user)]), denied);
            assert_eq!(service.requests(), asked, "{generation} {user}");
        }
    });
    // Another worker, which has no connection yet.
    thread::scope(|scope| {
        let other = scope.spawn(|| with_runtime(|runtime| ask_in(runtime, &adapter, 2, &[("x-user", "ann")])));
        assert_eq!(other.join().unwrap(), denied);
    });
    assert_eq!(service.requests(), 3);
    assert_eq!(adapter.verdicts.as_ref().unwrap().looked_up(), (3, 3));
}

#[test]
fn a_failure_is_not_kept() {
    let first = AtomicBool::new(true);
    let service = Service::start(move |_| match first.swap(false, Ordering::SeqCst) {
        true => Answer::Fail(tonic::Status::internal("no")),
        false => Answer::Say(allow()),
    });
    let adapter = service.adapter(json!({"cache": {"key": ["source.principal"]}}));
    assert!(matches!(ask(&adapter, &[]), CheckResult::Unjudged(_)));
    assert_eq!(ask(&adapter, &[]), CheckResult::Allow);
}

#[test]
fn parameters_are_checked() {
    for (config, expect) in [
        (
            json!({"address": "localhost"}),
            "field `address`: found `localhost`, expected `host:port`, like localhost:9191",
        ),
        (
            json!({"address": "a:1", "timeout": "2m"}),
            "field `timeout`: found `120s`, expected 1ms to 1m",
        ),
        (
            json!({"address": "a:1", "status_on_error": 200}),
            "field `status_on_error`: found `200`, expected 400 to 599",
        ),
        (
            json!({"address": "a:1", "allowed_headers": ["a b"]}),
            "field `allowed_headers`: found `a b`, expected names of headers",
        ),
        (
            json!({"address": "a:1", "cache": {"key": []}}),
            "field `cache.key`: found `[]`, expected the attributes that the verdict depends on, one at least",
        ),
    ] {
        let config = serde_json::from_value(config).unwrap();
        let error = ExtAuthz::new("a", config, None, &CheckMetrics::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `ext_authz`, {expect}"));
    }
    for config in [
        json!({}),
        json!({"address": "a:1", "failure_policy": "ajar"}),
        json!({"address": "a:1", "failure_mode_allow": true}),
        json!({"address": "a:1", "cache": {"key": ["source.colour"]}}),
    ] {
        assert!(serde_json::from_value::<Config>(config.clone()).is_err(), "{config}");
    }
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        adapter(serde_json::from_str(example).unwrap());
    }
}

#[test]
fn a_service_behind_tls_is_asked_over_one_connection() {
    let (service, pki) = (Service::allowing(), Pki::new());
    let front = pki.front(service.address.parse().unwrap(), &["h2"]);
    let files = ["ca.pem", "client.pem", "client.key"].map(|file| pki.file(file).display().to_string());
    let of = |tls: serde_json::Value| adapter(json!({"address": front.to_string(), "tls": tls, "timeout": "20s"}));
    let known = of(json!({"ca_file": files[0], "cert_file": files[1], "key_file": files[2]}));
    with_runtime(|runtime| {
        for _ in 0..3 {
            assert_eq!(ask_in(runtime, &known, 1, &[]), CheckResult::Allow);
        }
    });
    assert_eq!(service.requests(), 3);
    assert_eq!(service.seen.connections.load(Ordering::Relaxed), 1);
    // One that shows no certificate, and one that speaks no TLS.
    for stranger in [of(json!({"ca_file": files[0]})), of(serde_json::Value::Null)] {
        assert!(matches!(ask(&stranger, &[]), CheckResult::Unjudged(Some(_))));
    }
    assert_eq!(service.requests(), 3);
}
