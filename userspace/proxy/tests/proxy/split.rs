//! TrafficSplit on traffic.

use http::StatusCode;
use tokio::io::AsyncWriteExt;

use crate::support::{H1, Mesh, Port, Spec, client::read_all, server::Server};

async fn two_versions(weights: [u32; 2], app_is_http: bool) -> (Spec, [Server; 2]) {
    let servers = if app_is_http {
        [Server::named("v1").await, Server::named("v2").await]
    } else {
        let speaker = |name: &'static str| {
            Server::raw(move |mut stream| async move { stream.write_all(name.as_bytes()).await.unwrap() })
        };
        [speaker("v1").await, speaker("v2").await]
    };
    let port = if app_is_http { Port::http } else { opaque };
    let mut web = port("web", vec![]);
    web.split = Some(vec![("v1", weights[0]), ("v2", weights[1])]);
    let spec = Spec::of([
        web,
        port("v1", vec![servers[0].address]),
        port("v2", vec![servers[1].address]),
    ]);
    (spec, servers)
}

fn opaque(name: &'static str, endpoints: Vec<std::net::SocketAddr>) -> Port {
    Port {
        app: weft_policy::AppProtocol::Opaque,
        ..Port::undeclared(name, endpoints)
    }
}

#[tokio::test]
async fn a_90_10_split_holds_over_1000_requests_of_one_connection() {
    let (spec, _servers) = two_versions([90, 10], true).await;
    let mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut first = 0;
    for _ in 0..1000 {
        first += usize::from(client.get("/").await.body == "v1");
    }
    // Six standard deviations.
    assert!((843..=957).contains(&first), "{first} of 1000");
}

#[tokio::test]
async fn a_split_that_comes_and_goes_concerns_the_next_request_of_a_connection() {
    let (split, _servers) = two_versions([0, 1], true).await;
    let whole = Server::named("whole").await;
    let mut alone = split.clone();
    (alone.ports[0].split, alone.ports[0].endpoints) = (None, vec![whole.address]);
    let mesh = Mesh::start(&alone);
    let mut client = H1::new(mesh.dial(0).await).await;
    for (spec, served_by) in [(&split, "v2"), (&alone, "whole"), (&split, "v2")] {
        mesh.publish(spec);
        for _ in 0..2 {
            assert_eq!(client.get("/").await.body, served_by);
        }
    }
}

#[tokio::test]
async fn every_request_is_told_with_where_it_went_and_what_let_it() {
    let (spec, _servers) = two_versions([1, 1], true).await;
    let mut mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..6 {
        let version = client.get("/").await.body;
        let flow = mesh.flow().await;
        assert_eq!(flow.destination.service.as_deref(), Some(&*version));
        assert_eq!(flow.rule.as_ref().unwrap().to_string(), "MeshConfig mesh");
    }
}

#[tokio::test]
async fn a_split_of_an_opaque_port_is_drawn_once_a_connection() {
    let (spec, _servers) = two_versions([50, 50], false).await;
    let mesh = Mesh::start(&spec);
    let mut first = 0;
    for _ in 0..200 {
        first += usize::from(read_all(&mut mesh.dial(0).await).await == "v1");
    }
    assert!((57..=143).contains(&first), "{first} of 200");
}

#[tokio::test]
async fn all_weights_zero_answers_500_and_names_the_split() {
    let (spec, servers) = two_versions([0, 0], true).await;
    let mesh = Mesh::start(&spec);
    let answer = H1::new(mesh.dial(0).await).await.get("/").await;
    assert_eq!(
        (answer.status, answer.header("x-weft-reason")),
        (StatusCode::INTERNAL_SERVER_ERROR, Some("no-backend"))
    );
    assert!(answer.body.contains("TrafficSplit default/split"), "{}", answer.body);
    assert_eq!(servers.map(|server| server.connections()), [0, 0]);
}

#[tokio::test]
async fn the_share_of_a_missing_backend_answers_500() {
    let (mut spec, _servers) = two_versions([0, 1], true).await;
    spec.ports.retain(|port| port.name != "v2");
    let mesh = Mesh::start(&spec);
    let answer = H1::new(mesh.dial(0).await).await.get("/").await;
    assert_eq!(answer.header("x-weft-reason"), Some("backend-missing"));
    assert!(answer.body.contains("default/v2"), "{}", answer.body);
}
