//! `traffic MODE ...`: small servers and clients that speak exactly what a test wants to see on the wire.
//!
//! Servers: `serve-echo ADDR`, `serve-sink ADDR`, `serve-http-sink ADDR`, `serve-source ADDR BYTES`, `serve-greeting ADDR`, `serve-late ADDR`, `serve-close ADDR`,
//! `serve-says ADDR TEXT` (and closes), `serve-peer ADDR` (says whom it sees), `serve-udp-echo ADDR`, `serve-soak PORT...` (TCP and UDP echo at each port of all addresses). They print `{"listening":"ADDR"}` when they do, serve until killed, and tell of each TCP connection
//! at its end what they wrote and read. `serve-told ADDR` serves one connection, as its input says.
//! Clients: `connect TARGET`, `connect-many TARGET COUNT`, `until-says TARGET`, `upload TARGET BYTES`, `download TARGET`, `half-close TARGET BYTES`, `greeting TARGET`,
//! `reset TARGET BYTES`, `connects TARGET TIMES`,
//! `connect-mptcp TARGET`, `join ADDR` (into a SO_REUSEPORT group), `unread TARGET` (HTTP, what FIONREAD says),
//! `hold TARGET`, `hold-again TARGET` (on a socket that had another connection), `hammer TARGET PATH` (HTTP, a connection a request), `keep-alive TARGET PATH` (HTTP, one connection),
//! `udp-echo TARGET [PORT]` (from this port), `udp-hold TARGET` (a connected socket),
//! `udp-echoes connected|unconnected TARGET PORT COUNT BYTES` (from this port, so many datagrams of so many bytes),
//! `dns udp|tcp SERVER NAME TYPE`. They print one JSON line (`hold`, `hold-again`, `udp-hold`, `connect-many`, `until-says`: one a line of its input) and exit with 0 if
//! what they were told to do went well, 1 if not. TARGET is NAME:PORT or ADDR:PORT. `soak` and
//! `torture` have words of their own; `actor PORT...` does what its input says.

#![forbid(unsafe_code)]

mod actor;
mod clients;
mod dns;
mod hammer;
mod servers;
mod soak;
mod torture;

use std::{env, process::ExitCode};

use anyhow::{Context, Result, bail};

/// Bytes read or written at once by the bulk modes.
const CHUNK: usize = 256 * 1024;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("traffic: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether it went well; servers return only to fail.
fn run(words: &[&str]) -> Result<bool> {
    let number = |word: &str| {
        word.parse::<u64>()
            .with_context(|| format!("`{word}` is no number of bytes"))
    };
    let place = |dir: &str, bytes: &str| -> Result<torture::Where> {
        Ok(torture::Where {
            dir: dir.into(),
            bytes: usize::try_from(number(bytes)?)?,
        })
    };
    match *words {
        ["serve-echo", address] => servers::serve(address, servers::echo),
        ["serve-peer", address] => servers::serve(address, servers::peer),
        ["serve-sink", address] => servers::serve(address, servers::sink),
        ["serve-http-sink", address] => servers::serve(address, servers::http_sink),
        ["serve-source", address, bytes] => {
            let bytes = number(bytes)?;
            servers::serve(address, move |stream| servers::source(stream, bytes))
        }
        ["serve-greeting", address] => servers::serve(address, servers::greeting),
        ["serve-close", address] => servers::close_at_once(address),
        ["serve-says", address, text] => servers::says(address, text),
        ["serve-late", address] => servers::serve(address, servers::late),
        ["serve-told", address] => servers::told(address),
        ["serve-udp-echo", address] => servers::udp_echo(address),
        ["serve-soak", ref ports @ ..] => servers::soak(ports),
        ["connect", target] => clients::connect(target, clients::Transport::Tcp),
        ["connect-mptcp", target] => clients::connect(target, clients::Transport::Mptcp),
        ["connect-many", target, count] => clients::connect_many(target, number(count)?),
        ["until-says", target] => clients::until_says(target),
        ["join", address] => clients::join(address),
        ["unread", target] => clients::unread(target),
        ["upload", target, bytes] => clients::upload(target, number(bytes)?),
        ["download", target] => clients::download(target),
        ["half-close", target, bytes] => clients::half_close(target, number(bytes)?),
        ["reset", target, bytes] => clients::reset(target, number(bytes)?),
        ["connects", target, times] => clients::connects(target, number(times)?),
        ["greeting", target] => clients::greeting(target),
        ["hold", target] => clients::hold(target),
        ["hold-again", target] => clients::hold_again(target),
        ["hammer", target, path] => hammer::hammer(target, path),
        ["keep-alive", target, path] => hammer::keep_alive(target, path),
        ["udp-echo", target] => clients::udp_echo(target, 0),
        ["udp-echo", target, port] => clients::udp_echo(target, port.parse().context("read the port")?),
        ["udp-hold", target] => clients::udp_hold(target),
        [
            "udp-echoes",
            kind @ ("connected" | "unconnected"),
            target,
            port,
            count,
            bytes,
        ] => clients::udp_echoes(
            target,
            kind == "connected",
            port.parse().context("read the port")?,
            &clients::Datagrams {
                count: number(count)?,
                bytes: number(bytes)?,
            },
        ),
        ["serve-torture", address, port, dir, bytes] => torture::serve(address, number(port)?, &place(dir, bytes)?),
        ["torture", host, dir, bytes] => torture::client(host, &place(dir, bytes)?),
        ["actor", ref ports @ ..] => actor::act(ports),
        ["soak", seed, seconds, flows] => soak::run(number(seed)?, number(seconds)?, flows),
        ["dns", transport, server, name, kind] => dns::ask(transport, server, name, kind),
        _ => bail!("unknown words {words:?}: the head of vm-test/src/bin/traffic/main.rs lists the modes"),
    }
}
