//! `weft-load`: HTTP/1.1, HTTP/2 or gRPC load from one thread, with every response checked.
//!
//! With `--rate` the load is open-loop: request k is due at `begin + k / rate` whatever became of those before it, and
//! its latency counts from there (Gil Tene's "coordinated omission" is what one gets otherwise). Without, every
//! connection sends its next request when it has the answer to the last (closed loop: for saturation only).

#![forbid(unsafe_code)]

mod connection;
mod http2;
mod load;
mod response;
mod tally;

use std::{
    io::{self, BufRead, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::Full;

use crate::load::Load;

/// Sends requests over HTTP/1.1, or HTTP/2 without TLS, and prints what came of them, as one JSON object; times are in nanoseconds.
#[derive(Parser)]
struct Args {
    /// Take loads from standard input, one a line as a JSON array of the words of
    /// this command line, and print an object for each. A bench
    /// starts its clients once so: processes that start are not what it measures.
    #[arg(long, conflicts_with = "target")]
    serve: bool,
    /// Where to: ADDRESS:PORT.
    #[arg(required_unless_present = "serve")]
    target: Option<SocketAddr>,
    #[command(flatten)]
    wanted: Wanted,
}

#[derive(clap::Args)]
struct Wanted {
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// Value of the Host header; default: the target.
    #[arg(long)]
    host: Option<String>,
    /// A further header, `NAME: VALUE`; may be given again.
    #[arg(long = "header", value_name = "LINE")]
    headers: Vec<String>,
    /// Requests a second, all connections together. Default: as many as there are answers (closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds of load that count.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds of load before, that do not count.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// A connection for each request: connect, send, read, close.
    #[arg(long)]
    short: bool,
    /// HTTP/2 with prior knowledge. Latencies are to a millisecond then.
    #[arg(long, conflicts_with = "short")]
    http2: bool,
    /// gRPC calls, over HTTP/2: a message of so many bytes each, which the answer must repeat, with status 0.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["short", "body"])]
    grpc: Option<usize>,
    /// Requests at a time on each connection, over HTTP/2.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The status every response must have.
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// The body every response must have; default: all have that of the first.
    #[arg(long)]
    body: Option<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all answers were right.
fn run(args: Args) -> Result<bool> {
    if let Some(target) = args.target {
        return one(target, args.wanted);
    }
    let mut right = true;
    for line in io::stdin().lock().lines() {
        let line = line.context("read a load from standard input")?;
        let words: Vec<String> = serde_json::from_str(&line).with_context(|| format!("{line:?}: no array of words"))?;
        let asked = Args::try_parse_from(std::iter::once("weft-load".to_owned()).chain(words))
            .map_err(|error| anyhow::anyhow!("{line:?}: {error}"))?;
        right &= one(asked.target.context("a load needs a target")?, asked.wanted)?;
    }
    Ok(right)
}

fn one(target: SocketAddr, wanted: Wanted) -> Result<bool> {
    let outcome = if wanted.http2 || wanted.grpc.is_some() {
        wanted.over_http2(target)?.run()?
    } else {
        wanted.over_http1(target).run()?
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::json!(outcome)).context("print what came of it")?;
    out.flush().context("print what came of it")?;
    Ok(outcome.wrong == 0 && outcome.failed == 0)
}

// === impl Wanted ===

impl Wanted {
    fn over_http1(self, target: SocketAddr) -> Load {
        let host = self.host.unwrap_or_else(|| target.to_string());
        let mut request = format!("GET {} HTTP/1.1\r\nhost: {host}\r\n", self.path);
        for line in &self.headers {
            request.push_str(line);
            request.push_str("\r\n");
        }
        if self.short {
            request.push_str("connection: close\r\n");
        }
        request.push_str("\r\n");
        Load {
            target,
            request: request.into_bytes(),
            rate: self.rate,
            connections: self.connections.max(1),
            warm_up: Duration::from_secs_f64(self.warm_up.max(0.0)),
            counted: Duration::from_secs_f64(self.seconds.max(0.0)),
            short: self.short,
            status: self.status,
            body: self.body.map(String::into_bytes),
        }
    }

    fn over_http2(self, target: SocketAddr) -> Result<http2::Load> {
        let host = self.host.unwrap_or_else(|| target.to_string());
        let mut request = Request::builder().uri(format!("http://{host}{}", self.path));
        for line in &self.headers {
            let (name, value) = line.split_once(": ").context("a header is to be `NAME: VALUE`")?;
            request = request.header(name, value);
        }
        let mut body = Bytes::new();
        if let Some(bytes) = self.grpc {
            body = http2::framed(bytes)?;
            request = request
                .method("POST")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
        }
        Ok(http2::Load {
            target,
            grpc: self.grpc.is_some(),
            rate: self.rate,
            connections: self.connections.max(1),
            streams: self.streams.max(1),
            warm_up: Duration::from_secs_f64(self.warm_up.max(0.0)),
            counted: Duration::from_secs_f64(self.seconds.max(0.0)),
            status: self.status,
            body: self.grpc.map(|_| body.to_vec()).or(self.body.map(String::into_bytes)),
            request: request.body(Full::new(body)).context("a request")?,
        })
    }
}
