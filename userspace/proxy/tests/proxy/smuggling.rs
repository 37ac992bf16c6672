//! Requests that two parties could read in two ways: none reaches an endpoint in more than one of them.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;

use crate::support::{
    Mesh, Port, Spec,
    client::raw,
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
