//! The load generator against servers of which it is known what they do.

mod port;

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::Value;

/// Serves until the test ends; `answer` gets the number of the request, from 0.
fn server(answer: impl Fn(u64) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new((answer, AtomicU64::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            thread::spawn(move || {
                let stream: TcpStream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(line)) = lines.next() {
                    if !line.is_empty() {
                        continue;
                    }
                    let response = answer.0(answer.1.fetch_add(1, Ordering::SeqCst));
                    if (&stream).write_all(response.as_bytes()).is_err() || response.contains("connection: close") {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn load(target: SocketAddr, args: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-load"))
        .arg(target.to_string())
        .args(args)
        .output()
        .unwrap();
    let outcome = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, outcome)
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    let target = server(|_| ok("hello"));
    let (output, told) = load(
        target,
        &[
            "--rate",
            "500",
            "--seconds",
            "1",
            "--warm-up",
            "0.2",
            "--connections",
            "4",
        ],
    );
    assert!(output.status.success(), "{told}");
    assert_eq!(told["right"], 500, "{told}");
    assert!(told["p50"].as_u64().unwrap() > 0, "{told}");
}

/// A server that stands still for a while makes every request wait that fell due meanwhile: the median of 100 requests, of
/// which 60 were due during a pause, cannot be below the middle of that pause. A closed loop would see one slow request.
#[test]
fn a_server_that_stands_still_is_seen_by_all_requests_that_were_due() {
    let target = server(|n| {
        if n == 0 {
            thread::sleep(Duration::from_millis(600));
        }
        ok("hello")
    });
    let (output, told) = load(target, &["--rate", "100", "--seconds", "1", "--warm-up", "0"]);
    assert!(output.status.success(), "{told}");
    assert_eq!(told["right"], 100, "{told}");
    assert!(told["p50"].as_u64().unwrap() >= 90_000_000, "{told}");
    assert!(told["max"].as_u64().unwrap() >= 590_000_000, "{told}");
}

/// What fell due while the generator itself stood still, and beyond the end, is sent and told of as late.
#[test]
fn a_generator_that_stands_still_leaves_nothing_out() {
    let (tell, pid) = mpsc::channel::<u32>();
    let pid = Mutex::new(pid);
    let target = server(move |n| {
        if n == 0 {
            let pid = pid.lock().unwrap().recv().unwrap().to_string();
            let signal = |name: &str| Command::new("kill").args([name, pid.as_str()]).status().unwrap();
            assert!(signal("-STOP").success());
            thread::sleep(Duration::from_millis(600));
            assert!(signal("-CONT").success());
        }
        ok("hello")
    });
    let load = Command::new(env!("CARGO_BIN_EXE_weft-load"))
        .arg(target.to_string())
        .args(["--rate", "100", "--seconds", "0.5", "--warm-up", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tell.send(load.id()).unwrap();
    let output = load.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["right"], 50, "{told}");
    assert!(told["max"].as_u64().unwrap() >= 590_000_000, "{told}");
}

#[test]
fn a_closed_loop_keeps_every_connection_busy() {
    let target = server(|_| ok("hello"));
    let (output, told) = load(target, &["--seconds", "0.3", "--warm-up", "0", "--connections", "2"]);
    assert!(output.status.success(), "{told}");
    assert!(told["right"].as_u64().unwrap() > 2, "{told}");
}

#[test]
fn connections_that_end_are_opened_anew_and_short_ones_are_each_their_own() {
    let closing = |_| ok("hello").replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let (output, told) = load(
        server(closing),
        &["--rate", "100", "--seconds", "0.5", "--warm-up", "0"],
    );
    assert!(output.status.success(), "{told}");
    let unsized_body = |_| "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello".to_owned();
    let (output, told) = load(
        server(unsized_body),
        &[
            "--rate",
            "100",
            "--seconds",
            "0.5",
            "--warm-up",
            "0",
            "--short",
            "--body",
            "hello",
        ],
    );
    assert!(output.status.success(), "{told}");
    assert_eq!(told["right"], 50, "{told}");
}

#[test]
fn wrong_answers_and_broken_connections_are_counted_and_fail() {
    let every_tenth = |wrong: String| move |n| if n % 10 == 3 { wrong.clone() } else { ok("hello") };
    for (answer, wrong, failed) in [
        (ok("hullo"), 10, 0),
        (ok("hello").replace("200", "503"), 10, 0),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nhel".to_owned(),
            0,
            10,
        ),
        ("nonsense\r\n\r\n".to_owned(), 0, 10),
    ] {
        let args = ["--rate", "200", "--seconds", "0.5", "--warm-up", "0"];
        let (output, told) = load(server(every_tenth(answer)), &args);
        assert!(!output.status.success(), "{told}");
        assert_eq!(
            (&told["wrong"], &told["failed"]),
            (&wrong.into(), &failed.into()),
            "{told}"
        );
        assert!(told["first_fault"].is_string(), "{told}");
    }
}

#[test]
fn nobody_there_is_a_failure() {
    let (_held, free) = port::held();
    let (output, told) = load(free, &["--rate", "10", "--seconds", "0.5", "--warm-up", "0"]);
    assert!(!output.status.success());
    assert_eq!(told["failed"], 5, "{told}");
}

#[test]
fn loads_of_standard_input_are_answered_one_by_one() {
    let target = server(|_| ok("hello"));
    let mut serving = Command::new(env!("CARGO_BIN_EXE_weft-load"))
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asks = serving.stdin.take().unwrap();
    let mut tells = BufReader::new(serving.stdout.take().unwrap()).lines();
    for rate in ["50", "100"] {
        let words = [
            "--rate",
            rate,
            "--seconds",
            "1",
            "--warm-up",
            "0.1",
            "--header",
            "x-a: b",
        ];
        let words: Vec<String> = std::iter::once(target.to_string())
            .chain(words.map(str::to_owned))
            .collect();
        writeln!(asks, "{}", serde_json::json!(words)).unwrap();
        let told: Value = serde_json::from_str(&tells.next().unwrap().unwrap()).unwrap();
        assert_eq!(told["right"], rate.parse::<u64>().unwrap(), "{told}");
        assert!(told["all"].as_u64() > told["right"].as_u64(), "{told}");
    }
    drop(asks);
    assert!(serving.wait().unwrap().success());
}
