//! Which filters are called, when, and with what.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Response, StatusCode};
use tokio::{io::AsyncWriteExt, sync::mpsc, time::timeout};
use weft_adapters::{
    Bag, Chain, Chains, Check, CheckResult, Checking, Directives, FilterFactory, HeaderOperation, HeaderSection, Lent,
    Pipeline, RequestHead, ResponseHead, Step, StreamFilter, StreamInfo, TrafficDirection, builtin::MemQuota,
};
use weft_policy::{AppProtocol, ServiceName};

use super::{data, echo1, echo2, post, post2, split_over, sum};
use crate::support::{
    H1, H2, Mesh, Port, Spec, Text,
    bodies::pieces,
    client::{empty, full, raw, read_all, read_until, request},
    filter::{Events, chain, chains, respond},
    server::{Nobody, Server, text},
};

#[tokio::test]
async fn a_request_meets_the_first_filter_first_and_its_answer_last() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = chains([events.script("a"), events.script("b")]);
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(Text::read(client.send(post(full("abc"))).await).await.body, "abc");
    assert_eq!(
        events.until_end_of("b").await,
        [
            "a request-head /",
            "b request-head /",
            "a request-body 3 end",
            "b request-body 3 end",
            "b response-head 200",
            "a response-head 200",
            "b response-body 3 end",
            "a response-body 3 end",
            "a end 200 3 3",
            "b end 200 3 3",
        ]
    );
}

#[tokio::test]
async fn trailers_are_shown_both_ways_and_may_be_changed() {
    for http2 in [false, true] {
        let server = if http2 { echo2().await } else { echo1().await };
        let mut events = Events::new();
        let script = events.script("a").act(|lent, _| {
            if let Lent::RequestTrailers(trailers, _) | Lent::ResponseTrailers(trailers, _) = lent {
                let sum = trailers["x-sum"].to_str().unwrap().to_owned() + "+1";
                trailers.insert("x-sum", sum.parse().unwrap());
            }
            Step::Continue
        });
        let spec = Spec::of([Port::http("web", [server.address])]);
        let mesh = Mesh::filtered(&spec, script.chains());
        let (sender, body) = pieces();
        let feed = tokio::spawn(async move {
            sender.send(data("abc")).await.unwrap();
            sender.send(sum("1")).await.unwrap();
        });
        let answer = if http2 {
            H2::new(mesh.dial(0).await).await.send(post2(body)).await
        } else {
            let mut request = post(body);
            for (name, value) in [("te", "trailers"), ("trailer", "x-sum")] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            H1::new(mesh.dial(0).await).await.send(request).await
        };
        let answer = Text::read(answer).await;
        feed.await.unwrap();
        assert_eq!(
            (answer.body.as_str(), &answer.trailers.unwrap()["x-sum"]),
            ("abc", &"1+1+1".parse().unwrap())
        );
        assert_eq!(
            events.until_end_of("a").await,
            [
                "a request-head /",
                "a request-body 3",
                "a request-trailers",
                "a response-head 200",
                "a response-body 3",
                "a response-trailers",
                "a end 200 3 3",
            ]
        );
    }
}

#[tokio::test]
async fn a_body_that_was_held_is_lent_with_the_trailers_and_passes_before_them() {
    let server = echo1().await;
    let mut events = Events::new();
    let script = events.script("a").act(|lent, _| match lent {
        Lent::RequestBody(_) => Step::Pause,
        Lent::RequestTrailers(_, body) => {
            body.make_ascii_uppercase();
            body.extend_from_slice(b"!");
            Step::Continue
        }
        _ => Step::Continue,
    });
    // The second one sees what the first made of it.
    let scripts = [script, events.script("b")];
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains(scripts));
    let (sender, body) = pieces();
    let feed = tokio::spawn(async move {
        sender.send(data("abc")).await.unwrap();
        sender.send(sum("1")).await.unwrap();
    });
    let mut request = post(body);
    for (name, value) in [("te", "trailers"), ("trailer", "x-sum")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = Text::read(H1::new(mesh.dial(0).await).await.send(request).await).await;
    feed.await.unwrap();
    assert_eq!(
        (answer.body.as_str(), &answer.trailers.unwrap()["x-sum"]),
        ("ABC!", &"1".parse().unwrap())
    );
    let seen = events.until_end_of("b").await;
    let bodies: Vec<&String> = seen.iter().filter(|event| event.contains("request-body")).collect();
    assert_eq!(bodies, ["a request-body 3", "b request-body 4"]);
}

#[tokio::test]
async fn heads_without_a_body_are_the_end() {
    let server = Server::http1(|request| async move {
        let mut response = match request.uri().path() {
            "/204" => text(""),
            _ => text("seen only by GET"),
        };
        if request.uri().path() == "/204" {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        response
    })
    .await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    for (method, path, status) in [("HEAD", "/head", 200), ("GET", "/204", 204)] {
        let mut client = H1::new(mesh.dial(0).await).await;
        let answer = Text::read(client.send(request(method, path, empty())).await).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, ""));
        assert_eq!(answer.header("content-length"), (method == "HEAD").then_some("16"));
        assert_eq!(
            events.until_end_of("a").await,
            [
                format!("a request-head {path} end"),
                format!("a response-head {status} end"),
                format!("a end {status} 0 0"),
            ]
        );
    }
}

#[tokio::test]
async fn the_head_of_an_answer_to_head_is_the_end_though_the_stream_goes_on() {
    // Its last frame comes after the head.
    let server = Server::http2(|_| async { Response::new(pieces().1) }).await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut ask = post2(empty());
    *ask.method_mut() = http::Method::HEAD;
    let answer = Text::read(H2::new(mesh.dial(0).await).await.send(ask).await).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
    assert_eq!(
        events.until_end_of("a").await,
        ["a request-head / end", "a response-head 200 end", "a end 200 0 0"]
    );
}

#[tokio::test]
async fn a_chunked_body_ends_with_an_empty_piece() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let ask =
        "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(raw(mesh.dial(0).await, ask).await.ends_with("\r\n\r\nabc"));
    let seen = events.until_end_of("a").await;
    assert_eq!(
        seen[..3],
        ["a request-head /", "a request-body 3", "a request-body 0 end"]
    );
}

#[tokio::test]
async fn filters_see_the_heads_of_an_upgrade_and_not_its_tunnel() {
    let server = Server::http1(|mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            io.write_all(b"hello").await.unwrap();
        });
        Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "x")
            .body(pieces().1)
            .unwrap()
    })
    .await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut stream = mesh.dial(0).await;
    let ask = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(read_all(&mut stream).await, "hello");
    drop(stream);
    assert_eq!(
        events.until_end_of("a").await,
        ["a request-head / end", "a response-head 101 end", "a end 101 0 5"]
    );
}

#[tokio::test]
async fn filters_are_those_of_the_service_and_of_the_generation_in_force() {
    let [web, api] = [Server::named("web").await, Server::named("api").await];
    let mut events = Events::new();
    let service = |name: &str| ServiceName {
        namespace: "default".into(),
        name: name.into(),
    };
    let list = |names: &[&'static str]| Arc::new(chain(names.iter().map(|name| events.script(name))));
    let mut by_service = Chains::default();
    by_service.insert(service("web"), list(&["web"]));
    by_service.insert(service("api"), list(&["api"]));
    by_service.insert_split(service("web"), service("api"), list(&["web", "api"]));
    // `web` sends everything to `api`.
    let mut split = Port::http("web", [web.address]);
    split.split = Some(vec![("api", 1)]);
    let spec = Spec::of([split, Port::http("api", [api.address])]);
    let mut mesh = Mesh::filtered(&spec, by_service);
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/").await.body, "api");
    let seen = events.until_end_of("api").await;
    assert_eq!(seen[..2], ["web request-head / end", "api request-head / end"]);
    let mut direct = H1::new(mesh.dial(1).await).await;
    assert_eq!(direct.get("/").await.body, "api");
    let seen = events.until_end_of("api").await;
    assert_eq!(seen[0], "api request-head / end");

    mesh.publish_chains(&spec, chains([events.script("new")]));
    assert_eq!(client.get("/").await.body, "api");
    assert_eq!(events.until_end_of("new").await[0], "new request-head / end");
}

#[tokio::test]
async fn filters_are_warmed_on_each_worker_before_any_request_and_when_they_come_into_force() {
    let server = echo1().await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let [(first, mut warmed), (second, mut later)] = [Warm::new(), Warm::new()];
    let everywhere = |filter: &Arc<Warm>| {
        Chains::everywhere(Chain {
            filters: vec![Arc::clone(filter) as _],
            ..Chain::default()
        })
    };
    // Of two workers.
    let mut mesh = Mesh::filtered(&spec, everywhere(&first));
    let on = warmed_on(&mut warmed).await;
    assert_ne!(on[0], on[1]);
    mesh.publish_chains(&spec, everywhere(&second));
    let again = warmed_on(&mut later).await;
    assert_ne!(again[0], again[1]);
    assert!(again.iter().all(|thread| on.contains(thread)), "{again:?} {on:?}");
}

/// The threads of two workers.
async fn warmed_on(told: &mut mpsc::UnboundedReceiver<ThreadId>) -> [ThreadId; 2] {
    let both = async { [told.recv().await.unwrap(), told.recv().await.unwrap()] };
    timeout(Duration::from_secs(20), both).await.expect("both are warmed")
}

/// Tells on which threads it is warmed.
struct Warm(mpsc::UnboundedSender<ThreadId>);

impl Warm {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<ThreadId>) {
        let (tell, told) = mpsc::unbounded_channel();
        (Arc::new(Self(tell)), told)
    }
}

impl FilterFactory for Warm {
    fn name(&self) -> &str {
        "warm"
    }

    fn warm(&self) {
        let _ended = self.0.send(thread::current().id());
    }

    fn stream(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        None
    }
}

#[tokio::test]
async fn filters_are_told_the_connection_of_a_request_and_its_direction() {
    let server = echo1().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let chain = Chain {
        filters: vec![Arc::new(Tells(tell)) as _],
        ..Chain::default()
    };
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::filtered(&spec, Chains::everywhere(chain));
    let mut clients = [H1::new(mesh.dial(0).await).await, H1::new(mesh.dial(0).await).await];
    let mut connections = Vec::new();
    for client in [0, 1, 0] {
        assert_eq!(clients[client].get("/").await.status, StatusCode::OK);
        let (connection, direction) = told.recv().await.unwrap();
        assert_eq!(direction, TrafficDirection::Outbound);
        connections.push(connection);
    }
    assert_eq!(connections[0], connections[2]);
    assert_ne!(connections[0], connections[1]);
}

/// Tells what it is told, and does not look.
struct Tells(mpsc::UnboundedSender<(u64, TrafficDirection)>);

impl FilterFactory for Tells {
    fn name(&self) -> &str {
        "tells"
    }

    fn stream(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        let _ended = self.0.send((info.connection, info.direction));
        None
    }
}

#[tokio::test]
async fn a_second_choice_that_other_filters_look_at_is_not_asked() {
    let alive = Server::http1(|request| async move { text(format!("{:?}", request.headers().get("x-seen"))) }).await;
    let events = Events::new();
    let seeing = |name| {
        let script = events.script(name).act(move |lent, _| {
            if let Lent::RequestHeaders(head) = lent {
                head.headers.insert("x-seen", name.parse().unwrap());
            }
            Step::Continue
        });
        Arc::new(chain([script]))
    };
    let dead = Nobody::new();
    let (spec, chains) = split_over(&dead, alive.address, AppProtocol::Http, seeing("dead"), seeing("alive"));
    let mut mesh = Mesh::filtered(&spec, chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut answered = 0;
    for _ in 0..60 {
        let answer = client.get("/").await;
        let flow = mesh.flow().await;
        if answer.status == StatusCode::OK {
            answered += 1;
            assert_eq!(answer.body, r#"Some("alive")"#);
        } else {
            assert_eq!(answer.header("x-weft-reason"), Some("connect-failed"));
            assert_eq!(flow.destination.service.as_deref(), Some("dead"));
        }
    }
    assert!(answered > 0);
}

/// Wants no map of a head.
struct Texts;

impl FilterFactory for Texts {
    fn name(&self) -> &str {
        "texts"
    }

    fn stream(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(Self))
    }
}

impl StreamFilter for Texts {
    fn on_request_head(&mut self, head: &mut RequestHead, end: bool) -> Step {
        assert!(end && matches!(head.headers, HeaderSection::Text(_)));
        assert_eq!(head.headers.find(b"x-old"), Some(&b"1"[..]));
        head.uri = "/b?x=1".parse().unwrap();
        Step::Continue
    }

    fn on_response_headers(&mut self, head: &mut ResponseHead, end: bool) -> Step {
        assert!(!end && matches!(head.headers, HeaderSection::Text(_)));
        head.status = StatusCode::ACCEPTED;
        Step::Continue
    }
}

#[tokio::test]
async fn heads_of_the_short_way_are_texts_to_the_end_for_who_wants_no_map() {
    let server = Server::http1(|request| async move {
        let headers = request.headers();
        let mut response = text(format!(
            "{} {:?} {:?}",
            request.uri(),
            headers["host"],
            headers["x-old"]
        ));
        for value in ["a", "b"] {
            response.headers_mut().append("x-two", HeaderValue::from_static(value));
        }
        response
    })
    .await;
    let chain = Chain {
        filters: vec![Arc::new(Texts)],
        ..Chain::default()
    };
    let mesh = Mesh::filtered(
        &Spec::of([Port::http("web", [server.address])]),
        Chains::everywhere(chain),
    );
    let mut stream = mesh.dial(0).await;
    let ask = b"GET /a HTTP/1.1\r\nHost: web\r\nX-Old: 1\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(ask).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let answers = read_all(&mut stream).await;
    assert_eq!(answers.matches("HTTP/1.1 202 Accepted\r\n").count(), 2, "{answers}");
    assert_eq!(answers.matches("/b?x=1 \"web\" \"1\"").count(), 2, "{answers}");
    assert_eq!(answers.matches("x-two: a\r\nx-two: b\r\n").count(), 2, "{answers}");
    assert_eq!(answers.matches("content-length: ").count(), 2, "{answers}");
}

#[tokio::test]
async fn a_filter_changes_what_the_endpoint_gets_and_not_who_that_is() {
    let server = Server::http1(|request| async move {
        let header = |name| {
            request
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        text(format!("{} {:?} {:?}", request.uri(), header("x-new"), header("x-old")))
    })
    .await;
    let events = Events::new();
    let script = events.script("a").act(|lent, _| {
        match lent {
            Lent::RequestHeaders(head) => {
                head.uri = "/admin?x=1".parse().unwrap();
                head.headers.remove("x-old");
                head.headers.insert("x-new", "1".parse().unwrap());
            }
            Lent::ResponseHeaders(head) => {
                head.status = StatusCode::ACCEPTED;
                head.headers.map_mut().insert("x-seen", "1".parse().unwrap());
            }
            _ => {}
        }
        Step::Continue
    });
    // The rules speak of what the client asked.
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(crate::support::allow_paths("/public"));
    let mesh = Mesh::filtered(&spec, script.chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut ask = request("GET", "/public", empty());
    ask.headers_mut().insert("x-old", "1".parse().unwrap());
    let answer = Text::read(client.send(ask).await).await;
    assert_eq!(answer.body, "/admin?x=1 Some(\"1\") None");
    assert_eq!((answer.status.as_u16(), answer.header("x-seen")), (202, Some("1")));
    assert_eq!(client.get("/admin").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn quotas_count_what_checks_have_set_and_not_what_the_client_sent_in_its_place() {
    struct Identify;

    impl Check for Identify {
        fn name(&self) -> &str {
            "identify"
        }

        fn check<'a>(&'a self, _: &'a Bag<'_>) -> Checking<'a> {
            let user = HeaderOperation::Replace(HeaderName::from_static("x-user"), HeaderValue::from_static("ann"));
            Checking::Ready(CheckResult::AllowWith(Box::new(Directives {
                request: vec![user],
                response: Vec::new(),
            })))
        }
    }

    let server = echo1().await;
    let quotas = serde_json::json!({"quotas": [{
        "name": "q", "max_amount": 2, "valid_duration": "1h", "dimensions": {"user": "request.headers[\"x-user\"]"}
    }]});
    let quota = MemQuota::new("two", serde_json::from_value(quotas).unwrap(), None).unwrap();
    let chain = Chain {
        pipeline: Pipeline::new(vec![Arc::new(Identify)]),
        quotas: Pipeline::new(vec![Arc::new(quota)]),
        ..Chain::default()
    };
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::filtered(&spec, Chains::everywhere(chain));
    let mut client = H1::new(mesh.dial(0).await).await;
    // The first goes the short way, the second does not.
    for (method, user, expect) in [
        ("GET", "a", 200),
        ("POST", "b", 200),
        ("GET", "c", 429),
        ("POST", "d", 429),
    ] {
        let body = if method == "GET" { empty() } else { full("abc") };
        let mut ask = request(method, "/", body);
        ask.headers_mut().insert("x-user", user.parse().unwrap());
        let answer = Text::read(client.send(ask).await).await;
        assert_eq!(answer.status.as_u16(), expect, "{method}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_request_that_a_filter_refuses_uses_no_quota_up() {
    let server = echo1().await;
    let events = Events::new();
    let script = events.script("a").act(|lent, _| match lent {
        Lent::RequestHeaders(head) if !head.headers.contains_key("x-key") => respond(401, "no key"),
        _ => Step::Continue,
    });
    let quotas = serde_json::json!({"quotas": [{"name": "q", "max_amount": 2, "valid_duration": "1h"}]});
    let quota = MemQuota::new("two", serde_json::from_value(quotas).unwrap(), None).unwrap();
    let chain = Chain {
        quotas: Pipeline::new(vec![Arc::new(quota)]),
        ..chain([script])
    };
    let mesh = Mesh::filtered(
        &Spec::of([Port::http("web", [server.address])]),
        Chains::everywhere(chain),
    );
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..3 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (401, "no key"));
    }
    // The first goes the short way, the second does not.
    for (method, expect) in [("GET", 200), ("POST", 200), ("GET", 429), ("POST", 429)] {
        let mut keyed = request(method, "/", full("abc"));
        if method == "GET" {
            keyed = request(method, "/", empty());
        }
        keyed.headers_mut().insert("x-key", "1".parse().unwrap());
        let answer = Text::read(client.send(keyed).await).await;
        assert_eq!(answer.status.as_u16(), expect, "{method}: {}", answer.body);
    }
}
