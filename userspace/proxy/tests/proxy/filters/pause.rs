//! Filters that wait.

use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use weft_adapters::{Lent, Step};
use weft_proxy::ProxyConfig;

use super::{data, echo1, echo2, post, post2};
use crate::support::{
    H1, H2, Mesh, Port, Spec, Text,
    bodies::pieces,
    client::{empty, full, request},
    filter::{Events, chains, respond},
    server::Server,
};

#[tokio::test]
async fn a_paused_head_holds_the_request_back_and_may_be_changed_when_it_goes_on() {
    let server = Server::http1(|request| async move {
        let waited = request.headers().get("x-waited").is_some();
        let body = request.collect().await.unwrap().to_bytes();
        crate::support::server::text(format!("{waited} {}", String::from_utf8_lossy(&body)))
    })
    .await;
    let mut events = Events::new();
    let script = events.script("a").act(|lent, _| match lent {
        Lent::RequestHeaders(_) => Step::Pause,
        _ => Step::Continue,
    });
    let script = script.resume(|lent, _| {
        if let Lent::RequestHeaders(head) = lent {
            head.headers.insert("x-waited", "1".parse().unwrap());
        }
        Step::Continue
    });
    let (script, gate) = script.gated();
    let chains = chains([script, events.script("b")]);
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = tokio::spawn(async move { Text::read(client.send(post(full("abc"))).await).await });
    assert_eq!(events.next().await, "a request-head /");
    assert_eq!((server.connections(), events.rest().len()), (0, 0));
    gate.send(true).unwrap();
    assert_eq!(answer.await.unwrap().body, "true abc");
    assert_eq!(events.next().await, "b request-head /");
    assert_eq!(events.next().await, "a request-body 3 end");
}

#[tokio::test]
async fn who_goes_on_at_trailers_has_what_it_held_of_the_body() {
    let server = echo1().await;
    let events = Events::new();
    let script = events.script("a").act(|lent, _| match lent {
        Lent::RequestBody(_) | Lent::RequestTrailers(..) => Step::Pause,
        _ => Step::Continue,
    });
    let script = script.resume(|lent, _| {
        if let Lent::RequestTrailers(_, body) = lent {
            body.make_ascii_uppercase();
            return Step::Continue;
        }
        Step::Pause
    });
    let (script, gate) = script.gated();
    gate.send(true).unwrap();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains());
    let (sender, body) = pieces();
    tokio::spawn(async move {
        sender.send(data("abc")).await.unwrap();
        sender.send(super::sum("1")).await.unwrap();
    });
    let mut request = post(body);
    for (name, value) in [("te", "trailers"), ("trailer", "x-sum")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = Text::read(H1::new(mesh.dial(0).await).await.send(request).await).await;
    assert_eq!(answer.body, "ABC");
}

#[tokio::test]
async fn every_point_may_pause_and_go_on() {
    for http2 in [false, true] {
        let server = if http2 { echo2().await } else { echo1().await };
        let events = Events::new();
        let (script, gate) = events.script("a").act(|_, _| Step::Pause).gated();
        let (other, _) = events
            .script("b")
            .act(|_, _| Step::Pause)
            .resume(|_, _| Step::Continue)
            .gated();
        drop(other);
        gate.send(true).unwrap();
        let chains = chains([script.clone(), script]);
        let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let (sender, body) = pieces();
        tokio::spawn(async move {
            sender.send(data("abc")).await.unwrap();
            sender.send(super::sum("1")).await.unwrap();
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
        assert_eq!((answer.body.as_str(), answer.trailers.is_some()), ("abc", true));
    }
}

#[tokio::test]
async fn a_paused_filter_may_answer() {
    let server = echo1().await;
    let events = Events::new();
    for point in ["head", "body"] {
        let script = events.script("a").act(move |lent, _| match lent {
            Lent::RequestHeaders(_) if point == "head" => Step::Pause,
            Lent::RequestBody(_) if point == "body" => Step::Pause,
            _ => Step::Continue,
        });
        let (script, gate) = script.resume(|_, _| respond(429, "later")).gated();
        gate.send(true).unwrap();
        let chains = script.chains();
        let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let mut client = H1::new(mesh.dial(0).await).await;
        let answer = Text::read(client.send(post(full("abc"))).await).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_str()),
            (429, "later"),
            "{point}"
        );
    }
}

#[tokio::test]
async fn what_a_filter_forgets_to_let_go_is_ended() {
    let config = || ProxyConfig {
        filter_pause: Duration::from_millis(100),
        ..ProxyConfig::default()
    };
    let server = echo1().await;
    for point in ["head", "body", "answer"] {
        let mut events = Events::new();
        let script = events.script("a").act(move |lent, _| match lent {
            Lent::RequestHeaders(_) if point == "head" => Step::Pause,
            Lent::RequestBody(_) if point == "body" => Step::Pause,
            Lent::ResponseHeaders(_) if point == "answer" => Step::Pause,
            _ => Step::Continue,
        });
        let (script, _gate) = script.gated();
        let mesh = Mesh::start_all(
            &Spec::of([Port::http("web", [server.address])]),
            config(),
            script.chains(),
        );
        // One goes the short way.
        for asked in [post(full("abc")), request("GET", "/", empty())] {
            if point == "body" && asked.method() == "GET" {
                continue;
            }
            let mut client = H1::new(mesh.dial(0).await).await;
            let answer = Text::read(client.send(asked).await).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("x-weft-reason")),
                (504, Some("filter-pause")),
                "{point}"
            );
            assert!(
                answer.body.contains("adapter a held it for more than"),
                "{}",
                answer.body
            );
        }
        let seen = events.until_end_of("a").await;
        assert!(seen.last().unwrap().ends_with(" Held"), "{point}: {seen:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_a_paused_request_once() {
    let server = echo2().await;
    let mut events = Events::new();
    let (script, gate) = events.script("a").act(|_, _| Step::Pause).gated();
    let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains());
    let mut client = H2::new(mesh.dial(0).await).await;
    let asked = tokio::spawn(async move { client.try_send(post2(full("abc"))).await.is_ok() });
    assert_eq!(events.next().await, "a request-head /");
    asked.abort();
    assert_eq!(events.next().await, "a end 0 0 0 Downstream");
    mesh.flow().await;
    assert!(gate.send(true).is_ok(), "the adapter itself lives on");
    assert!(events.rest().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_ends_the_request_once() {
    let server = Server::raw(|mut stream| async move {
        crate::support::client::read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
            .await
            .unwrap();
    })
    .await;
    let mut events = Events::new();
    let chains = events.script("a").chains();
    let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let response = client.send(request("GET", "/", empty())).await;
    assert!(response.into_body().collect().await.is_err());
    let seen = events.until_end_of("a").await;
    assert_eq!(seen.last().unwrap(), "a end 200 0 3 Upstream");
    mesh.flow().await;
    assert!(events.rest().is_empty());
}
