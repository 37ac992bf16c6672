//! Filters that answer themselves, or reset.

use http::StatusCode;
use http_body_util::BodyExt;
use weft_adapters::{FlowVerdict, Lent, Step};

use super::{data, echo1, echo2, post, post2, sum};
use crate::support::{
    H1, H2, Mesh, Port, Spec, Text,
    bodies::pieces,
    client::{empty, full, raw, request},
    filter::{Events, Script, chains, respond},
    server::{Nobody, Server},
};

/// Answers 418 at one of the points.
fn at(script: Script, point: &'static str) -> Script {
    script.act(move |lent, _| {
        if point == name(&lent) {
            respond(418, "stopped")
        } else {
            Step::Continue
        }
    })
}

fn name(lent: &Lent<'_>) -> &'static str {
    match lent {
        Lent::RequestHeaders(_) => "request-head",
        Lent::RequestBody(_) => "request-body",
        Lent::RequestTrailers(..) => "request-trailers",
        Lent::ResponseHeaders(_) => "response-head",
        Lent::ResponseBody(_) => "response-body",
        Lent::ResponseTrailers(..) => "response-trailers",
    }
}

#[tokio::test]
async fn an_answer_at_the_head_reaches_no_later_filter_and_no_endpoint() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = chains([
        events.script("a"),
        at(events.script("b"), "request-head"),
        events.script("c"),
    ]);
    let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = Text::read(client.send(post(full("abc"))).await).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (418, "stopped"));
    assert_eq!(
        (answer.header("x-by"), answer.header("content-type")),
        (Some("filter"), Some("text/plain"))
    );
    assert_eq!(
        events.until_end_of("c").await,
        [
            "a request-head /",
            "b request-head /",
            "b response-head 418",
            "a response-head 418",
            "b response-body 7 end",
            "a response-body 7 end",
            "a end 418 0 7",
            "b end 418 0 7",
            "c end 418 0 7",
        ]
    );
    assert_eq!(server.connections(), 0);
    let flow = mesh.flow().await;
    assert_eq!(
        (flow.verdict, flow.rule.as_ref().unwrap().to_string()),
        (FlowVerdict::Deny, "Adapter b".to_owned())
    );
}

#[tokio::test]
async fn an_answer_during_the_body_or_trailers_takes_the_endpoints_place() {
    for point in ["request-body", "request-trailers"] {
        let server = echo2().await;
        let mut events = Events::new();
        let chains = at(events.script("a"), point).chains();
        let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let mut client = H2::new(mesh.dial(0).await).await;
        let (sender, body) = pieces();
        let feed = tokio::spawn(async move {
            let _stopped = sender.send(data("abc")).await;
            let _stopped = sender.send(sum("1")).await;
        });
        let answer = Text::read(client.send(post2(body)).await).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_str()),
            (418, "stopped"),
            "{point}"
        );
        feed.await.unwrap();
        let seen = events.until_end_of("a").await;
        assert!(seen.contains(&"a response-head 418".to_owned()), "{seen:?}");
        assert!(events.rest().is_empty());
    }
}

#[tokio::test]
async fn an_answer_in_place_of_an_answer_passes_the_filters_by() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = chains([events.script("a"), at(events.script("b"), "response-head")]);
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (418, "stopped"));
    let seen = events.until_end_of("b").await;
    assert_eq!(seen[2..], ["b response-head 200 end", "a end 418 0 7", "b end 418 0 7"]);
}

#[tokio::test]
async fn an_answer_after_the_head_cuts_the_answer() {
    for point in ["response-body", "response-trailers"] {
        let server = echo2().await;
        let mut events = Events::new();
        let chains = at(events.script("a"), point).chains();
        let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let mut client = H2::new(mesh.dial(0).await).await;
        let (sender, body) = pieces();
        tokio::spawn(async move {
            sender.send(data("abc")).await.unwrap();
            sender.send(sum("1")).await.unwrap();
        });
        // The reset may overtake the head.
        if let Ok(response) = client.try_send(post2(body)).await {
            assert_eq!(response.status(), 200);
            assert!(response.into_body().collect().await.is_err(), "{point}");
        }
        assert!(
            events
                .until_end_of("a")
                .await
                .last()
                .unwrap()
                .starts_with("a end 200 3 ")
        );
        assert!(mesh.flow().await.reason.starts_with("reset: adapter a answered 418"));
    }
}

#[tokio::test]
async fn a_reset_ends_an_http1_connection_without_a_byte() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = events.script("a").act(|_, _| Step::Reset).chains();
    let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let answer = raw(mesh.dial(0).await, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert_eq!((answer.as_str(), server.connections()), ("", 0));
    assert_eq!(
        events.until_end_of("a").await,
        ["a request-head / end", "a end 0 0 0 Other"]
    );
    assert_eq!(mesh.flow().await.reason, "reset by adapter a");
}

#[tokio::test]
async fn a_reset_ends_an_http2_stream_and_no_other() {
    let server = echo2().await;
    let events = Events::new();
    let chains = events
        .script("a")
        .act(|lent, _| match lent {
            Lent::RequestBody(body) if body.starts_with(b"bad") => Step::Reset,
            _ => Step::Continue,
        })
        .chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H2::new(mesh.dial(0).await).await;
    assert!(client.try_send(post2(full("bad"))).await.is_err());
    assert_eq!(Text::read(client.send(post2(full("good"))).await).await.body, "good");
}

#[tokio::test]
async fn a_grpc_client_gets_an_answer_as_a_grpc_status() {
    let server = echo2().await;
    let events = Events::new();
    let chains = events.script("a").act(|_, _| respond(401, "who are you?")).chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut ask = post2(full(&b"\0\0\0\0\0"[..]));
    ask.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let answer = Text::read(H2::new(mesh.dial(0).await).await.send(ask).await).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
    assert_eq!(
        (answer.header("grpc-status"), answer.header("grpc-message")),
        (Some("16"), Some("who are you?"))
    );
}

#[tokio::test]
async fn a_failure_of_ours_is_an_answer_that_filters_see() {
    let nobody = Nobody::new();
    let mut events = Events::new();
    let script = events.script("a").act(|lent, _| {
        if let Lent::ResponseHeaders(head) = lent {
            head.headers.map_mut().insert("x-seen", "1".parse().unwrap());
        }
        Step::Continue
    });
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [nobody.address])]), script.chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-seen")), (503, Some("1")));
    assert!(answer.body.contains(&nobody.address.to_string()), "{answer:?}");
    let seen = events.until_end_of("a").await;
    assert_eq!(seen[..2], ["a request-head / end", "a response-head 503"]);
}

#[tokio::test]
async fn an_answer_in_place_of_a_refusal_is_no_deny() {
    let dead = [Nobody::new(), Nobody::new()];
    let spec = Spec::of([Port::http("web", dead.each_ref().map(|nobody| nobody.address))]);
    let mut events = Events::new();
    let script = events.script("a").act(|lent, _| match lent {
        Lent::RequestHeaders(_) => Step::Pause,
        _ => respond(200, "instead"),
    });
    let (script, gate) = script.gated();
    let mut mesh = Mesh::filtered(&spec, script.chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    let asked = tokio::spawn(async move { client.get("/").await });
    assert_eq!(events.next().await, "a request-head / end");
    // No endpoint can be connected to, and the second choice is judged by what is in force then.
    mesh.publish(&spec.with_access(crate::support::Access::Nobody));
    gate.send(true).unwrap();
    let answer = asked.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "instead"));
    assert_eq!(events.next().await, "a response-head 403");
    let flow = mesh.flow().await;
    assert_eq!(
        (flow.verdict, flow.rule.as_ref().unwrap().to_string()),
        (FlowVerdict::Allow, "Adapter a".to_owned())
    );
}

#[tokio::test]
async fn a_request_that_a_filter_broke_is_a_failure_of_ours() {
    let server = echo1().await;
    let events = Events::new();
    let breaking = events.script("a").act(|lent, _| {
        if let Lent::RequestHeaders(head) = lent {
            match head.uri.path() {
                "/host" => _ = head.headers.remove("host"),
                _ => head.uri = "http://user@web/".parse().unwrap(),
            }
        }
        Step::Continue
    });
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), breaking.chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    for (path, why) in [("/host", "no Host header"), ("/user", "names a user")] {
        let answer = client.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-weft-reason")),
            (500, Some("adapter-changed"))
        );
        assert_eq!(answer.header("connection"), None);
        assert!(
            answer.body.contains("an adapter changed") && answer.body.contains(why),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn what_policy_denies_no_filter_sees() {
    let server = echo1().await;
    let mut events = Events::new();
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(crate::support::Access::Nobody);
    let mut mesh = Mesh::filtered(&spec, events.script("a").chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/").await.status, StatusCode::FORBIDDEN);
    mesh.flow().await;
    assert!(events.rest().is_empty());
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_and_no_interim_status() {
    let server = Server::http2(|_| async { crate::support::server::text("never") }).await;
    let events = Events::new();
    let chains = events.script("a").act(|_, _| respond(101, "stopped")).chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut ask = request("HEAD", "http://web/", empty());
    ask.headers_mut().remove("host");
    let answer = Text::read(H2::new(mesh.dial(0).await).await.send(ask).await).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (500, ""));
}

#[tokio::test]
async fn filters_are_told_that_no_connection_came_about() {
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let nobody = Nobody::new();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [nobody.address])]), chains);
    // One goes the short way.
    for asked in [post(full("abc")), request("GET", "/", empty())] {
        let mut client = H1::new(mesh.dial(0).await).await;
        let answer = Text::read(client.send(asked).await).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let seen = events.until_end_of("a").await;
        assert!(seen.last().unwrap().ends_with(" Connect"), "{seen:?}");
    }
}

#[tokio::test]
async fn filters_are_told_of_a_client_that_goes_before_it_has_the_answer() {
    let server = Server::http2(|_| async {
        let (sender, body) = pieces();
        tokio::spawn(async move {
            sender.send(data("abc")).await.unwrap();
            std::future::pending::<()>().await;
        });
        http::Response::new(body)
    })
    .await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H2::new(mesh.dial(0).await).await;
    let response = client.send(post2(empty())).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop((response, client));
    let seen = events.until_end_of("a").await;
    assert!(seen.last().unwrap().ends_with(" Downstream"), "{seen:?}");
}
