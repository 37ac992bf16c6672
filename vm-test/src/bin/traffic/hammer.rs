//! Clients that go on until their input ends, and then tell how everything went.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use vm_test::poll;

use crate::clients::resolve;

/// Longer than anything on loopback takes on a real machine, retries of a SYN included; what takes longer counts as failed.
const SILENCE: Duration = Duration::from_secs(10);

/// Resolves TARGET, connects, asks for PATH, reads the answer to its end, and begins anew; counts answers by status,
/// failures by what failed.
pub fn hammer(target: &str, path: &str) -> Result<bool> {
    let stop = AtomicBool::new(false);
    let (mut outcomes, mut slowest) = (BTreeMap::<String, u64>::new(), Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            stop.store(true, Ordering::Relaxed);
        });
        println!("{}", json!({"hammers": target}));
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            *outcomes.entry(outcome(target, path)).or_default() += 1;
            slowest = slowest.max(began.elapsed());
        }
    });
    println!(
        "{}",
        json!({"outcomes": outcomes, "slowest_ms": slowest.as_millis() as u64})
    );
    Ok(true)
}

fn outcome(target: &str, path: &str) -> String {
    let failed = |what: &str, error: &io::Error| match error.raw_os_error() {
        Some(errno) => format!("{what}: errno {errno}"),
        None => format!("{what}: {error}"),
    };
    let address = match resolve(target) {
        Ok(address) => address,
        Err(error) => return format!("resolve: {error:#}"),
    };
    let stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) => return failed("connect", &error),
    };
    match ask(&stream, path, "close") {
        Ok((status, _)) => status,
        Err(error) => failed("ask", &error),
    }
}

/// One connection that is kept: a request for each line of input; connects again, and says so, when the server has closed it
/// in the orderly way (between two requests).
pub fn keep_alive(target: &str, path: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(resolve(target)?).context("connect")?;
    println!("{}", json!({"connected": target}));
    let mut closing = false;
    for line in io::stdin().lines() {
        line?;
        let again = closing || ended(&stream)?;
        if again {
            stream = TcpStream::connect(resolve(target)?).context("connect again")?;
        }
        match ask(&stream, path, "keep-alive") {
            Ok((status, close)) => {
                closing = close;
                println!("{}", json!({"status": status, "again": again}));
            }
            Err(error) => println!("{}", json!({"error": error.to_string(), "again": again})),
        }
    }
    Ok(true)
}

/// Whether the other end has sent its FIN.
fn ended(stream: &TcpStream) -> Result<bool> {
    stream.set_nonblocking(true)?;
    let end = match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => return Err(error).context("look whether it has ended"),
    };
    stream.set_nonblocking(false)?;
    Ok(end)
}

/// Status of the answer, read to its end, and whether the server closes after it.
fn ask(mut stream: &TcpStream, path: &str, connection: &str) -> io::Result<(String, bool)> {
    stream.set_read_timeout(Some(poll::scaled(SILENCE)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: mesh\r\nConnection: {connection}\r\n\r\n"
    )?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let status = line.split(' ').nth(1).map(str::to_owned);
    let status = status.ok_or_else(|| io::Error::other(format!("no answer, but {line:?}")))?;
    let (mut length, mut close) = (None, false);
    loop {
        line.clear();
        answer.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok(),
            "connection" => close = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = vec![0; length.ok_or_else(|| io::Error::other("an answer without length"))?];
    answer.read_exact(&mut body)?;
    Ok((status, close))
}
