//! What is sent in bulk is counted where it arrives.

mod port;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const BULK: &str = env!("CARGO_BIN_EXE_weft-bulk");
const BLOCK: usize = 128 * 1024;

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn receiver() -> (Running, SocketAddr) {
    let (_held, free) = port::held();
    let receiver = Command::new(BULK).args(["receive", &free.to_string()]).spawn().unwrap();
    let receiver = Running(receiver);
    let begin = Instant::now();
    while let Err(error) = TcpStream::connect(free) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{error}");
        thread::yield_now();
    }
    (receiver, free)
}

/// What a sender says of a load, and whether it ended well.
fn sent(target: SocketAddr, seconds: &str) -> (Value, bool) {
    let mut sender = Command::new(BULK)
        .arg("send")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(sender.stdin.take().unwrap(), "{target} {seconds}").unwrap();
    let mut told = String::new();
    BufReader::new(sender.stdout.take().unwrap())
        .read_line(&mut told)
        .unwrap();
    let ended = sender.wait().unwrap().success();
    (serde_json::from_str(&told).unwrap_or_default(), ended)
}

#[test]
fn whole_blocks_arrive_for_as_long_as_was_asked() {
    let (_receiver, target) = receiver();
    let (told, ended) = sent(target, "0.2");
    assert!(ended && told["seconds"].as_f64().unwrap() >= 0.2, "{told}");
    let bytes = told["bytes"].as_u64().unwrap();
    assert!(bytes > 0 && bytes.is_multiple_of(BLOCK as u64), "{told}");
}

#[test]
fn a_block_that_is_not_the_next_one_gets_no_answer() {
    let (_receiver, target) = receiver();
    let mut stream = TcpStream::connect(target).unwrap();
    let mut block = vec![0; BLOCK];
    stream.write_all(&block).unwrap();
    block[7] = 2;
    stream.write_all(&block).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut block).unwrap_or(0), 0);
}

#[test]
fn a_receiver_that_counts_otherwise_fails_the_load() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&1_000_000_u64.to_be_bytes()).unwrap();
    });
    let (told, ended) = sent(target, "0.01");
    assert!(!ended && told.is_null(), "{told}");
}
