//! Connections that are not HTTP: every end of TCP passes as what it is.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use weft_adapters::{FlowEvent, FlowVerdict};
use weft_policy::AppProtocol;

use crate::support::{
    Access, CLIENT, Mesh, Port, Spec, allow_paths, bodies::Pattern, class_of, client::read_all, closed_but_for,
    server::Server,
};

fn opaque(server: &Server) -> Spec {
    let mut port = Port::undeclared("db", [server.address]);
    port.app = AppProtocol::Opaque;
    Spec::of([port])
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A server that hands its connections to the test.
async fn caught() -> (Server, mpsc::UnboundedReceiver<TcpStream>) {
    let (sender, streams) = mpsc::unbounded_channel();
    let server = Server::raw(move |stream| {
        sender.send(stream).unwrap();
        async {}
    })
    .await;
    (server, streams)
}

#[tokio::test]
async fn a_half_close_of_the_client_leaves_the_answer_open() {
    let server = Server::raw(|mut stream| async move {
        let asked = read_all(&mut stream).await;
        stream
            .write_all(format!("{} bytes", asked.len()).as_bytes())
            .await
            .unwrap();
    })
    .await;
    let mut mesh = Mesh::start(&opaque(&server));
    let mut client = mesh.dial(0).await;
    client.write_all(b"0123456789").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "10 bytes");
    let (opened, closed) = (mesh.flow().await, mesh.flow().await);
    assert_eq!((opened.event, closed.event), (FlowEvent::Open, FlowEvent::Close));
    assert_eq!((closed.bytes_sent, closed.bytes_received), (10, 8));
}

#[tokio::test]
async fn a_half_close_of_the_server_leaves_the_request_open() {
    let (server, mut streams) = caught().await;
    let mesh = Mesh::start(&opaque(&server));
    let mut client = mesh.dial(0).await;
    let mut served = streams.recv().await.unwrap();
    served.write_all(b"bye").await.unwrap();
    served.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "bye");
    client.write_all(b"one more thing").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut served).await, "one more thing");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_on_an_undeclared_port() {
    let server = Server::raw(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let said = read_all(&mut stream).await;
        assert_eq!(said, "QUIT\r\n");
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::undeclared("mail", [server.address])]));
    let mut client = mesh.dial(0).await;
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    client.write_all(b"QUIT\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "");
}

#[tokio::test]
async fn a_client_that_only_listens_hears_the_server() {
    let server = Server::raw(|mut stream| async move {
        stream.write_all(b"tick").await.unwrap();
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::undeclared("clock", [server.address])]));
    let mut client = mesh.dial(0).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "tick");
}

#[tokio::test]
async fn what_was_read_to_detect_is_not_lost() {
    let server = Server::raw(|mut stream| async move {
        let asked = read_all(&mut stream).await;
        stream.write_all(asked.as_bytes()).await.unwrap();
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::undeclared("redis", [server.address])]));
    let mut client = mesh.dial(0).await;
    client.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "*1\r\n$4\r\nPING\r\n");
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_client_as_a_reset() {
    let (server, mut streams) = caught().await;
    let mesh = Mesh::start(&opaque(&server));
    let mut client = mesh.dial(0).await;
    reset(streams.recv().await.unwrap());
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_server_as_a_reset() {
    let (server, mut streams) = caught().await;
    let mesh = Mesh::start(&opaque(&server));
    let client = mesh.dial(0).await;
    let mut served = streams.recv().await.unwrap();
    reset(client);
    let error = served.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn bytes_that_are_no_http_are_denied_where_only_requests_are_allowed() {
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/"));
    let mut mesh = Mesh::start(&spec);
    let mut client = mesh.dial(0).await;
    client.write_all(b"\x00\x01 not http\r\n").await.unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let flow = mesh.flow().await;
    assert_eq!((flow.event, flow.verdict), (FlowEvent::Deny, FlowVerdict::Deny));
    assert!(
        flow.reason.contains("no rule kind for the protocol seen"),
        "{}",
        flow.reason
    );
    assert_eq!(flow.rule.as_ref().unwrap().to_string(), "TrafficTarget default/target");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_running_connection_that_a_new_policy_denies_is_reset() {
    let (server, mut streams) = caught().await;
    let spec = opaque(&server);
    let mut mesh = Mesh::start(&spec);
    let mut client = mesh.dial(0).await;
    let _served = streams.recv().await.unwrap();
    assert_eq!(mesh.flow().await.event, FlowEvent::Open);
    mesh.publish(&spec.clone().with_access(Access::Nobody));
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.flow().await.event, FlowEvent::Deny);
}

#[tokio::test]
async fn the_network_denies_and_cuts_connections() {
    let (server, mut streams) = caught().await;
    let mut spec = opaque(&server);
    spec.isolation = Some(closed_but_for([class_of(CLIENT)]));
    let mut mesh = Mesh::start(&spec);
    let mut client = mesh.dial(0).await;
    let _served = streams.recv().await.unwrap();
    let flow = mesh.flow().await;
    assert_eq!((flow.event, flow.verdict), (FlowEvent::Open, FlowVerdict::Allow));
    spec.isolation = Some(closed_but_for([]));
    mesh.publish(&spec);
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let flow = mesh.flow().await;
    assert_eq!((flow.event, flow.verdict), (FlowEvent::Deny, FlowVerdict::Deny));
    assert_eq!(flow.rule.as_ref().unwrap().to_string(), "NetworkPolicy default/closed");
    let mut again = mesh.dial(0).await;
    let error = again.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.flow().await.event, FlowEvent::Deny);
}

#[tokio::test]
async fn an_audited_connection_is_carried_and_reported() {
    let (server, mut streams) = caught().await;
    let mut spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/"));
    spec.audit = true;
    let mut mesh = Mesh::start(&spec);
    // No request, where rules speak of requests only: denied, were it not for the audit.
    let said = "\x00\x01 not http\r\n";
    let mut carried = async |mesh: &mut Mesh| {
        let mut client = mesh.dial(0).await;
        client.write_all(said.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut served = streams.recv().await.unwrap();
        assert_eq!(read_all(&mut served).await, said);
        drop(served);
        let (opened, closed) = (mesh.flow().await, mesh.flow().await);
        assert_eq!((opened.event, opened.verdict), (FlowEvent::Open, FlowVerdict::Audit));
        assert_eq!((closed.event, closed.verdict), (FlowEvent::Close, FlowVerdict::Audit));
        (opened.rule.as_ref().unwrap().to_string(), opened.reason.clone())
    };
    let (rule, reason) = carried(&mut mesh).await;
    assert_eq!(rule, "TrafficTarget default/target");
    assert!(
        reason.contains("(audit): no rule kind for the protocol seen"),
        "{reason}"
    );

    let mut isolation = closed_but_for([]);
    isolation.audit = true;
    (spec.isolation, spec.access) = (Some(isolation), Access::Everybody);
    mesh.publish(&spec);
    let (rule, reason) = carried(&mut mesh).await;
    assert_eq!(rule, "NetworkPolicy default/closed");
    assert_eq!(
        reason,
        "let through and reported (audit): no NetworkPolicy allows it (NetworkPolicy default/closed isolates)"
    );
}

#[tokio::test]
async fn a_slow_reader_stops_its_writer_and_loses_nothing() {
    const LENGTH: u64 = 32 << 20;
    let (server, mut streams) = caught().await;
    let mesh = Mesh::start(&opaque(&server));
    let mut client = mesh.dial(0).await;
    let mut served = streams.recv().await.unwrap();
    let written = tokio::spawn(async move {
        let mut at = 0;
        while at < LENGTH {
            let piece = Pattern::bytes(at, (LENGTH - at).min(100_003));
            client.write_all(&piece).await.unwrap();
            at += piece.len() as u64;
        }
        client.shutdown().await.unwrap();
        client
    });
    let mut buffer = vec![0; 7919];
    let mut at = 0;
    loop {
        let count = served.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        assert!(Pattern::matches(&buffer[..count], at), "wrong byte after position {at}");
        at += count as u64;
        tokio::task::yield_now().await;
    }
    assert_eq!(at, LENGTH);
    drop(written.await.unwrap());
}

#[tokio::test]
async fn destinations_outside_the_mesh_are_passed_through() {
    let server = Server::named("outside").await;
    let mesh = Mesh::start(&Spec::of([]));
    let mut client = crate::support::H1::new(mesh.dial_original(server.address).await).await;
    assert_eq!(client.get("/").await.body, "outside");
}
