//! The load generator over HTTP/2, against servers of which it is known what they do.

mod port;

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

/// Serves until the test ends; `answer` gets the number of the request, from 0.
fn server(answer: impl Fn(u64) -> Response<Full<Bytes>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let answer = Arc::new((answer, AtomicU64::new(0)));
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = Arc::clone(&answer);
                let service = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/");
                    let response = answer.0(answer.1.fetch_add(1, Ordering::SeqCst));
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    address
}

fn ok(body: &'static str) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(body.as_bytes())))
}

/// What was told, and whether it ended well.
fn load(target: SocketAddr, args: &[&str]) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-load"))
        .arg(target.to_string())
        .args(args)
        .output()
        .unwrap();
    let told = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (told, output.status.success())
}

const RATE: [&str; 6] = ["--rate", "400", "--seconds", "0.5", "--warm-up", "0"];

#[test]
fn what_is_due_is_sent_on_all_streams_and_no_more() {
    let target = server(|_| ok("hello"));
    let words = [
        &RATE[..],
        &["--http2", "--connections", "2", "--streams", "4", "--body", "hello"],
    ]
    .concat();
    let (told, ended) = load(target, &words);
    assert!(ended, "{told}");
    assert_eq!(told["right"], 200, "{told}");
}

#[test]
fn a_closed_loop_keeps_streams_busy() {
    let target = server(|_| ok("hello"));
    let (told, ended) = load(
        target,
        &["--http2", "--streams", "3", "--seconds", "0.3", "--warm-up", "0"],
    );
    assert!(ended && told["right"].as_u64().unwrap() > 3, "{told}");
}

#[test]
fn wrong_answers_are_counted_and_fail() {
    for wrong in [ok("hullo"), {
        let mut response = ok("hello");
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    }] {
        let target = server(move |n| if n % 10 == 3 { wrong.clone() } else { ok("hello") });
        let (told, ended) = load(target, &[&RATE[..], &["--http2"]].concat());
        assert!(!ended, "{told}");
        assert_eq!((&told["wrong"], &told["right"]), (&20.into(), &180.into()), "{told}");
    }
}

#[test]
fn what_speaks_no_http2_fails_the_load() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let (_, ended) = load(target, &[&RATE[..], &["--http2"]].concat());
    assert!(!ended);
}

/// Killed when it is dropped.
struct Echo(Child, SocketAddr);

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo() -> Echo {
    let (_held, free) = port::held();
    let child = Command::new(env!("CARGO_BIN_EXE_weft-echo"))
        .arg(free.to_string())
        .spawn();
    let echo = Echo(child.unwrap(), free);
    let begin = Instant::now();
    while let Err(error) = TcpStream::connect(free) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{error}");
        thread::yield_now();
    }
    echo
}

#[test]
fn calls_are_answered_by_their_own_message_and_status_0() {
    let echo = echo();
    let words = [&RATE[..], &["--grpc", "1000", "--path", "/bench.Echo/Say"]].concat();
    let (told, ended) = load(echo.1, &words);
    assert!(ended, "{told}");
    assert_eq!(told["right"], 200, "{told}");
}

#[test]
fn an_answer_without_status_0_is_wrong_whatever_its_body() {
    let target = server(|_| ok("hello"));
    let (told, ended) = load(target, &[&RATE[..], &["--grpc", "10"]].concat());
    assert!(!ended, "{told}");
    assert_eq!(told["wrong"], 200, "{told}");
    assert!(told["first_fault"].as_str().unwrap().contains("grpc-status"), "{told}");
}
