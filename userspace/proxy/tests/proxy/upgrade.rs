//! Upgraded connections.

use std::time::Duration;

use http::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use weft_adapters::FlowVerdict;

use crate::support::{
    Mesh, Port, Spec, allow_paths,
    bodies::pieces,
    client::{raw, read_all, read_until},
    server::{Server, text},
};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// Upgrades, greets, then echoes.
async fn echo() -> Server {
    Server::http1(|mut request| async move {
        if request.headers().get("upgrade").is_none() {
            return text("no upgrade asked");
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            io.write_all(b"hi").await.unwrap();
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..count]).await.unwrap();
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(pieces().1)
            .unwrap()
    })
    .await
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel_both_ways() {
    let server = echo().await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut stream = mesh.dial(0).await;
    // The first frame comes with the request: it must not be lost between parser and tunnel.
    stream.write_all(format!("{ASK}early ").as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"),
        "{head}"
    );
    assert!(head.contains("connection: upgrade"), "{head}");
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "hiearly late");
    let flow = mesh.flow().await;
    assert_eq!(
        (flow.l7.as_ref().unwrap().status, flow.bytes_sent, flow.bytes_received),
        (101, 10, 12)
    );
}

#[tokio::test]
async fn an_upgrade_needs_the_same_permission() {
    let server = echo().await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/public"));
    let mesh = Mesh::start(&spec);
    let answer = raw(mesh.dial(0).await, &ASK.replace("Upgrade\r\n", "Upgrade, close\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_tunnel_is_cut_when_what_it_was_asked_with_is_denied() {
    let server = echo().await;
    let open = Spec::of([Port::http("web", [server.address])]);
    let mut mesh = Mesh::start(&open);
    let mut stream = mesh.dial(0).await;
    stream.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut stream, "hi").await;
    // It is allowed still.
    mesh.publish(&open.clone().with_access(allow_paths("/chat")));
    stream.write_all(b"more").await.unwrap();
    read_until(&mut stream, "more").await;
    mesh.publish(&open.with_access(allow_paths("/public")));
    let cut = timeout(Duration::from_secs(20), stream.read_u8()).await;
    let cut = cut.expect("it is cut").unwrap_err().kind();
    assert_eq!(cut, std::io::ErrorKind::ConnectionReset);
    let flow = mesh.flow().await;
    assert_eq!(flow.verdict, FlowVerdict::Deny);
    assert_eq!(flow.rule.as_ref().unwrap().to_string(), "TrafficTarget default/target");
    assert_eq!((flow.l7.as_ref().unwrap().status, flow.bytes_sent), (101, 4));
}

#[tokio::test]
async fn an_upgrade_to_http2_is_answered_as_if_not_asked() {
    let server = echo().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let ask = "GET / HTTP/1.1\r\nhost: web\r\nconnection: close, Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
               http2-settings: AAMAAABkAAQAoAAA\r\n\r\n";
    let answer = raw(mesh.dial(0).await, ask).await;
    assert!(answer.ends_with("no upgrade asked"), "{answer}");
}
