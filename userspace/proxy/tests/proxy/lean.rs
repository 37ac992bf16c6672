//! Requests that go the short way, and what comes back on it.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_proxy::{ProxyConfig, balance::Balance};

use crate::support::{
    H1, Mesh, Port, Spec, Text,
    client::{empty, full, raw, read_all, read_until, request},
    server::{Server, text},
};

/// First line of the next head on `stream`; `None`: it has ended.
async fn next_request(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(read).ok()?.lines().next().map(str::to_owned)
}

/// A server that answers each request with what `answer` says of its first line, as it stands.
async fn answering(answer: fn(&str) -> Vec<u8>) -> Server {
    Server::raw(move |mut stream| async move {
        while let Some(line) = next_request(&mut stream).await {
            let answer = answer(&line);
            // In two writes, so that nobody relies on one.
            let (first, second) = answer.split_at(answer.len() / 2);
            for part in [first, second] {
                if stream.write_all(part).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            if line.contains("/close") {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_body_is_whole_however_its_end_is_told() {
    const LARGE: usize = 3 << 20;
    let server = answering(|line| {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        if line.contains("/sized") {
            answer.extend_from_slice(b"content-length: 5\r\n\r\nsized");
        } else if line.contains("/chunked") {
            answer.extend_from_slice(
                b"transfer-encoding: chunked\r\n\r\n3\r\nchu\r\n4;x=y\r\nnked\r\n0\r\nx-t: 1\r\n\r\n",
            );
        } else if line.contains("/large-chunked") {
            answer.extend_from_slice(format!("transfer-encoding: chunked\r\n\r\n{LARGE:x}\r\n").as_bytes());
            answer.resize(answer.len() + LARGE, b'x');
            answer.extend_from_slice(b"\r\n0\r\n\r\n");
        } else if line.contains("/large") {
            answer.extend_from_slice(format!("content-length: {LARGE}\r\n\r\n").as_bytes());
            answer.resize(answer.len() + LARGE, b'x');
        } else if line.contains("/hints") {
            answer = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhints"
                .to_vec();
        } else {
            answer.extend_from_slice(b"\r\nclose");
        }
        answer
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for round in 1..=3 {
        for path in ["/sized", "/chunked", "/hints", "/close"] {
            assert_eq!(client.get(path).await.body, path[1..], "{path}");
        }
        for path in ["/large", "/large-chunked"] {
            let body = client.get(path).await.body;
            assert!(body.len() == LARGE && body.bytes().all(|byte| byte == b'x'), "{path}");
        }
        assert_eq!(
            server.connections(),
            1 + round,
            "only what ends with its connection ends it"
        );
    }
}

#[tokio::test]
async fn each_request_of_a_connection_goes_where_it_leads_then() {
    let (here, there) = (Server::named("here").await, Server::named("there").await);
    let at = |server: &Server| Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start(&at(&here));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.body, "here");
    }
    mesh.publish(&at(&there));
    for _ in 0..2 {
        assert_eq!(client.get("/").await.body, "there");
    }
    mesh.publish(&Spec::default());
    assert!(client.get("/").await.status.is_server_error(), "the service is gone");
    mesh.publish(&at(&here));
    assert_eq!(client.get("/").await.body, "here");
}

#[tokio::test]
async fn requests_of_one_connection_take_turns_at_the_endpoints() {
    let (one, other) = (Server::named("one").await, Server::named("other").await);
    let config = ProxyConfig {
        balance: Balance::RoundRobin,
        ..ProxyConfig::default()
    };
    let spec = Spec::of([Port::http("web", [one.address, other.address])]);
    let mesh = Mesh::start_with(&spec, config, Vec::new());
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut served = Vec::new();
    for _ in 0..6 {
        served.push(client.get("/").await.body);
    }
    assert!(served.windows(2).all(|two| two[0] != two[1]), "{served:?}");
}

#[tokio::test]
async fn a_connection_that_waits_keeps_no_configuration_that_was_replaced() {
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/").await.body, "web");
    let replaced = Arc::downgrade(&mesh.snapshots().load_full());
    mesh.publish(&spec);
    let forgotten = async {
        while replaced.strong_count() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), forgotten)
        .await
        .expect("no request has to come for that");
    assert_eq!(client.get("/").await.body, "web");
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_the_endpoints_fault_and_the_client_goes_on() {
    let server = answering(|line| {
        let answer: &[u8] = if line.contains("/lengths") {
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
        } else if line.contains("/coding") {
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
        } else if line.contains("/protocol") {
            // No empty line, and then it waits.
            b"220 smtp.example ESMTP\r\n"
        } else if line.contains("/cut/close") {
            b"HTTP/1.1 200 OK\r\nx-a: "
        } else if line.contains("/upgrade") {
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        };
        answer.to_vec()
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for (path, reason) in [
        ("/lengths", "upstream-failed"),
        ("/coding", "upstream-failed"),
        ("/protocol", "upstream-failed"),
        ("/cut/close", "upstream-failed"),
        ("/upgrade", "unasked-upgrade"),
    ] {
        let answer = client.get(path).await;
        let told = (answer.status, answer.header("x-weft-reason"));
        assert_eq!(told, (StatusCode::BAD_GATEWAY, Some(reason)), "{path}: {}", answer.body);
        assert!(answer.body.starts_with("weft: "), "{}", answer.body);
        let flow = mesh.flow().await;
        assert_eq!(flow.l7.as_ref().unwrap().status, 502, "{path}");
        assert_eq!(client.get("/").await.body, "ok", "after {path}");
        assert_eq!(mesh.flow().await.l7.as_ref().unwrap().status, 200, "after {path}");
    }
    // The same where hyper asks.
    let answer = Text::read(client.send(request("POST", "/coding", empty())).await).await;
    let told = (answer.status, answer.header("x-weft-reason"));
    assert_eq!(
        told,
        (StatusCode::BAD_GATEWAY, Some("upstream-failed")),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn a_chunk_that_is_none_ends_the_answer_for_all_to_see() {
    let server = answering(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n\r\n3\r\ndef\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = client.try_get("/").await.unwrap().into_body();
    assert!(answer.collect().await.is_err(), "not as if it were whole");
    assert!(
        mesh.flow()
            .await
            .reason
            .starts_with("the endpoint broke off its answer")
    );
    let mut other = H1::new(mesh.dial(0).await).await;
    let _broken = other.try_get("/").await;
    assert_eq!(server.connections(), 2, "the connection is not used again");
}

/// What comes behind an answer would else be the next client's.
#[tokio::test]
async fn bytes_behind_an_answer_are_nobodys() {
    let server = answering(|line| {
        let path = line.split(' ').nth(1).unwrap_or_default();
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        (answer(path) + &answer("poison")).into_bytes()
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    for number in 0..20 {
        let path = format!("/{number}");
        assert_eq!(H1::new(mesh.dial(0).await).await.get(&path).await.body, path);
    }
}

#[tokio::test]
async fn a_connection_takes_either_way_by_turns() {
    let server = Server::http1(|request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let user = head.headers.get("x-user").map_or("-", |value| value.to_str().unwrap());
        text(format!(
            "{} {} {user} {}",
            head.method,
            head.uri,
            String::from_utf8_lossy(&body)
        ))
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for number in 0..4 {
        assert_eq!(
            client.get(&format!("/{number}")).await.body,
            format!("GET /{number} - ")
        );
        let sent = client.send(request("POST", "/post", full("a body"))).await;
        assert_eq!(
            sent.into_body().collect().await.unwrap().to_bytes(),
            "POST /post - a body"
        );
        for (method, status) in [("GET", 200), ("POST", 200)] {
            let flow = mesh.flow().await;
            let l7 = flow.l7.as_ref().unwrap();
            assert_eq!((&*l7.method, l7.status), (method, status));
        }
    }
    // One after the other in one write; the last does not go the short way.
    let wire = "GET /a HTTP/1.1\r\nHost: web\r\nX-User: me\r\n\r\nGET /b HTTP/1.1\r\nhost: web\r\n\r\n\
                POST /c HTTP/1.1\r\nhost: web\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    let answers = raw(mesh.dial(0).await, wire).await;
    for body in ["GET /a me ", "GET /b - ", "POST /c - hi"] {
        assert!(answers.contains(body), "{body}: {answers}");
    }
}

#[tokio::test]
async fn a_client_that_hesitates_within_a_head_is_served() {
    let server = Server::http1(|request| async move { text(request.uri().path().to_owned()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    for path in ["/1", "/2"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
        for byte in head.bytes() {
            client.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        read_until(&mut client, path).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "");
}
