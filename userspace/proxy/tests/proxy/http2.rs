//! HTTP/2 with prior knowledge, and gRPC on it.

mod endpoint;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Barrier, mpsc},
    time::timeout,
};
use weft_adapters::{Bag, Check, Checking, Deny, Lent, Step};
use weft_proxy::ProxyConfig;

use crate::support::{
    Access, H2, Mesh, Port, Spec, Text, allow_paths,
    bodies::{Pattern, check_pattern, pieces},
    client::{Body, empty, full},
    closed_but_for,
    filter::Events,
    server::{Server, text},
};

/// With nothing in them.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A frame of the first stream, by hand.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
    frame.extend(payload);
    frame
}

/// SETTINGS_MAX_CONCURRENT_STREAMS, by hand.
fn streams_at_a_time(count: u8) -> [u8; 15] {
    [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, count]
}

/// Reads to the end of the next HEADERS frame; returns its stream. `None`: the client has left.
async fn read_head(stream: &mut TcpStream) -> Option<u8> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.ok()?;
        if head[3] == 1 {
            return Some(head[8]);
        }
    }
}

/// `:status 200` on a stream, by hand, with or without an end.
fn ok(stream: u8, end: bool) -> Vec<u8> {
    let mut answer = frame(1, if end { 5 } else { 4 }, b"\x88");
    answer[8] = stream;
    answer
}

/// What comes, within a minute.
async fn soon<F: Future>(comes: F) -> F::Output {
    timeout(Duration::from_secs(60), comes).await.expect("within a minute")
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://web{path}")).body(body).unwrap()
}

fn grpc(path: &str) -> Request<Body> {
    let mut request = request(path, full(&b"\0\0\0\0\0"[..]));
    request
        .headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request
}

#[tokio::test]
async fn concurrent_streams_share_one_upstream_connection() {
    const STREAMS: usize = 50;
    // Nobody is answered before everybody has asked: they must be under way at the same time.
    let all_here = Arc::new(Barrier::new(STREAMS));
    let server = Server::http2(move |request| {
        let all_here = all_here.clone();
        async move {
            assert_eq!(request.version(), Version::HTTP_2);
            all_here.wait().await;
            text(request.uri().path().to_owned())
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let client = H2::new(mesh.dial(0).await).await;
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let mut client = client.clone();
        asked.spawn(async move {
            let path = format!("/{number}");
            assert_eq!(Text::read(client.send(request(&path, empty())).await).await.body, path);
        });
    }
    while let Some(asked) = asked.join_next().await {
        asked.unwrap();
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn each_stream_of_a_connection_is_routed_and_judged_by_what_is_in_force_then() {
    let here = Server::http2(|_| async { text("here") }).await;
    let there = Server::http2(|_| async { text("there") }).await;
    let at = |server: &Server| Spec::of([Port::http("web", [server.address])]);
    let mut closed = at(&there);
    closed.isolation = Some(closed_but_for([]));
    let mesh = Mesh::start(&at(&here));
    let mut client = H2::new(mesh.dial(0).await).await;
    let mut ask = async |path: &str| {
        let answer = Text::read(client.send(request(path, empty())).await).await;
        (answer.status.as_u16(), answer.body)
    };
    for (spec, admin, public) in [
        (at(&here), (200, "here"), (200, "here")),
        (at(&there), (200, "there"), (200, "there")),
        (
            at(&there).with_access(allow_paths("/public")),
            (403, ""),
            (200, "there"),
        ),
        (at(&there), (200, "there"), (200, "there")),
        (closed, (403, ""), (403, "")),
        (at(&here), (200, "here"), (200, "here")),
        (at(&here).with_access(Access::Nobody), (403, ""), (403, "")),
    ] {
        mesh.publish(&spec);
        // The second and third of each are remembered, if that may be.
        for _ in 0..3 {
            for (path, expect) in [("/admin", admin), ("/public", public)] {
                let (status, body) = ask(path).await;
                assert_eq!(status, expect.0, "{path}: {body}");
                assert!(status != 200 || body == expect.1, "{path}: {body}");
            }
        }
    }
}

/// Answers `/endless` with pieces of this length for as long as somebody takes them, and counts them.
async fn endless(length: usize) -> (Server, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&sent);
    let server = Server::http2(move |request| {
        let sent = Arc::clone(&counts);
        async move {
            if request.uri().path() != "/endless" {
                return text(vec![b'x'; 64 << 10]);
            }
            let (sender, body) = pieces();
            tokio::spawn(async move {
                let piece = Bytes::from(vec![0; length]);
                while sender.send(Frame::data(piece.clone())).await.is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            Response::new(body)
        }
    })
    .await;
    (server, sent)
}

/// Asks on a connection of its own until no endless answer has gone on for a while.
async fn ask_until_all_stand_still(mesh: &Mesh, sent: &AtomicUsize) {
    let mut client = H2::new(mesh.dial(0).await).await;
    let asking = async {
        let (mut before, mut still) = (0, 0);
        while still < 20 {
            let answer = Text::read(client.send(request("/", empty())).await).await;
            assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 64 << 10));
            let now = sent.load(Ordering::Relaxed);
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
    };
    let asked = timeout(Duration::from_secs(60), asking).await;
    assert!(
        asked.is_ok(),
        "after {} pieces of the endless answers",
        sent.load(Ordering::Relaxed)
    );
}

#[tokio::test]
async fn readers_that_stand_still_hold_up_nobody_else() {
    // Far beyond all windows and buffers on the way, so that the endless answers come to a stop.
    const SLOW: usize = 16;
    let (server, sent) = endless(16 << 10).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        // Each on a connection of its own: its own window is nobody else's.
        let mut client = H2::new(mesh.dial(0).await).await;
        let answer = client.send(request("/endless", empty())).await;
        slow.push((client, answer));
    }
    ask_until_all_stand_still(&mesh, &sent).await;
}

/// Each takes h2 more memory than it has bytes; of too much of that it ends the connection.
#[tokio::test]
async fn small_pieces_that_nobody_reads_end_no_connection() {
    const STREAMS: u8 = 6;
    let (server, sent) = endless(24).await;
    // Each worker has connections of its own.
    let alone = ProxyConfig {
        workers: Some(1),
        ..ProxyConfig::default()
    };
    let mesh = Mesh::start_with(&Spec::of([Port::http("web", [server.address])]), alone, Vec::new());
    // By hand: hyper's client reads more than it is asked for, and ends its own connection over them.
    let mut slow = mesh.dial(0).await;
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Its windows are of 64 KiB.
    wire.extend(SETTINGS);
    // :method GET, :scheme http, :path, :authority (RFC 7541, 6.1 and 6.2.1).
    let block = b"\x82\x86\x44\x08/endless\x41\x03web";
    for number in 0..STREAMS {
        // HEADERS with END_STREAM and END_HEADERS.
        wire.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 2 * number + 1]);
        wire.extend(block);
    }
    slow.write_all(&wire).await.unwrap();
    while sent.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    ask_until_all_stand_still(&mesh, &sent).await;
    assert_eq!(server.connections(), 1, "it was ended");
}

/// The same of a client's connection, and what its endpoint does not take.
#[tokio::test]
async fn small_pieces_that_wait_for_an_endpoint_end_no_connection() {
    let server = Server::raw(|mut stream| async move {
        // It takes as much as HTTP/2 begins with, and then no more.
        stream.write_all(&SETTINGS).await.unwrap();
        let mut read = [0; 4096];
        while stream.read(&mut read).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/endless"));
    let mesh = Mesh::start(&spec);
    let mut client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let mut asks = client.clone();
    let asking = tokio::spawn(async move { asks.try_send(request("/endless", body)).await.map(drop) });
    let sent = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&sent);
    tokio::spawn(async move {
        while sender.send(Frame::data(Bytes::from_static(&[0; 24]))).await.is_ok() {
            counts.fetch_add(1, Ordering::Relaxed);
        }
    });
    let waiting = async {
        let (mut before, mut still) = (0, 0);
        while still < 20 {
            // The proxy answers that itself, on the same connection.
            let answer = client.send(request("/denied", empty())).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN);
            let now = sent.load(Ordering::Relaxed);
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
        }
    };
    soon(waiting).await;
    assert!(!asking.is_finished());
    asking.abort();
}

#[tokio::test]
async fn more_streams_than_a_connection_takes_open_another() {
    const STREAMS: usize = 150;
    let all_here = Arc::new(Barrier::new(STREAMS));
    let server = Server::http2(move |_| {
        let all_here = all_here.clone();
        async move {
            all_here.wait().await;
            text("ok")
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let client = H2::new(mesh.dial(0).await).await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let mut client = client.clone();
        asked.spawn(async move { Text::read(client.send(request("/", empty())).await).await.status });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn cookies_in_several_fields_are_one_for_adapters_and_endpoints() {
    struct Cookie;

    impl Check for Cookie {
        fn name(&self) -> &str {
            "cookie"
        }

        fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
            let cookies = bag.request.as_ref().unwrap().headers.get("cookie").unwrap();
            if cookies.contains("token=3") {
                return Checking::ALLOW;
            }
            Checking::deny(Deny {
                status: 401,
                message: format!("no token in {cookies:?}"),
                headers: Vec::new(),
                body: None,
                rule: None,
            })
        }
    }

    let server = Server::http2(|request| async move {
        let cookies: Vec<_> = request.headers().get_all("cookie").iter().collect();
        text(format!("{cookies:?}"))
    })
    .await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start_with(&spec, Default::default(), vec![Arc::new(Cookie)]);
    let mut ask = request("/", empty());
    for cookie in ["a=1; b=2", "token=3", "c=4"] {
        ask.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    let answer = Text::read(H2::new(mesh.dial(0).await).await.send(ask).await).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (200, r#"["a=1; b=2; token=3; c=4"]"#)
    );
}

#[tokio::test]
async fn grpc_status_passes_in_trailers_and_is_reported() {
    let server = Server::http2(|request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let (sender, body) = pieces();
        tokio::spawn(async move {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().unwrap());
            sender
                .send(Frame::data(Bytes::from_static(b"\0\0\0\0\0")))
                .await
                .unwrap();
            sender.send(Frame::trailers(trailers)).await.unwrap();
        });
        Response::builder()
            .header("content-type", "application/grpc")
            .body(body)
            .unwrap()
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    let answer = Text::read(client.send(grpc("/pkg.Service/Method")).await).await;
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "5");
    let flow = mesh.flow().await;
    assert_eq!(flow.protocol, weft_adapters::FlowProtocol::Grpc);
    assert_eq!(flow.l7.as_ref().unwrap().grpc_status, Some(5));
}

#[tokio::test]
async fn a_denied_grpc_call_is_permission_denied_without_a_body() {
    let server = Server::http2(|_| async move { text("never") }).await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(Access::Nobody);
    let mesh = Mesh::start(&spec);
    let mut client = H2::new(mesh.dial(0).await).await;
    let answer = Text::read(client.send(grpc("/pkg.Service/Method")).await).await;
    assert_eq!(
        (answer.status, answer.header("grpc-status")),
        (StatusCode::OK, Some("7"))
    );
    assert!(
        answer.header("grpc-message").unwrap().contains("MeshConfig mesh"),
        "{answer:?}"
    );
    assert_eq!(answer.body, "");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_grpc_call_that_an_adapter_denies_stays_grpc() {
    struct Html;

    impl Check for Html {
        fn name(&self) -> &str {
            "html"
        }

        fn check<'a>(&'a self, _: &'a Bag<'_>) -> Checking<'a> {
            let header = |text| HeaderValue::from_static(text);
            let deny = Deny::new(401, "no key").with_header(CONTENT_TYPE, header("text/html"));
            Checking::deny(deny.with_header(WWW_AUTHENTICATE, header("Key")))
        }
    }

    let server = Server::http2(|_| async move { text("never") }).await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start_with(&spec, Default::default(), vec![Arc::new(Html)]);
    let mut client = H2::new(mesh.dial(0).await).await;
    let answer = Text::read(client.send(grpc("/pkg.Service/Method")).await).await;
    let headers = ["content-type", "grpc-status", "www-authenticate"].map(|name| answer.header(name));
    assert_eq!(headers, [Some("application/grpc"), Some("16"), Some("Key")]);
}

#[tokio::test]
async fn bodies_larger_than_all_windows_pass_both_ways() {
    const LENGTH: u64 = 8 << 20;
    let server = Server::http2(|request| async move {
        assert_eq!(check_pattern(request.into_body()).await, LENGTH);
        Response::new(Pattern::chunked(LENGTH))
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    let response = client.send(request("/", Pattern::chunked(LENGTH))).await;
    assert_eq!(check_pattern(response.into_body()).await, LENGTH);
}

#[tokio::test]
async fn a_stream_that_the_endpoint_resets_harms_no_other() {
    let server = Server::http2(|request| async move {
        let (sender, body) = pieces();
        if request.uri().path() == "/broken" {
            // Announces more than it sends: hyper resets the stream.
            tokio::spawn(async move { sender.send(Frame::data(Bytes::from_static(b"abc"))).await });
            return Response::builder().header("content-length", "10").body(body).unwrap();
        }
        let echoed = request.into_body().collect().await.unwrap().to_bytes();
        text(echoed)
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let mut open = client.clone();
    let other = tokio::spawn(async move { Text::read(open.send(request("/", body)).await).await });
    // The reset may overtake the head.
    if let Ok(broken) = client.clone().try_send(request("/broken", empty())).await {
        assert!(broken.into_body().collect().await.is_err());
    }
    sender
        .send(Frame::data(Bytes::from_static(b"still here")))
        .await
        .unwrap();
    drop(sender);
    assert_eq!(other.await.unwrap().body, "still here");
    assert_eq!(server.connections(), 1);
}

/// A body that has pieces of nothing before its text.
fn with_empty_pieces(text: Bytes) -> Body {
    let (sender, body) = pieces();
    tokio::spawn(async move {
        for piece in [Bytes::new(), Bytes::new(), Bytes::new(), text] {
            if sender.send(Frame::data(piece)).await.is_err() {
                return;
            }
        }
    });
    body
}

/// h2 ends a connection after 100 of them.
#[tokio::test]
async fn empty_pieces_of_many_bodies_end_no_connection() {
    const REQUESTS: usize = 70;
    let server = Server::http2(|request| async move {
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(with_empty_pieces(asked))
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    for number in 0..REQUESTS {
        let asked = number.to_string();
        let body = with_empty_pieces(asked.clone().into());
        let answer = Text::read(client.send(request("/", body)).await).await;
        assert_eq!(answer.body, asked);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_flood_of_empty_pieces_ends_its_connection_alone() {
    let server = Server::http2(|request| async move {
        let asked = request.into_body().collect().await;
        text(asked.map(|asked| asked.to_bytes()).unwrap_or_default())
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut other = H2::new(mesh.dial(0).await).await;
    let mut client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    tokio::spawn(async move {
        for _ in 0..10_000 {
            if sender.send(Frame::data(Bytes::new())).await.is_err() {
                return;
            }
        }
        // It has no end.
        std::future::pending::<()>().await;
    });
    assert!(client.try_send(request("/", body)).await.is_err());
    assert!(client.try_send(request("/", empty())).await.is_err());
    let answer = Text::read(other.send(request("/", full("still here"))).await).await;
    assert_eq!(answer.body, "still here");
}

#[tokio::test]
async fn both_bodies_of_an_exchange_go_on_at_the_same_time() {
    let server = Server::http2(|request| async move { Response::new(request.into_body().boxed()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let mut answer = client.send(request("/", body)).await.into_body();
    for piece in ["one", "two", "three"] {
        sender
            .send(Frame::data(Bytes::from_static(piece.as_bytes())))
            .await
            .unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-last", "word".parse().unwrap());
    sender.send(Frame::trailers(trailers)).await.unwrap();
    let rest = answer.collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["x-last"], "word");
    assert_eq!(rest.to_bytes(), "");
}

/// A server that tells of each piece of a body (`None`), and of what ended it if not its end.
async fn telling() -> (Server, mpsc::UnboundedReceiver<Option<Option<Reason>>>) {
    let (told, heard) = mpsc::unbounded_channel();
    let server = Server::http2(move |request| {
        let told = told.clone();
        async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                let reset = frame.err().map(|error| {
                    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
                    cause.and_then(h2::Error::reason)
                });
                told.send(reset).unwrap();
                if reset.is_some() {
                    break;
                }
            }
            text("whole")
        }
    })
    .await;
    (server, heard)
}

#[tokio::test]
async fn a_client_that_gives_up_ends_its_request_at_the_endpoint() {
    let (server, mut heard) = telling().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let mut asks = client.clone();
    let asking = tokio::spawn(async move { asks.try_send(request("/", body)).await.map(drop) });
    sender.send(Frame::data(Bytes::from_static(b"begun"))).await.unwrap();
    assert_eq!(soon(heard.recv()).await, Some(None));
    asking.abort();
    assert_eq!(soon(heard.recv()).await, Some(Some(Some(Reason::CANCEL))));
    // The connections go on.
    let mut other = client.clone();
    let answer = Text::read(other.send(request("/", empty())).await).await;
    assert_eq!(answer.body, "whole");
    assert_eq!(server.connections(), 1);
}

/// The endpoint has answered with a head and reads no further, so the request waits for room that it never makes.
#[tokio::test]
async fn a_client_that_gives_up_a_request_that_stands_still_ends_it_at_the_endpoint() {
    const WINDOW: usize = 65_535;
    let (tell, mut heard) = mpsc::unbounded_channel();
    let server = Server::raw(move |mut stream| {
        let tell = tell.clone();
        async move {
            stream.write_all(&SETTINGS).await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
            assert_eq!(read_head(&mut stream).await, Some(1));
            stream.write_all(&ok(1, false)).await.unwrap();
            let (mut head, mut room) = ([0; 9], WINDOW);
            while stream.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                stream.read_exact(&mut payload).await.unwrap();
                match head[3] {
                    0 => {
                        room -= length;
                        if room == 0 {
                            tell.send(None).unwrap();
                        }
                    }
                    3 => tell.send(Some(payload)).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let (mut client, connection) = h2::client::handshake(mesh.dial(0).await).await.unwrap();
    tokio::spawn(connection);
    let asked = Request::post("http://web.shop/").body(()).unwrap();
    let (answer, mut body) = client.send_request(asked, false).unwrap();
    body.send_data(vec![b'x'; 2 * WINDOW].into(), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let told = soon(heard.recv()).await;
    assert_eq!(told, Some(None), "it has sent what the window takes");
    body.send_reset(Reason::CANCEL);
    let told = soon(heard.recv()).await;
    assert_eq!(told, Some(Some(u32::from(Reason::CANCEL).to_be_bytes().to_vec())));
}

/// A mesh in which a filter puts into trailers what HTTP/2 forbids there.
fn forbidden_trailers(events: &Events, server: &Server) -> Mesh {
    let script = events.script("a").act(|lent, _| {
        if let Lent::RequestTrailers(trailers, _) | Lent::ResponseTrailers(trailers, _) = lent {
            trailers.insert("connection", "close".parse().unwrap());
        }
        Step::Continue
    });
    Mesh::filtered(&Spec::of([Port::http("web", [server.address])]), script.chains())
}

fn trailers() -> Frame<Bytes> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-last", "word".parse().unwrap());
    Frame::trailers(trailers)
}

#[tokio::test]
async fn trailers_that_http2_forbids_end_the_request_on_both_sides() {
    let (server, mut heard) = telling().await;
    let events = Events::new();
    let mesh = forbidden_trailers(&events, &server);
    let mut client = H2::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let asking = tokio::spawn(async move { client.try_send(request("/", body)).await });
    sender.send(Frame::data(Bytes::from_static(b"begun"))).await.unwrap();
    assert_eq!(soon(heard.recv()).await, Some(None));
    sender.send(trailers()).await.unwrap();
    let reset = soon(heard.recv()).await;
    assert_eq!(reset, Some(Some(Some(Reason::INTERNAL_ERROR))));
    let answer = asking.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn trailers_that_http2_forbids_end_the_answer() {
    let server = Server::http2(|_| async move {
        let (sender, body) = pieces();
        tokio::spawn(async move {
            for frame in [Frame::data(Bytes::from_static(b"begun")), trailers()] {
                let _client_left = sender.send(frame).await;
            }
        });
        Response::new(body)
    })
    .await;
    let events = Events::new();
    let mesh = forbidden_trailers(&events, &server);
    let mut client = H2::new(mesh.dial(0).await).await;
    let reading = async {
        // The reset may overtake the head.
        match client.try_send(request("/", empty())).await {
            Ok(answer) => answer.into_body().collect().await.is_ok(),
            Err(_reset) => false,
        }
    };
    assert!(!soon(reading).await, "it was whole");
}

/// hyper takes a body that is reset with NO_ERROR for one that has ended.
#[tokio::test]
async fn a_request_that_is_reset_without_an_error_is_not_whole() {
    let (server, mut heard) = telling().await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = mesh.dial(0).await;
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    wire.extend(SETTINGS);
    // :method POST, :scheme http, :path /, :authority (RFC 7541, 6.1 and 6.2.1).
    wire.extend(frame(1, 4, b"\x83\x86\x84\x41\x03web"));
    wire.extend(frame(0, 0, b"begun"));
    client.write_all(&wire).await.unwrap();
    assert_eq!(soon(heard.recv()).await, Some(None));
    client.write_all(&frame(3, 0, &[0; 4])).await.unwrap();
    assert_eq!(soon(heard.recv()).await, Some(Some(Some(Reason::CANCEL))));
}

#[tokio::test]
async fn an_answer_that_is_reset_without_an_error_is_not_whole() {
    let server = Server::raw(|mut stream| async move {
        stream.write_all(&SETTINGS).await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        assert_eq!(read_head(&mut stream).await, Some(1));
        // :status 200, and a reset after a piece of its body.
        let wire = [frame(1, 4, b"\x88"), frame(0, 0, b"abc"), frame(3, 0, &[0; 4])];
        stream.write_all(&wire.concat()).await.unwrap();
        while stream.read(&mut [0; 100]).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    match client.try_send(request("/", empty())).await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            assert!(answer.into_body().collect().await.is_err());
        }
        // The reset may overtake the head.
        Ok(answer) => assert_eq!(answer.status(), StatusCode::BAD_GATEWAY),
        Err(_reset) => {}
    }
}
