//! Endpoints that take few streams at a time, or leave.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, mpsc},
};
use weft_proxy::{ProxyConfig, balance::Balance};

use super::{SETTINGS, ok, read_head, request, soon, streams_at_a_time};
use crate::support::{
    H2, Mesh, Port, Spec, Text, allow_paths,
    bodies::pieces,
    client::{empty, full},
    server::{Server, text},
};

#[tokio::test]
async fn an_endpoint_that_takes_few_streams_at_a_time_gets_one_after_the_other() {
    const STREAMS: usize = 20;
    let server = Server::raw(|stream| async move {
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            let asked = request.into_body().collect().await?.to_bytes();
            tokio::task::yield_now().await;
            Ok::<_, hyper::Error>(text(asked))
        });
        let _client_left = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .max_concurrent_streams(2)
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let client = H2::new(mesh.dial(0).await).await;
    let ask = |number: usize| {
        let mut client = client.clone();
        async move {
            let asked = number.to_string();
            let answer = client.send(request("/", full(asked.clone()))).await;
            assert_eq!(Text::read(answer).await.body, asked);
        }
    };
    // From the answer on its settings are known.
    ask(0).await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 1..=STREAMS {
        asking.spawn(ask(number));
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_request_that_was_lost_with_its_endpoint_goes_to_another() {
    let stays = Server::http2(|_| async { text("stays") }).await;
    // Answers one request; at the next one, nobody listens any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let goes = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        let first = read_head(&mut stream).await.unwrap();
        stream.write_all(&ok(first, true)).await.unwrap();
        let _next = read_head(&mut stream).await;
        drop(listener);
    });
    let config = ProxyConfig {
        balance: Balance::RoundRobin,
        ..ProxyConfig::default()
    };
    let spec = Spec::of([Port::http("web", [goes, stays.address])]);
    let mesh = Mesh::start_with(&spec, config, Vec::new());
    let mut client = H2::new(mesh.dial(0).await).await;
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let get = Request::get("http://web/").body(empty()).unwrap();
        bodies.push(Text::read(client.send(get).await).await.body);
    }
    assert_eq!(bodies.iter().filter(|body| body.is_empty()).count(), 1, "{bodies:?}");
    assert_eq!(bodies.iter().filter(|body| *body == "stays").count(), 3, "{bodies:?}");
    assert_eq!(mesh.metrics().upstream_retried.get(), 1);
}

/// An endpoint that takes one stream at a time.
struct Narrow {
    server: Server,
    /// It sends GOAWAY once told to.
    leave: Arc<Notify>,
    /// Its answer to `/held` ends.
    release: Arc<Notify>,
    /// Paths that it was asked for.
    asked: mpsc::UnboundedReceiver<String>,
}

impl Narrow {
    /// Answers with what it was asked, to `/held` in pieces.
    async fn start() -> Self {
        let (leave, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, asked) = mpsc::unbounded_channel();
        let (told, held) = (Arc::clone(&leave), Arc::clone(&release));
        let server = Server::raw(move |stream| {
            let (told, held, tell) = (Arc::clone(&told), Arc::clone(&held), tell.clone());
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let path = request.uri().path().to_owned();
                tell.send(path.clone()).unwrap();
                let held = Arc::clone(&held);
                async move {
                    if path != "/held" {
                        let body = request.into_body().collect().await?.to_bytes();
                        return Ok::<_, hyper::Error>(text(body));
                    }
                    let (sender, body) = pieces();
                    tokio::spawn(async move {
                        held.notified().await;
                        let _client_left = sender.send(Frame::data(Bytes::from_static(b"whole"))).await;
                    });
                    Ok(Response::new(body))
                }
            });
            async move {
                let connection = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .max_concurrent_streams(1)
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                tokio::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = told.notified() => {}
                }
                connection.as_mut().graceful_shutdown();
                let _client_left = connection.await;
            }
        })
        .await;
        Self {
            server,
            leave,
            release,
            asked,
        }
    }

    /// Where `/denied` is answered by the proxy.
    fn spec(&self) -> Spec {
        Spec::of([Port::http("web", [self.server.address])]).with_access(allow_paths("/held|/asked"))
    }
}

/// What was asked before on this connection is under way then.
async fn ask_the_proxy(client: &H2) {
    let answer = client.clone().send(request("/denied", empty())).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn requests_that_wait_for_an_endpoint_that_leaves_go_to_its_next_connection() {
    let narrow = Narrow::start().await;
    let mesh = Mesh::start(&narrow.spec());
    let client = H2::new(mesh.dial(0).await).await;
    // From the answer on its settings are known.
    let held = client.clone().send(request("/held", empty())).await;
    let ask = async |body: &'static str| Text::read(client.clone().send(request("/asked", full(body))).await).await;
    let leaving = async {
        ask_the_proxy(&client).await;
        narrow.leave.notify_one();
    };
    let waiting = async { tokio::join!(ask("one"), ask("two"), leaving) };
    let (one, two, ()) = soon(waiting).await;
    assert_eq!((one.status, one.body.as_str()), (StatusCode::OK, "one"));
    assert_eq!((two.status, two.body.as_str()), (StatusCode::OK, "two"));
    assert_eq!(narrow.server.connections(), 2);
    // What it had taken it ends.
    narrow.release.notify_one();
    assert_eq!(Text::read(held).await.body, "whole");
}

#[tokio::test]
async fn a_request_that_its_client_gives_up_while_it_waits_reaches_no_endpoint() {
    let mut narrow = Narrow::start().await;
    let mesh = Mesh::start(&narrow.spec());
    let client = H2::new(mesh.dial(0).await).await;
    let held = client.clone().send(request("/held", empty())).await;
    let mut gives_up = client.clone();
    let mut asking = Box::pin(gives_up.try_send(request("/asked/in-vain", empty())));
    // Polled once, it is on its way.
    assert!(asking.as_mut().now_or_never().is_none());
    ask_the_proxy(&client).await;
    drop(asking);
    // The reset may be sent behind the first of them.
    ask_the_proxy(&client).await;
    ask_the_proxy(&client).await;
    narrow.release.notify_one();
    assert_eq!(Text::read(held).await.body, "whole");
    let answer = client.clone().send(request("/asked/after", full("after"))).await;
    assert_eq!(Text::read(answer).await.body, "after");
    for path in ["/held", "/asked/after"] {
        assert_eq!(narrow.asked.recv().await.unwrap(), path);
    }
    assert_eq!(narrow.server.connections(), 1);
}

#[tokio::test]
async fn who_waits_goes_on_when_the_endpoint_takes_more() {
    let more = Arc::new(Notify::new());
    let told = Arc::clone(&more);
    let server = Server::raw(move |mut stream| {
        let told = Arc::clone(&told);
        async move {
            stream.write_all(&streams_at_a_time(1)).await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
            assert_eq!(read_head(&mut stream).await, Some(1));
            // It has no end.
            stream.write_all(&ok(1, false)).await.unwrap();
            told.notified().await;
            stream.write_all(&streams_at_a_time(2)).await.unwrap();
            assert_eq!(read_head(&mut stream).await, Some(3));
            stream.write_all(&ok(3, true)).await.unwrap();
            while read_head(&mut stream).await.is_some() {}
        }
    })
    .await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/asked"));
    let mesh = Mesh::start(&spec);
    let client = H2::new(mesh.dial(0).await).await;
    let _held = client.clone().send(request("/asked", empty())).await;
    let mut waits = client.clone();
    let takes_more = async {
        ask_the_proxy(&client).await;
        more.notify_one();
    };
    let waiting = async { tokio::join!(waits.send(request("/asked", empty())), takes_more) };
    let (answer, ()) = soon(waiting).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(server.connections(), 1);
}

/// RFC 9113, 6.8 and 8.7: neither was processed.
#[tokio::test]
async fn a_request_that_the_endpoint_has_not_processed_is_repeated() {
    // By GOAWAY, whose last stream is the first one; by RST_STREAM with REFUSED_STREAM.
    let goes_away: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let refuses: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 7];
    for (refusal, connections) in [(goes_away, 2), (refuses, 1)] {
        let server = Server::raw(move |mut stream| async move {
            stream.write_all(&SETTINGS).await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
            while let Some(id) = read_head(&mut stream).await {
                let answer = if id == 3 { refusal.to_vec() } else { ok(id, true) };
                stream.write_all(&answer).await.unwrap();
            }
        })
        .await;
        let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
        let mut client = H2::new(mesh.dial(0).await).await;
        for _ in 0..2 {
            let get = Request::get("http://web/").body(empty()).unwrap();
            assert_eq!(client.send(get).await.status(), StatusCode::OK);
        }
        assert_eq!(server.connections(), connections);
    }
}

#[tokio::test]
async fn an_endpoint_that_goes_away_is_connected_anew() {
    // One request a connection, then GOAWAY.
    let server = Server::raw(|stream| async move {
        let io = hyper_util::rt::TokioIo::new(stream);
        let done = Arc::new(Notify::new());
        let answered = done.clone();
        let service = hyper::service::service_fn(move |_| {
            answered.notify_one();
            async { Ok::<_, std::convert::Infallible>(text("ok")) }
        });
        let connection = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = done.notified() => {}
        }
        connection.as_mut().graceful_shutdown();
        let _client_left = connection.await;
    })
    .await;
    let mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut client = H2::new(mesh.dial(0).await).await;
    for _ in 0..10 {
        assert_eq!(
            Text::read(client.send(request("/", empty())).await).await.status,
            StatusCode::OK
        );
    }
}
