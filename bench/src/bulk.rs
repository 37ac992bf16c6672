//! `weft-bulk`: as many bytes over one TCP connection as go, all of them accounted for.
//!
//! Blocks have one size, and each begins with its number: what was lost, doubled or swapped is seen, and looking takes nothing
//! beside the copying. At the end the receiver says how many whole blocks came.

#![forbid(unsafe_code)]

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

/// Bytes of a block, which is written and read at once.
const BLOCK: usize = 128 * 1024;
/// Of the number at the front of a block.
const NUMBER: usize = size_of::<u64>();

/// Sends and receives in bulk.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Receives from whoever connects to ADDRESS:PORT, and answers each with the number of its blocks.
    Receive { listen: SocketAddr },
    /// For each line of standard input, `ADDRESS:PORT SECONDS`, connects, sends for so long, waits for the answer and prints
    /// `{"bytes":N,"seconds":S}`.
    Send,
}

fn main() -> Result<()> {
    match Args::parse().verb {
        Verb::Receive { listen } => receive(listen),
        Verb::Send => io::stdin().lines().try_for_each(|line| {
            let line = line.context("read a line")?;
            let words = line.split_once(' ').context("a line is `ADDRESS:PORT SECONDS`")?;
            let seconds: f64 = words.1.parse().context("seconds")?;
            let limit = Duration::try_from_secs_f64(seconds).context("seconds")?;
            let (bytes, took) = send(words.0.parse().context("an address")?, limit)?;
            println!("{}", serde_json::json!({"bytes": bytes, "seconds": took.as_secs_f64()}));
            Ok(())
        }),
    }
}

fn receive(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    loop {
        let (stream, _) = listener.accept().context("accept a connection")?;
        thread::spawn(move || {
            if let Err(error) = count(stream) {
                eprintln!("weft-bulk: {error:#}");
            }
        });
    }
}

/// Reads blocks to the end, and answers with their number.
fn count(mut stream: TcpStream) -> Result<()> {
    let mut block = vec![0; BLOCK];
    let mut blocks = 0_u64;
    while fill(&mut stream, &mut block)? {
        ensure!(
            block.get(..NUMBER) == Some(&blocks.to_be_bytes()),
            "what came after {blocks} blocks is not the next one"
        );
        blocks += 1;
    }
    stream.write_all(&blocks.to_be_bytes()).context("answer")
}

/// Sends blocks for so long; bytes that the receiver has seen, and how long it took until it had.
fn send(target: SocketAddr, limit: Duration) -> Result<(u64, Duration)> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    let mut block = vec![0; BLOCK];
    let (mut blocks, begin) = (0_u64, Instant::now());
    while begin.elapsed() < limit {
        if let Some(front) = block.get_mut(..NUMBER) {
            front.copy_from_slice(&blocks.to_be_bytes());
        }
        stream.write_all(&block).context("send")?;
        blocks += 1;
    }
    stream.shutdown(Shutdown::Write).context("end")?;
    let mut answer = [0; NUMBER];
    let whole = fill(&mut stream, &mut answer).context("read the answer")?;
    let took = begin.elapsed();
    let seen = u64::from_be_bytes(answer);
    ensure!(whole && seen == blocks, "{blocks} blocks were sent, {seen} came");
    Ok((blocks * BLOCK as u64, took))
}

/// Fills the buffer; `false`: the end was there before its first byte.
fn fill(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => bail!("an end in the middle of a block"),
            Ok(read) => filled += read,
            // A blocking read that says so is one of a short-circuited socket: nothing is there yet.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(true)
}
