//! Filters on connections that are not HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_adapters::{Direction, FlowEvent, FlowVerdict, TcpStep};
use weft_policy::AppProtocol;
use weft_proxy::{
    ProxyConfig,
    limits::{FILTER_BODY_BUFFER, RELAY_BUFFER},
};

use super::split_over;
use crate::support::{
    Mesh, Port, Spec,
    bodies::Pattern,
    client::read_all,
    filter::{Events, chain, chains},
    server::{Nobody, Server},
};

fn opaque(server: &Server) -> Spec {
    let mut port = Port::undeclared("db", [server.address]);
    port.app = AppProtocol::Opaque;
    Spec::of([port])
}

/// Answers with everything, once it has everything.
async fn echo() -> Server {
    Server::raw(|mut stream| async move {
        let said = read_all(&mut stream).await;
        let _gone = stream.write_all(said.as_bytes()).await;
    })
    .await
}

fn pass(_: Direction, _: &mut BytesMut, _: bool) -> TcpStep {
    TcpStep::Continue
}

#[tokio::test]
async fn bytes_meet_the_first_filter_first_and_answers_last_and_ends_are_told() {
    let server = echo().await;
    let mut events = Events::new();
    let script = |name| events.script(name).tcp(TcpStep::Continue, pass, pass);
    // The last one does not look at connections.
    let chains = chains([script("a"), script("b"), events.script("c")]);
    let mesh = Mesh::filtered(&opaque(&server), chains);
    let mut client = mesh.dial(0).await;
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "abc");
    assert_eq!(
        events.until_end_of("b").await,
        [
            "a connection",
            "b connection",
            "a Downstream 3",
            "b Downstream 3",
            "a Downstream 0 end",
            "b Downstream 0 end",
            "a Downstream closed",
            "b Downstream closed",
            "b Upstream 3",
            "a Upstream 3",
            "b Upstream 0 end",
            "a Upstream 0 end",
            "a Upstream closed",
            "b Upstream closed",
            "a end ",
            "b end ",
        ]
    );
}

#[tokio::test]
async fn a_filter_refuses_a_connection_before_an_endpoint_sees_it() {
    let server = echo().await;
    let mut events = Events::new();
    let chains = events.script("a").tcp(TcpStep::Reset, pass, pass).chains();
    let mut mesh = Mesh::filtered(&opaque(&server), chains);
    let mut client = mesh.dial(0).await;
    assert_eq!(read_all(&mut client).await, "");
    assert_eq!(server.connections(), 0);
    assert_eq!(events.until_end_of("a").await, ["a connection", "a end "]);
    let flow = mesh.flow().await;
    assert_eq!((flow.event, flow.verdict), (FlowEvent::Deny, FlowVerdict::Deny));
    assert_eq!(flow.rule.as_ref().unwrap().to_string(), "Adapter a");
}

#[tokio::test]
async fn a_second_choice_that_other_filters_look_at_is_not_connected_to() {
    const CONNECTIONS: usize = 60;
    let alive = Server::raw(|mut stream| async move { stream.write_all(b"alive").await.unwrap() }).await;
    let mut events = Events::new();
    let looking = |name| Arc::new(chain([events.script(name).tcp(TcpStep::Continue, pass, pass)]));
    let dead = Nobody::new();
    let (spec, chains) = split_over(
        &dead,
        alive.address,
        AppProtocol::Opaque,
        looking("dead"),
        looking("alive"),
    );
    let mesh = Mesh::filtered(&spec, chains);
    let mut served = 0;
    for _ in 0..CONNECTIONS {
        served += usize::from(read_all(&mut mesh.dial(0).await).await == "alive");
    }
    let seen = events
        .rest()
        .iter()
        .filter(|event| *event == "alive connection")
        .count();
    assert!((1..CONNECTIONS).contains(&served), "{served}");
    assert_eq!(served, seen);
}

#[tokio::test]
async fn a_paused_connection_goes_on_when_the_filter_lets_it() {
    let server = echo().await;
    let mut events = Events::new();
    let (script, gate) = events.script("a").tcp(TcpStep::Pause, pass, pass).gated();
    let mesh = Mesh::filtered(&opaque(&server), script.chains());
    let mut client = mesh.dial(0).await;
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(events.next().await, "a connection");
    assert_eq!((server.connections(), events.rest().len()), (0, 0));
    gate.send(true).unwrap();
    assert_eq!(read_all(&mut client).await, "abc");
}

#[tokio::test]
async fn a_connection_that_a_filter_forgets_is_reset() {
    let config = || ProxyConfig {
        filter_pause: Duration::from_millis(100),
        ..ProxyConfig::default()
    };
    let server = echo().await;
    let hold = |_: Direction, _: &mut BytesMut, _: bool| TcpStep::Pause;
    let mut events = Events::new();
    let at_once = events.script("a").tcp(TcpStep::Pause, pass, pass).gated();
    let later = events.script("a").tcp(TcpStep::Continue, hold, pass).gated();
    for ((script, _gate), said) in [(at_once, &b""[..]), (later, b"abc")] {
        let mesh = Mesh::start_all(&opaque(&server), config(), script.chains());
        let mut client = mesh.dial(0).await;
        client.write_all(said).await.unwrap();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        events.until_end_of("a").await;
    }
}

#[tokio::test]
async fn bytes_that_are_held_back_gather_and_may_be_changed() {
    let server = echo().await;
    let mut events = Events::new();
    let lines = |_: Direction, data: &mut BytesMut, end: bool| {
        if !end && !data.ends_with(b"\n") {
            return TcpStep::Pause;
        }
        data.make_ascii_uppercase();
        TcpStep::Continue
    };
    let chains = events.script("a").tcp(TcpStep::Continue, lines, pass).chains();
    let mesh = Mesh::filtered(&opaque(&server), chains);
    let mut client = mesh.dial(0).await;
    assert_eq!(events.next().await, "a connection");
    for (piece, seen) in [
        ("ab", "a Downstream 2"),
        ("cd", "a Downstream 4"),
        ("\n", "a Downstream 5"),
    ] {
        client.write_all(piece.as_bytes()).await.unwrap();
        assert_eq!(events.next().await, seen);
    }
    client.write_all(b"rest").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "ABCD\nREST");
}

#[tokio::test]
async fn a_filter_that_holds_enough_makes_the_sender_wait() {
    const LENGTH: u64 = 8 << 20;
    let server = Server::raw(|mut stream| async move {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert!(Pattern::matches(&said, 0));
        stream.write_all(said.len().to_string().as_bytes()).await.unwrap();
    })
    .await;
    let mut events = Events::new();
    let released = Arc::new(AtomicBool::new(false));
    let release = Arc::clone(&released);
    let script = events.script("a").tcp(
        TcpStep::Continue,
        move |_, _, _| match released.load(Ordering::Relaxed) {
            true => TcpStep::Continue,
            false => TcpStep::Pause,
        },
        move |_, _, _| {
            release.store(true, Ordering::Relaxed);
            TcpStep::Continue
        },
    );
    let (script, gate) = script.gated();
    let mesh = Mesh::filtered(&opaque(&server), script.chains());
    let mut client = mesh.dial(0).await;
    let talk = tokio::spawn(async move {
        client.write_all(&Pattern::bytes(0, LENGTH)).await.unwrap();
        client.shutdown().await.unwrap();
        read_all(&mut client).await
    });
    assert_eq!(events.next().await, "a connection");
    let mut held = 0;
    while held <= FILTER_BODY_BUFFER {
        held = events.next().await["a Downstream ".len()..].parse().unwrap();
    }
    assert!(held <= FILTER_BODY_BUFFER + RELAY_BUFFER, "{held}");
    gate.send(true).unwrap();
    assert_eq!(talk.await.unwrap(), LENGTH.to_string());
    for event in events.until_end_of("a").await {
        if let Some(length) = event
            .strip_prefix("a Downstream ")
            .and_then(|length| length.parse::<usize>().ok())
        {
            assert!(length <= RELAY_BUFFER, "{event}");
        }
    }
}

#[tokio::test]
async fn a_reset_by_a_filter_is_told_though_the_sink_has_gone() {
    // It is done when one byte has come.
    let server = Server::raw(|mut stream| async move {
        stream.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
    })
    .await;
    let mut events = Events::new();
    let script = events.script("a").tcp(
        TcpStep::Continue,
        |from, _, _| match from {
            Direction::Downstream => TcpStep::Continue,
            Direction::Upstream => TcpStep::Pause,
        },
        |_, _, _| TcpStep::Reset,
    );
    let (script, gate) = script.gated();
    let mut mesh = Mesh::filtered(&opaque(&server), script.chains());
    let mut client = mesh.dial(0).await;
    assert_eq!(events.next().await, "a connection");
    assert_eq!(events.next().await, "a Upstream 1");
    client.write_all(b"1").await.unwrap();
    assert_eq!(events.next().await, "a Downstream 1");
    assert_eq!(events.next().await, "a Upstream 1 end");
    // The first meets a closed socket, whose reset fails the next.
    for byte in [b"2", b"3"] {
        client.write_all(byte).await.unwrap();
        assert_eq!(events.next().await, "a Downstream 1");
    }
    gate.send(true).unwrap();
    read_all(&mut client).await;
    let (opened, denied) = (mesh.flow().await, mesh.flow().await);
    assert_eq!((opened.event, denied.event), (FlowEvent::Open, FlowEvent::Deny));
    assert_eq!(denied.reason, "reset by adapter a");
}

#[tokio::test]
async fn a_reset_by_a_filter_resets_both_sides() {
    let server = echo().await;
    let mut events = Events::new();
    let chains = events
        .script("a")
        .tcp(TcpStep::Continue, |_, _, _| TcpStep::Reset, pass)
        .chains();
    let mut mesh = Mesh::filtered(&opaque(&server), chains);
    let mut client = mesh.dial(0).await;
    client.write_all(b"abc").await.unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(
        events.until_end_of("a").await,
        ["a connection", "a Downstream 3", "a end "]
    );
    let (opened, denied) = (mesh.flow().await, mesh.flow().await);
    assert_eq!((opened.event, denied.event), (FlowEvent::Open, FlowEvent::Deny));
    assert_eq!(denied.reason, "reset by adapter a");
}
