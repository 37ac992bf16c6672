//! Both ends of every case of the torture suite (`vm_test::torture`): `serve-torture ADDR PORT DIR BYTES` and
//! `torture HOST DIR BYTES`.
//!
//! Each end prints one JSON line a connection: case, side, what it sent and received, what went wrong. Where one end has to
//! wait for the other without a word over the connection, it waits for a file in DIR.

mod cases;
mod side;
mod tls;

use std::{net::TcpListener, thread};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vm_test::torture::{CASES, MANY};

use self::side::Side;
pub use self::side::Where;
use crate::clients::resolve;

/// Connections of [`MANY`], and how many at once.
const SHORT: usize = 200;
const AT_ONCE: usize = 4;

/// Listens at ADDR, ports PORT and up, one a case, and does the server's end of each connection.
pub fn serve(address: &str, port: u64, place: &Where) -> Result<bool> {
    let mut accepting = Vec::new();
    for (number, case) in CASES.into_iter().chain([MANY]).enumerate() {
        let at = format!("{address}:{}", port + number as u64);
        let listener = TcpListener::bind(&at).with_context(|| format!("listen on {at}"))?;
        let place = place.clone();
        accepting.push(thread::spawn(move || {
            for stream in listener.incoming() {
                let place = place.clone();
                thread::spawn(move || {
                    let told = stream
                        .context("accept")
                        .and_then(|stream| Side::new(stream, place, true))
                        .map(|side| run(case, side));
                    println!("{}", told.unwrap_or_else(|error| wrong(case, "server", &error)));
                });
            }
        }));
    }
    println!("{}", json!({"listening": address}));
    for thread in accepting {
        ensure!(thread.join().is_ok(), "a listener panicked");
    }
    Ok(false)
}

/// Does the client's end of every case, ports 1 and up of HOST.
pub fn client(host: &str, place: &Where) -> Result<bool> {
    for (number, case) in CASES.into_iter().enumerate() {
        let told = Side::dial(&format!("{host}:{}", number + 1), place.clone()).map(|side| run(case, side));
        println!("{}", told.unwrap_or_else(|error| wrong(case, "client", &error)));
    }
    let target = format!("{host}:{}", CASES.len() + 1);
    resolve(&target)?;
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (target, place) = (target.clone(), place.clone());
            thread::spawn(move || {
                for _ in 0..SHORT / AT_ONCE {
                    let told = Side::dial(&target, place.clone()).map(|side| run(MANY, side));
                    println!("{}", told.unwrap_or_else(|error| wrong(MANY, "client", &error)));
                }
            })
        })
        .collect();
    for worker in workers {
        ensure!(worker.join().is_ok(), "a client panicked");
    }
    println!("{}", json!({"done": true, "short": SHORT}));
    Ok(true)
}

/// One end of one case, and its line.
fn run(case: &str, mut side: Side) -> Value {
    let result = if side.serves {
        cases::server(case, &mut side)
    } else {
        cases::client(case, &mut side)
    };
    let result = result.and_then(|()| side.right());
    json!({
        "case": case, "side": side.name(), "sent": side.sent, "received": side.received(), "eagain": side.spurious,
        "filled": side.filled, "note": side.note, "wrong": result.err().map(|error| format!("{error:#}")),
    })
}

fn wrong(case: &str, side: &str, error: &anyhow::Error) -> Value {
    json!({"case": case, "side": side, "wrong": format!("{error:#}")})
}
