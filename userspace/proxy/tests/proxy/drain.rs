//! The end of a proxy.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_adapters::FlowEvent;
use weft_policy::AppProtocol;
use weft_proxy::DrainReport;

use crate::support::{
    H1, H2, Mesh, Port, Spec,
    bodies::pieces,
    client::{empty, request},
    server::{Server, text},
};

#[tokio::test]
async fn a_request_under_way_finishes_and_new_connections_are_refused() {
    let (sender, body) = pieces();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let server = Server::http1(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async move { http::Response::new(body) }
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let address = mesh.proxy().local_addrs()[0];
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut response = client.send(request("GET", "/", empty())).await;
    let workers = mesh.workers.take().unwrap();
    let drained = tokio::spawn(workers.drain(Duration::from_secs(60)));
    // The listeners are closed: whoever connects now is refused.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    sender.send(Frame::data(Bytes::from_static(b"late"))).await.unwrap();
    drop(sender);
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "late");
    assert!(response.frame().await.is_none());
    assert_eq!(drained.await.unwrap(), DrainReport { finished: 1, cut: 0 });
}

#[tokio::test]
async fn an_http2_client_is_told_to_go_and_its_stream_under_way_finishes() {
    let (sender, body) = pieces();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let server = Server::http2(move |_| {
        let first = body.lock().unwrap().take();
        async move { first.map_or_else(|| text("also"), http::Response::new) }
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    let get = || http::Request::get("http://web/").body(empty()).unwrap();
    let mut response = client.send(get()).await;
    let workers = mesh.workers.take().unwrap();
    let drained = tokio::spawn(workers.drain(Duration::from_secs(60)));
    // What was on its way when it was told is answered; after that it sends no more there.
    while let Ok(also) = client.try_send(get()).await {
        assert_eq!(also.status(), 200);
    }
    sender.send(Frame::data(Bytes::from_static(b"late"))).await.unwrap();
    drop(sender);
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "late");
    assert!(response.collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(drained.await.unwrap(), DrainReport { finished: 1, cut: 0 });
}

#[tokio::test]
async fn idle_connections_are_closed_at_once() {
    let server = Server::named("web").await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    client.get("/").await;
    let _silent = mesh.dial(0).await;
    let report = mesh.workers.take().unwrap().drain(Duration::from_secs(60)).await;
    assert_eq!(report.cut, 0);
    assert!(client.try_get("/").await.is_err());
}

#[tokio::test]
async fn a_retired_proxy_answers_whoever_it_let_in_and_says_that_it_was_the_last_answer() {
    let server = Server::named("web").await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let address = mesh.proxy().local_addrs()[0];
    let mut kept = H1::new(mesh.dial(0).await).await;
    assert_eq!(kept.get("/").await.status, 200);
    let silent = mesh.dial(0).await;
    let workers = mesh.workers.take().unwrap();
    let retired = tokio::spawn(workers.retire(Duration::from_secs(60)));
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let mut late = H1::new(silent).await;
    for client in [&mut kept, &mut late] {
        let response = client.get("/").await;
        assert_eq!(
            (response.status.as_u16(), response.header("connection")),
            (200, Some("close"))
        );
    }
    // Nobody is left, so the deadline is not waited for.
    assert_eq!(retired.await.unwrap(), DrainReport { finished: 2, cut: 0 });
}

#[tokio::test]
async fn what_does_not_end_is_cut_at_the_deadline_and_counted() {
    let server = Server::raw(|mut stream| async move {
        stream.write_all(b"!").await.unwrap();
        let _client_left = stream.read_u8().await;
    })
    .await;
    let mut port = Port::undeclared("db", [server.address]);
    port.app = AppProtocol::Opaque;
    let mut mesh = Mesh::start(&Spec::of([port]));
    let mut client = mesh.dial(0).await;
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    let metrics = mesh.proxy().metrics().clone();
    let report = mesh.workers.take().unwrap().drain(Duration::from_millis(50)).await;
    assert_eq!(report, DrainReport { finished: 0, cut: 1 });
    assert_eq!(metrics.drain_cut.get(), 1);
    assert_eq!(metrics.connections_active.get(), 0);
    assert!(!matches!(client.read(&mut [0; 1]).await, Ok(1..)));
    let (opened, closed) = (mesh.flow().await, mesh.flow().await);
    assert_eq!((opened.event, closed.event), (FlowEvent::Open, FlowEvent::Close));
    assert_eq!((closed.bytes_sent, closed.bytes_received), (0, 1));
    assert!(closed.reason.starts_with("cut"), "{}", closed.reason);
}

#[tokio::test]
async fn an_upload_under_way_can_be_cut() {
    let (arrived, mut uploads) = tokio::sync::mpsc::channel(1);
    let server = Server::http1(move |mut request| {
        let arrived = arrived.clone();
        async move {
            request.frame().await.unwrap().unwrap();
            arrived.send(()).await.unwrap();
            while let Some(Ok(_)) = request.frame().await {}
            text("never read")
        }
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut stream = mesh.dial(0).await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 10\r\n\r\nabc")
        .await
        .unwrap();
    uploads.recv().await.unwrap();
    let report = mesh.workers.take().unwrap().drain(Duration::from_millis(50)).await;
    assert_eq!(report, DrainReport { finished: 0, cut: 1 });
}
