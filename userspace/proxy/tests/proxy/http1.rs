//! HTTP/1.1: connections, bodies, and what a head may be.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use weft_adapters::Chains;
use weft_proxy::{ProxyConfig, balance::Balance};

use crate::support::{
    H1, Mesh, Port, Spec, Text,
    bodies::pieces,
    client::{self, raw, read_until, request},
    filter::Events,
    server::{Nobody, Server, text},
};

#[tokio::test]
async fn requests_of_one_connection_share_one_upstream_connection() {
    let server = Server::named("web").await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.body, "web");
    }
    assert_eq!(server.connections(), 1);
    let flow = mesh.flow().await;
    let l7 = flow.l7.as_ref().unwrap();
    assert_eq!(
        (&*l7.method, l7.path.as_str(), l7.status, l7.response_bytes),
        ("GET", "/", 200, 3)
    );
    assert_eq!(
        (flow.source.account.as_str(), flow.destination.service.as_deref()),
        ("client", Some("web"))
    );
}

#[tokio::test]
async fn ipv6_and_v4_mapped_destinations_are_the_same_service() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    for original in ["[2001:2::1]:80", "[::ffff:240.240.0.1]:80", "240.240.0.1:80"] {
        let mut client = H1::new(mesh.dial_original(original.parse().unwrap()).await).await;
        assert_eq!(client.get("/").await.body, "web", "{original}");
    }
}

#[tokio::test]
async fn the_endpoint_sees_host_query_and_the_clients_address() {
    let server = Server::http1(|request| async move {
        let header = |name: &str| {
            request
                .headers()
                .get(name)
                .map_or("-", |value| value.to_str().unwrap())
                .to_owned()
        };
        text(format!(
            "{} {} {}",
            request.uri(),
            header("host"),
            header("x-forwarded-for")
        ))
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/a?b=c").await.body, "/a?b=c web 127.0.0.1");
}

#[tokio::test]
async fn trailers_of_chunked_bodies_pass_both_ways() {
    let server = Server::http1(|request| async move {
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().unwrap()["x-sum"].clone();
        let (sender, body) = pieces();
        tokio::spawn(async move {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-echo", sum);
            sender.send(Frame::data(collected.to_bytes())).await.unwrap();
            sender.send(Frame::trailers(trailers)).await.unwrap();
        });
        Response::builder().header("trailer", "x-echo").body(body).unwrap()
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    let mut request = request("POST", "/", body);
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let feed = async move {
        sender.send(Frame::data(Bytes::from_static(b"abc"))).await.unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "3".parse().unwrap());
        sender.send(Frame::trailers(trailers)).await.unwrap();
    };
    let (response, ()) = tokio::join!(client.send(request), feed);
    let answer = Text::read(response).await;
    assert_eq!(answer.body, "abc");
    assert_eq!(answer.trailers.unwrap()["x-echo"], "3");
}

#[tokio::test]
async fn a_body_in_one_byte_chunks_written_byte_by_byte_arrives() {
    let server = Server::http1(|request| async move { text(request.collect().await.unwrap().to_bytes()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut stream = mesh.dial(0).await;
    let message = "abcdefghijklmnopqrstuvwxyz".repeat(8);
    let mut wire = "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for letter in message.chars() {
        wire.push_str(&format!("1\r\n{letter}\r\n"));
    }
    wire.push_str("0\r\n\r\n");
    for byte in wire.bytes() {
        stream.write_u8(byte).await.unwrap();
    }
    let answer = client::read_all(&mut stream).await;
    assert!(answer.ends_with(&format!("\r\n\r\n{message}")), "{answer}");
}

#[tokio::test]
async fn an_answer_streams_while_the_request_still_does() {
    let server = Server::http1(|request| async move { Response::new(request.into_body().boxed()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    let (sender, body) = pieces();
    sender.send(Frame::data(Bytes::from_static(b"0"))).await.unwrap();
    let mut echoed = client.send(request("POST", "/", body)).await.into_body();
    for piece in ["0", "1", "2", "3"] {
        assert_eq!(echoed.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        let next = (piece.parse::<u32>().unwrap() + 1).to_string();
        sender.send(Frame::data(Bytes::from(next))).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_expects_continue_is_told_only_when_the_endpoint_agrees() {
    let server = Server::http1(|request| async move {
        if request.uri().path() == "/refuse" {
            let mut response = text("too much");
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return response;
        }
        text(request.collect().await.unwrap().to_bytes())
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let head = |path| format!("POST {path} HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");

    let mut stream = mesh.dial(0).await;
    stream.write_all(head("/take").as_bytes()).await.unwrap();
    assert_eq!(
        read_until(&mut stream, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    stream.write_all(b"abc").await.unwrap();
    assert!(read_until(&mut stream, "abc").await.starts_with("HTTP/1.1 200 OK\r\n"));

    let mut stream = mesh.dial(0).await;
    stream.write_all(head("/refuse").as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "too much").await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::http1(|request| async move { text(request.uri().path().to_owned()) }).await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let wire: String = (0..20)
        .map(|number| {
            let connection = if number == 19 { "close" } else { "keep-alive" };
            format!("GET /{number:02} HTTP/1.1\r\nhost: web\r\nconnection: {connection}\r\n\r\n")
        })
        .collect();
    let answer = raw(mesh.dial(0).await, &wire).await;
    let bodies: Vec<_> = answer
        .split("\r\n\r\n")
        .skip(1)
        .map(|rest| rest[..3].to_owned())
        .collect();
    assert_eq!(
        bodies,
        (0..20).map(|number| format!("/{number:02}")).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn answers_without_a_body_have_none_and_keep_their_headers() {
    let server = Server::raw(|mut stream| async move {
        // By hand: hyper's server would not send these lengths.
        while let Ok(line) = tokio::time::timeout(std::time::Duration::from_secs(60), head_of(&mut stream)).await {
            let Some(line) = line else { return };
            let answer: &[u8] = if line.starts_with("HEAD /sized") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n"
            } else if line.starts_with("HEAD /chunked") {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            } else if line.starts_with("GET /204") {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            } else {
                b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 42\r\n\r\n"
            };
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for (method, path, status, length) in [
        ("HEAD", "/sized", 200, Some("42")),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/204", 204, None),
        // hyper sends no length with a 304; RFC 9110 8.6 leaves it free to.
        ("GET", "/304", 304, None),
    ] {
        let answer = Text::read(client.send(request(method, path, client::empty())).await).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("content-length"), length, "{path}");
        assert_eq!(answer.body, "", "{path}");
    }
    assert_eq!(
        server.connections(),
        1,
        "an answer without body leaves its connection usable"
    );
}

async fn head_of(stream: &mut tokio::net::TcpStream) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(read).ok()
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_answer_that_ends_with_the_connection() {
    let server = Server::http1(|request| async move {
        assert_eq!(request.version(), http::Version::HTTP_11);
        let (sender, body) = pieces();
        sender
            .send(Frame::data(Bytes::from_static(b"chunked for others")))
            .await
            .unwrap();
        Response::new(body)
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let answer = raw(mesh.dial(0).await, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.ends_with("\r\n\r\nchunked for others") && !answer.contains("transfer-encoding"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_has_shut_its_writing_side_gets_its_answer() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut stream = mesh.dial(0).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(client::read_all(&mut stream).await.ends_with("\r\n\r\nweb"));
}

#[tokio::test]
async fn a_reused_connection_that_the_endpoint_closed_is_replaced_unseen() {
    // Closes every connection after one answer without saying so before.
    let server = Server::raw(|mut stream| async move {
        if head_of(&mut stream).await.is_some() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            let _second_request_arrives = stream.read_u8().await;
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.body, "ok");
    }
    assert_eq!(server.connections(), 10);
    assert_eq!(mesh.metrics().upstream_retried.get(), 9);
}

/// Answers one request; at the next one, nobody listens any more.
async fn about_to_go() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head_of(&mut stream).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ngoing";
        stream.write_all(answer).await.unwrap();
        let _next = head_of(&mut stream).await;
        drop(listener);
    });
    address
}

#[tokio::test]
async fn a_request_that_was_lost_with_its_endpoint_goes_to_another() {
    let stays = Server::named("stays").await;
    let filters = Events::new();
    let filtered = || filters.script("a").chains();
    for (way, path, chains) in [
        ("short", "/", Chains::default()),
        ("short, through filters", "/", filtered()),
        ("hyper", "/a%20b", Chains::default()),
        ("hyper, through filters", "/a%20b", filtered()),
    ] {
        let spec = Spec::of([Port::http("web", [about_to_go().await, stays.address])]);
        let config = ProxyConfig {
            balance: Balance::RoundRobin,
            ..ProxyConfig::default()
        };
        let mut mesh = Mesh::start_all(&spec, config, chains);
        let mut client = H1::new(mesh.dial(0).await).await;
        let mut bodies = Vec::new();
        for _ in 0..4 {
            let answer = client.get(path).await;
            assert_eq!(answer.status, StatusCode::OK, "{way}: {answer:?}");
            bodies.push(answer.body);
        }
        assert_eq!(mesh.metrics().upstream_retried.get(), 1, "{way}: {bodies:?}");
        for body in &bodies {
            let told = mesh.flow().await.destination.port;
            assert_eq!(told == stays.address.port(), body == "stays", "{way}: {bodies:?}");
        }
        assert_eq!(
            bodies.iter().filter(|body| *body == "going").count(),
            1,
            "{way}: {bodies:?}"
        );
    }
}

#[tokio::test]
async fn a_post_on_a_connection_that_broke_is_not_repeated() {
    let server = Server::raw(|mut stream| async move {
        if head_of(&mut stream).await.is_some() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            let _second_request_arrives = stream.read_u8().await;
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/").await.body, "ok");
    let answer = Text::read(client.send(request("POST", "/", client::empty())).await).await;
    assert_eq!(
        (answer.status, answer.header("x-weft-reason")),
        (StatusCode::BAD_GATEWAY, Some("upstream-failed"))
    );
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn refused_endpoints_are_passed_over_and_a_dead_service_says_so() {
    let server = Server::named("alive").await;
    let nobody = Nobody::new();
    let dead = nobody.address;
    let mesh = Mesh::start(&Spec::of([
        Port::http("web", [dead, server.address]),
        Port::http("dead", [dead]),
    ]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.body, "alive");
    }
    let answer = H1::new(mesh.dial(1).await).await.get("/").await;
    assert_eq!(
        (answer.status, answer.header("x-weft-reason")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("connect-failed"))
    );
    assert!(answer.body.contains(&dead.to_string()), "{}", answer.body);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_as_whole() {
    let server = Server::raw(|mut stream| async move {
        head_of(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        stream.write_all(part).await.unwrap();
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    let response = client.send(request("GET", "/", client::empty())).await;
    assert!(response.into_body().collect().await.is_err());
    assert!(
        mesh.flow()
            .await
            .reason
            .starts_with("the endpoint broke off its answer")
    );
}

/// Its body ends with the connection: only a reset tells that it is not whole.
#[tokio::test]
async fn an_answer_that_breaks_off_is_reset_for_an_http_1_0_client() {
    let server = Server::raw(|mut stream| async move {
        head_of(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        stream.write_all(part).await.unwrap();
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut stream = mesh.dial(0).await;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    let ended = stream.read_to_end(&mut read).await;
    let read = String::from_utf8_lossy(&read);
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{read}");
    assert!(read.ends_with("\r\n\r\nabc"), "{read}");
}

#[tokio::test]
async fn an_endpoint_learns_that_its_client_has_gone() {
    let (gone, mut went) = tokio::sync::mpsc::channel(1);
    let server = Server::http1(move |_| {
        let (sender, body) = pieces();
        let gone = gone.clone();
        tokio::spawn(async move {
            while sender.send(Frame::data(Bytes::from_static(b"tick"))).await.is_ok() {}
            gone.send(()).await.unwrap();
        });
        async move { Response::new(body) }
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    let mut response = client.send(request("GET", "/", client::empty())).await;
    response.frame().await.unwrap().unwrap();
    drop((response, client));
    went.recv().await.unwrap();
    assert_eq!(mesh.flow().await.l7.as_ref().unwrap().status, 200);
}

#[tokio::test]
async fn connect_is_refused() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let answer = raw(
        mesh.dial(0).await,
        "CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("x-weft-reason: connect-method"), "{answer}");
}

#[tokio::test]
async fn headers_beyond_the_limits_are_refused_and_others_pass() {
    let server = Server::named("web").await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let get = |headers: String| format!("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{headers}\r\n");
    let many: String = (0..150).map(|number| format!("x-{number}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "a".repeat(70 * 1024));
    let allowed = format!("x-large: {}\r\n", "a".repeat(48 * 1024));
    for (headers, expect) in [(many, "431"), (large, "431"), (allowed, "200")] {
        let answer = raw(mesh.dial(0).await, &get(headers)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expect} ")), "{answer}");
    }
}

#[tokio::test]
async fn connections_nobody_captured_are_closed_and_counted() {
    let mesh = Mesh::start(&Spec::of([]));
    let address = mesh.proxy().local_addrs()[0];
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(client::read_all(&mut stream).await, "");
    assert_eq!(mesh.metrics().capture_missing.get(), 1);
}

/// hyper writes to such an endpoint in HTTP/1.0 from then on, where no body can be chunked.
#[tokio::test]
async fn a_connection_on_which_http_1_0_was_answered_takes_no_other_request() {
    let (sender, mut bodies) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(move |mut stream| {
        let sender = sender.clone();
        async move {
            while let Some(head) = head_of(&mut stream).await {
                let mut body = String::new();
                if head.contains("transfer-encoding: chunked") {
                    body = read_until(&mut stream, "\r\n0\r\n\r\n").await;
                }
                sender.send(body).unwrap();
                let answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..2 {
        let (body, chunked) = pieces();
        body.send(Frame::data(Bytes::from_static(b"abc"))).await.unwrap();
        drop(body);
        let answer = Text::read(client.send(request("POST", "/", chunked)).await).await;
        assert_eq!(answer.body, "ok");
        assert_eq!(bodies.recv().await.unwrap(), "3\r\nabc\r\n0\r\n\r\n");
    }
    assert_eq!(server.connections(), 2);
}
