//! Bodies that filters gather, change and hold back.

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use weft_adapters::{Lent, Step};
use weft_proxy::limits::FILTER_BODY_BUFFER;

use super::{data, echo1, echo2, post, post2, sum};
use crate::support::{
    H1, H2, Mesh, Port, Spec, Text,
    bodies::{Pattern, check_pattern, pieces},
    client::{empty, full, read_all, request},
    filter::{Events, chains},
    server::Server,
};

#[tokio::test]
async fn a_body_that_is_held_back_grows_until_it_passes_as_one() {
    let server = echo1().await;
    let mut events = Events::new();
    let chains = chains([events.script("a").shouting(), events.script("b")]);
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let answer = tokio::spawn(async move { Text::read(client.send(post(body)).await).await });
    assert_eq!(events.next().await, "a request-head /");
    assert_eq!(events.next().await, "b request-head /");
    for (piece, seen) in [("ab", "a request-body 2"), ("cd", "a request-body 4")] {
        sender.send(data(piece)).await.unwrap();
        assert_eq!(events.next().await, seen);
    }
    drop(sender);
    assert_eq!(answer.await.unwrap().body, "ABCD");
    let seen = events.until_end_of("b").await;
    assert_eq!(seen[..2], ["a request-body 4 end", "b request-body 4 end"]);
}

#[tokio::test]
async fn trailers_let_pass_what_was_held_before_them() {
    let server = echo2().await;
    let mut events = Events::new();
    let chains = chains([events.script("a").shouting(), events.script("b").shouting()]);
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let (sender, body) = pieces();
    tokio::spawn(async move {
        sender.send(data("abc")).await.unwrap();
        sender.send(sum("1")).await.unwrap();
    });
    let answer = Text::read(H2::new(mesh.dial(0).await).await.send(post2(body)).await).await;
    assert_eq!(
        (answer.body.as_str(), &answer.trailers.unwrap()["x-sum"]),
        ("ABC", &"1".parse().unwrap())
    );
    let seen = events.until_end_of("b").await;
    let request = [
        "a request-body 3",
        "a request-trailers",
        "b request-body 3",
        "b request-trailers",
    ];
    assert_eq!(seen[2..6], request);
}

#[tokio::test]
async fn bodies_pass_two_filters_unchanged_at_any_size() {
    const LENGTH: u64 = 8 << 20;
    for http2 in [false, true] {
        let answer = |request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(check_pattern(request.into_body()).await, LENGTH);
            http::Response::new(Pattern::chunked(LENGTH))
        };
        let server = if http2 {
            Server::http2(answer).await
        } else {
            Server::http1(answer).await
        };
        let events = Events::new();
        // The second holds every piece back until the next one comes, and so do both limits of the buffer.
        let pausing = events.script("b").act(|lent, end| match lent {
            Lent::RequestBody(body) | Lent::ResponseBody(body) if !end && body.len() < 200_000 => Step::Pause,
            _ => Step::Continue,
        });
        let chains = chains([events.script("a"), pausing]);
        let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let response = if http2 {
            H2::new(mesh.dial(0).await)
                .await
                .send(post2(Pattern::sized(LENGTH)))
                .await
        } else {
            H1::new(mesh.dial(0).await)
                .await
                .send(post(Pattern::sized(LENGTH)))
                .await
        };
        assert_eq!(check_pattern(response.into_body()).await, LENGTH);
    }
}

#[tokio::test]
async fn a_request_body_too_large_to_hold_back_is_413() {
    for http2 in [false, true] {
        let server = if http2 { echo2().await } else { echo1().await };
        let mut events = Events::new();
        let chains = events.script("a").shouting().chains();
        let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
        let body = || Pattern::chunked(2 * FILTER_BODY_BUFFER as u64);
        let response = if http2 {
            H2::new(mesh.dial(0).await).await.send(post2(body())).await
        } else {
            H1::new(mesh.dial(0).await).await.send(post(body())).await
        };
        let answer = Text::read(response).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-weft-reason")),
            (413, Some("filter-buffer"))
        );
        assert!(
            answer.body.contains("ADAPTER A HOLDS THE REQUEST BODY BACK"),
            "{answer:?}"
        );
        let seen = events.until_end_of("a").await;
        assert!(seen.contains(&"a response-head 413".to_owned()), "{seen:?}");
        assert_eq!(mesh.flow().await.l7.as_ref().unwrap().status, 413);
        assert!(events.rest().is_empty());
    }
}

#[tokio::test]
async fn as_much_as_the_limit_may_be_held_back() {
    let server = echo1().await;
    let events = Events::new();
    let chains = events.script("a").shouting().chains();
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = Text::read(client.send(post(full("a".repeat(FILTER_BODY_BUFFER)))).await).await;
    assert_eq!(answer.body, "A".repeat(FILTER_BODY_BUFFER));
}

#[tokio::test]
async fn an_answer_too_large_to_hold_back_is_cut() {
    let server =
        Server::http1(|_| async { http::Response::new(Pattern::chunked(FILTER_BODY_BUFFER as u64 + 1)) }).await;
    let mut events = Events::new();
    let chains = events.script("a").shouting().chains();
    let mut mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), chains);
    let mut client = H1::new(mesh.dial(0).await).await;
    let response = client.send(request("GET", "/", empty())).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
    let seen = events.until_end_of("a").await;
    assert_eq!(seen.last().unwrap(), "a end 200 0 0 Other");
    assert!(mesh.flow().await.reason.contains("held back a body of more than"));
}

#[tokio::test]
async fn a_length_that_a_filter_gave_to_no_body_is_not_sent() {
    let server = echo1().await;
    let events = Events::new();
    let script = events.script("a").act(|lent, _| {
        if let Lent::RequestHeaders(head) = lent {
            head.headers.insert("content-length", "3".parse().unwrap());
        }
        Step::Continue
    });
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains());
    let mut stream = mesh.dial(0).await;
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    // In one write, so that the connection does not rest in between.
    let wire = format!("{get}POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc{get}");
    stream.write_all(wire.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let read = tokio::time::timeout(std::time::Duration::from_secs(10), read_all(&mut stream)).await;
    let answers = read.expect("the endpoint waits for a body");
    let bodies = answers
        .split("HTTP/1.1 200 OK\r\n")
        .map(|answer| answer.split_once("\r\n\r\n"));
    let bodies: Vec<_> = bodies.flatten().map(|(_, body)| body).collect();
    assert_eq!(bodies, ["", "abc", ""], "{answers}");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_length_that_a_filter_made_ambiguous_is_not_sent() {
    let server = echo1().await;
    let events = Events::new();
    let script = events.script("a").act(|lent, _| {
        if let Lent::RequestHeaders(head) = lent {
            head.headers.append("content-length", "1".parse().unwrap());
        }
        Step::Continue
    });
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains());
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(Text::read(client.send(post(full("abc"))).await).await.body, "abc");
}

/// What tells the end of an answer is the proxy's to say, and interim answers are nobody's.
#[tokio::test]
async fn an_answers_framing_is_not_a_filters_to_say() {
    let events = Events::new();
    let script = events.script("a").act(|lent, _| {
        if let Lent::ResponseHeaders(head) = lent {
            match head.headers.find(b"x-do") {
                Some(b"coding") => {
                    let headers = head.headers.map_mut();
                    headers.remove("content-length");
                    headers.append("transfer-encoding", "chunked".parse().unwrap());
                }
                Some(b"lengths") => _ = head.headers.map_mut().append("content-length", "1".parse().unwrap()),
                Some(b"long") => _ = head.headers.map_mut().insert("content-length", "99".parse().unwrap()),
                Some(b"interim") => head.status = http::StatusCode::SWITCHING_PROTOCOLS,
                _ => {}
            }
        }
        Step::Continue
    });
    let server = Server::http1(|request| async move {
        let what = request.uri().path()[1..].to_owned();
        http::Response::builder()
            .header("x-do", &what)
            .body(full(what))
            .unwrap()
    })
    .await;
    let mesh = Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains());
    for (what, status, whole) in [
        ("nothing", 200, true),
        ("coding", 200, true),
        ("lengths", 200, true),
        ("long", 200, false),
        ("interim", 500, true),
    ] {
        let mut stream = mesh.dial(0).await;
        let wire = format!("GET /{what} HTTP/1.1\r\nhost: web\r\n\r\nGET /nothing HTTP/1.1\r\nhost: web\r\n\r\n");
        stream.write_all(wire.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answers = read_all(&mut stream).await;
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answers}");
        assert!(answers.matches("transfer-encoding").count() <= 1, "{what}: {answers}");
        let expect = if whole { 2 } else { 1 };
        assert_eq!(answers.matches("HTTP/1.1 ").count(), expect, "{what}: {answers}");
    }
}
