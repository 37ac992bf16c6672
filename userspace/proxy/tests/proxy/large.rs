//! 64 MiB each way, compared byte for byte.

use http::Response;

use crate::support::{
    H1, Mesh, Port, Spec,
    bodies::{Pattern, check_pattern},
    client::{empty, request},
    server::{Server, text},
};

const LENGTH: u64 = 64 << 20;

async fn mesh() -> Mesh {
    let server = Server::http1(|request| async move {
        match request.uri().path() {
            "/sized" => Response::new(Pattern::sized(LENGTH)),
            "/chunked" => Response::new(Pattern::chunked(LENGTH)),
            _ => text(check_pattern(request.into_body()).await.to_string()),
        }
    })
    .await;
    Mesh::start(&Spec::of([Port::http("web", [server.address])]))
}

#[tokio::test]
async fn uploads_arrive_byte_for_byte() {
    let mesh = mesh().await;
    let mut client = H1::new(mesh.dial(0).await).await;
    for body in [Pattern::sized(LENGTH), Pattern::chunked(LENGTH)] {
        let answer = crate::support::Text::read(client.send(request("POST", "/", body)).await).await;
        assert_eq!(answer.body, LENGTH.to_string());
    }
}

#[tokio::test]
async fn downloads_arrive_byte_for_byte() {
    let mut mesh = mesh().await;
    let mut client = H1::new(mesh.dial(0).await).await;
    for path in ["/sized", "/chunked"] {
        let response = client.send(request("GET", path, empty())).await;
        assert_eq!(check_pattern(response.into_body()).await, LENGTH);
        assert_eq!(mesh.flow().await.bytes_received, LENGTH);
    }
}
