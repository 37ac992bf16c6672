//! Requests that two parties could read in two ways: none reaches an endpoint in more than one of them.

use std::sync::{Arc, Mutex};

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Mesh, Port, Spec,
    client::{H1, Text, empty, raw, request},
    server::{Server, text},
};

/// A server that notes what arrives: method, path, body.
async fn noting() -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = seen.clone();
    let server = Server::http1(move |request| {
        let notes = notes.clone();
        async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let lengths = request.headers().get_all("content-length").iter().count();
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            notes
                .lock()
                .unwrap()
                .push(format!("{what} {lengths} {}", String::from_utf8_lossy(&body)));
            text("ok")
        }
    })
    .await;
    (server, seen)
}

#[tokio::test]
async fn malformed_framing_is_answered_400_and_the_connection_closed() {
    let (server, seen) = noting().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    for (name, headers, body) in [
        ("differing lengths", "content-length: 3\r\ncontent-length: 4\r\n", "abc"),
        ("list of lengths", "content-length: 3, 4\r\n", "abc"),
        ("negative length", "content-length: -1\r\n", ""),
        ("signed length", "content-length: +3\r\n", "abc"),
        (
            "bad chunk size",
            "transfer-encoding: chunked\r\n",
            "xyz\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "chunk without end",
            "transfer-encoding: chunked\r\n",
            "3\r\nabcdef\r\n0\r\n\r\n",
        ),
        (
            "overflowing chunk size",
            "transfer-encoding: chunked\r\n",
            "FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "chunked not last",
            "transfer-encoding: chunked, identity\r\n",
            "0\r\n\r\n",
        ),
        ("space before colon", "content-length : 3\r\n", "abc"),
        ("folded header", "x-a: 1\r\n content-length: 3\r\n", ""),
        ("second host", "host: other\r\n", ""),
    ] {
        let wire = format!(
            "POST /{} HTTP/1.1\r\nhost: web\r\n{headers}\r\n{body}{smuggled}",
            name.replace(' ', "-")
        );
        let answer = raw(mesh.dial(0).await, &wire).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|request| !request.contains("smuggled")), "{seen:?}");
}

//= RFC 9112, 6.3
//# A server MAY reject a request that contains both Content-Length and Transfer-Encoding or process such a request in
//# accordance with the Transfer-Encoding alone. Regardless, the server MUST close the connection after responding
#[tokio::test]
async fn with_both_lengths_the_chunks_count_and_the_connection_ends() {
    let (server, seen) = noting().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    for headers in [
        "content-length: 60\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 60\r\n",
    ] {
        let wire = format!(
            "POST /both HTTP/1.1\r\nhost: web\r\n{headers}\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n"
        );
        let answer = raw(mesh.dial(0).await, &wire).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(*seen.lock().unwrap(), ["POST /both 0 abc", "POST /both 0 abc"]);
}

#[tokio::test]
async fn a_chunked_get_arrives_whole() {
    let (server, seen) = noting().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    for method in ["GET", "HEAD"] {
        let wire = format!(
            "{method} /body HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        );
        let answer = raw(mesh.dial(0).await, &wire).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(*seen.lock().unwrap(), ["GET /body 0 abc", "HEAD /body 0 abc"]);
}

#[tokio::test]
async fn other_transfer_codings_are_not_implemented() {
    let (server, seen) = noting().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let wire = "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    let answer = raw(mesh.dial(0).await, wire).await;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    assert!(seen.lock().unwrap().is_empty());
}

/// An endpoint that answers every request with these bytes.
async fn saying(answer: String) -> Server {
    let answer: Arc<str> = answer.into();
    Server::raw(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

/// Both ways an answer goes: the short one, and hyper's.
const ASKED: [(&str, &str); 3] = [("GET", "/"), ("POST", "/"), ("GET", "/a%20b")];

//= RFC 9112, 6.3
//# If a message is received with both a Transfer-Encoding and a Content-Length header field, the Transfer-Encoding
//# overrides the Content-Length.
#[tokio::test]
async fn of_an_answer_with_both_lengths_the_chunks_count() {
    for length in [3, 60] {
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"
        );
        let server = saying(chunked).await;
        let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
        for (method, path) in ASKED {
            let mut client = H1::new(mesh.dial(0).await).await;
            let answer = Text::try_read(client.send(request(method, path, empty())).await).await;
            let answer = answer.unwrap_or_else(|error| panic!("{length} {method} {path}: {error:?}"));
            assert_eq!(answer.body, "0123456789", "{length} {method} {path}");
            assert_eq!(answer.header("content-length"), None, "{length} {method} {path}");
        }
    }
}

#[tokio::test]
async fn an_answer_has_one_length_or_is_none() {
    for (lengths, expect) in [
        ("content-length: 5\r\ncontent-length: 5\r\n", StatusCode::OK),
        ("content-length: 5, 5\r\n", StatusCode::BAD_GATEWAY),
        ("content-length: 5\r\ncontent-length: 6\r\n", StatusCode::BAD_GATEWAY),
    ] {
        let server = saying(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n12345")).await;
        let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
        for (method, path) in ASKED {
            let mut client = H1::new(mesh.dial(0).await).await;
            let answer = Text::read(client.send(request(method, path, empty())).await).await;
            assert_eq!(answer.status, expect, "{lengths} {method} {path}");
            let told = answer.headers.get_all("content-length").iter();
            assert_eq!(told.count(), 1, "{lengths} {method} {path}: {answer:?}");
            if expect == StatusCode::OK {
                assert_eq!(answer.body, "12345", "{lengths} {method} {path}");
            }
        }
    }
}
