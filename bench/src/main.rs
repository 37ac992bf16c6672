//! `weft-load`: HTTP/1.1 load from one thread, with every response checked.
//!
//! With `--rate` the load is open-loop: request k is due at `begin + k / rate` whatever became of those before it, and
//! its latency counts from there (Gil Tene's "coordinated omission" is what one gets otherwise). Without, every
//! connection sends its next request when it has the answer to the last (closed loop: for saturation only).

#![forbid(unsafe_code)]

mod connection;
mod load;
mod response;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;

use crate::load::Load;

/// Sends HTTP/1.1 requests and prints what came of them, as one JSON object; times are in nanoseconds.
#[derive(Parser)]
struct Args {
    /// Where to: ADDRESS:PORT.
    target: SocketAddr,
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
    /// The status every response must have.
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// The body every response must have; default: all have that of the first.
    #[arg(long)]
    body: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut request = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\n",
        args.path,
        args.host.unwrap_or_else(|| args.target.to_string())
    );
    for line in &args.headers {
        request.push_str(line);
        request.push_str("\r\n");
    }
    if args.short {
        request.push_str("connection: close\r\n");
    }
    request.push_str("\r\n");
    let load = Load {
        target: args.target,
        request: request.into_bytes(),
        rate: args.rate,
        connections: args.connections.max(1),
        warm_up: Duration::from_secs_f64(args.warm_up.max(0.0)),
        counted: Duration::from_secs_f64(args.seconds.max(0.0)),
        short: args.short,
        status: args.status,
        body: args.body.map(String::into_bytes),
    };
    match load.run() {
        Ok(result) => {
            println!("{}", serde_json::json!(result));
            if result.wrong == 0 && result.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("weft-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}
