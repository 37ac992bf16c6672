//! Services whose workload is still starting, and services that are gone.

use std::time::Duration;

use http::StatusCode;
use weft_proxy::ProxyConfig;

use crate::support::{H1, Mesh, Port, Spec, client::read_all, server::Server};

fn starting() -> Spec {
    let mut web = Port::http("web", vec![]);
    web.pending = true;
    Spec::of([web])
}

#[tokio::test]
async fn a_request_waits_for_the_endpoint_that_is_starting() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&starting());
    let mut client = H1::new(mesh.dial(0).await).await;
    let publish = async {
        // A snapshot that does not help must not end the wait.
        mesh.publish(&starting());
        mesh.publish(&Spec::of([Port::http("web", [server.address])]));
    };
    let (answer, ()) = tokio::join!(client.get("/"), publish);
    assert_eq!(answer.body, "web");
}

#[tokio::test]
async fn an_opaque_connection_waits_too() {
    let server = Server::raw(|mut stream| async move {
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello")
            .await
            .unwrap();
    })
    .await;
    let mut port = Port::undeclared("web", vec![]);
    port.app = weft_policy::AppProtocol::Opaque;
    port.pending = true;
    let mesh = Mesh::start(&Spec::of([port.clone()]));
    let mut stream = mesh.dial(0).await;
    port.endpoints = vec![server.address];
    port.pending = false;
    mesh.publish(&Spec::of([port]));
    assert_eq!(read_all(&mut stream).await, "hello");
}

#[tokio::test]
async fn waiting_ends_at_the_deadline_and_at_once_when_nothing_is_to_come() {
    let config = ProxyConfig {
        pending_timeout: Duration::from_millis(50),
        ..ProxyConfig::default()
    };
    let mesh = Mesh::start_with(&starting(), config, Vec::new());
    let answer = H1::new(mesh.dial(0).await).await.get("/").await;
    assert_eq!(
        (answer.status, answer.header("x-weft-reason")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("no-endpoint"))
    );

    mesh.publish(&Spec::of([Port::http("web", vec![])]));
    let answer = H1::new(mesh.dial(0).await).await.get("/").await;
    assert_eq!(answer.header("x-weft-reason"), Some("no-endpoint"));
    assert!(answer.body.contains("default/web port 80"), "{}", answer.body);
}

#[tokio::test]
async fn a_service_that_is_gone_is_said_to_be_gone() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/").await.body, "web");
    mesh.publish(&Spec::of([]));
    let answer = client.get("/").await;
    assert_eq!(
        (answer.status, answer.header("x-weft-reason")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("service-unknown"))
    );
}
