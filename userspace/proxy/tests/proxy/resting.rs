//! HTTP/1 connections between two requests: what they keep, and that nothing is lost with what they give back.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use weft_proxy::limits::RETIRED_DRAIN;

use crate::support::{
    H1, Mesh, Port, Spec,
    bodies::pieces,
    client::{self, full, read_until, request},
    server::{Server, text},
};

async fn until_resting(mesh: &Mesh, count: i64) {
    let resting = async {
        while mesh.metrics().connections_resting.get() != count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), resting).await.expect("they rest");
}

/// Returns when a connection that was idle all the while would rest: another one, which began later, has rested twice after
/// requests that do not go the short way.
async fn long_enough_to_rest(mesh: &Mesh) {
    let mut other = H1::new(mesh.dial(0).await).await;
    for _ in 0..2 {
        other
            .send(request("POST", "/", full("a body")))
            .await
            .collect()
            .await
            .unwrap();
        until_resting(mesh, 1).await;
    }
    drop(other);
    until_resting(mesh, 0).await;
}

#[tokio::test]
async fn a_connection_that_rests_serves_its_next_request() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.body, "web");
        until_resting(&mesh, 1).await;
    }
    let body = client.send(request("POST", "/", full("a body"))).await.into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "web");
    until_resting(&mesh, 1).await;
    drop(client);
    until_resting(&mesh, 0).await;
}

#[tokio::test]
async fn a_request_that_comes_in_pieces_before_and_after_a_rest_is_whole() {
    let server = Server::http1(|request| async move { text(request.uri().path().to_owned()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    // The second has begun when the first is answered: the connection does not rest.
    client
        .write_all(b"GET /1 HTTP/1.1\r\nhost: web\r\n\r\nGET /2 HT")
        .await
        .unwrap();
    read_until(&mut client, "/1").await;
    long_enough_to_rest(&mesh).await;
    client.write_all(b"TP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    read_until(&mut client, "/2").await;
    until_resting(&mesh, 1).await;
    client.write_all(b"GET /3 HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    read_until(&mut client, "/3").await;
}

#[tokio::test]
async fn an_answer_that_the_client_has_not_read_arrives_whole() {
    const SIZE: usize = 32 << 20;
    let server = Server::http1(|request| async move {
        let size = if request.uri().path() == "/large" { SIZE } else { 0 };
        text("x".repeat(size))
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    client
        .write_all(b"GET /large HTTP/1.1\r\nhost: web\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    long_enough_to_rest(&mesh).await;
    let mut body = vec![0; SIZE];
    client.read_exact(&mut body).await.unwrap();
    assert!(body.iter().all(|byte| *byte == b'x'));
    until_resting(&mesh, 1).await;
}

/// The rest of a body must never be read as a request.
#[tokio::test]
async fn a_connection_with_the_rest_of_a_body_to_come_does_not_rest() {
    let server = Server::http1(|_| async { text("early") }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    let head = b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 60\r\n\r\n";
    client.write_all(head).await.unwrap();
    read_until(&mut client, "early").await;
    long_enough_to_rest(&mesh).await;
    let smuggled = b"GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    client.write_all(smuggled).await.unwrap();
    client.shutdown().await.unwrap();
    let rest = client::read_all(&mut client).await;
    assert!(!rest.contains("HTTP/1.1 200"), "{rest}");
}

/// Of a request that was answered before its body was there.
#[tokio::test]
async fn a_connection_rests_once_the_rest_of_a_body_is_read() {
    let server = Server::http1(|_| async { text("early") }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    let head = b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 8\r\n\r\n";
    client.write_all(head).await.unwrap();
    read_until(&mut client, "early").await;
    long_enough_to_rest(&mesh).await;
    client.write_all(b"the body").await.unwrap();
    until_resting(&mesh, 1).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    read_until(&mut client, "early").await;
}

#[tokio::test]
async fn a_drain_closes_connections_that_rest() {
    let server = Server::named("web").await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    read_until(&mut client, "web").await;
    until_resting(&mesh, 1).await;
    let report = mesh.workers.take().unwrap().drain(Duration::from_secs(60)).await;
    assert_eq!((report.finished, report.cut), (1, 0));
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "a FIN, no reset");
}

/// They were told of its retirement before, and went on.
#[tokio::test]
async fn a_retired_proxy_closes_connections_that_rest_before_its_deadline() {
    let server = Server::named("web").await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    read_until(&mut client, "web").await;
    until_resting(&mesh, 1).await;
    let deadline = RETIRED_DRAIN + Duration::from_secs(1);
    let report = mesh.workers.take().unwrap().retire(deadline).await;
    assert_eq!((report.finished, report.cut), (1, 0));
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "a FIN, no reset");
}

/// On an upstream connection whose exchange runs in the client's task.
#[tokio::test]
async fn an_answer_in_pieces_keeps_its_connection_to_the_endpoint() {
    let server = Server::http1(|_| async {
        let (sender, body) = pieces();
        tokio::spawn(async move {
            for piece in ["one ", "two ", "three"] {
                sender
                    .send(Frame::data(Bytes::from_static(piece.as_bytes())))
                    .await
                    .unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        });
        http::Response::new(body)
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.body, "one two three");
    }
    assert_eq!(server.connections(), 1);
}
