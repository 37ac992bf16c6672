//! Clients: each does one thing and prints one JSON line.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vm_test::pattern::Checker;

use crate::{CHUNK, servers::write_pattern};

/// A client gives up on a silent peer after this long.
const SILENCE: Duration = Duration::from_secs(30);

/// Connects once and tells how that went: errno, microseconds, both addresses as the program sees them.
pub fn connect(target: &str) -> Result<bool> {
    let address = resolve(target)?;
    let start = Instant::now();
    let result = TcpStream::connect(address);
    let micros = start.elapsed().as_micros() as u64;
    let told = match &result {
        Ok(stream) => json!({
            "ok": true, "micros": micros, "target": address.to_string(),
            "peer": stream.peer_addr()?.to_string(), "local": stream.local_addr()?.to_string(),
        }),
        Err(error) => json!({
            "ok": false, "micros": micros, "target": address.to_string(),
            "errno": error.raw_os_error(), "error": error.to_string(),
        }),
    };
    println!("{told}");
    Ok(result.is_ok())
}

/// Sends the pattern, says that it is done, and reads what the sink saw.
pub fn upload(target: &str, bytes: u64) -> Result<bool> {
    let mut stream = dial(target)?;
    let start = Instant::now();
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read what the sink saw")?;
    let seen: Value = serde_json::from_str(&answer).with_context(|| format!("the sink answered `{answer}`"))?;
    let ok = seen["bytes"] == bytes && seen["first_wrong"].is_null();
    println!(
        "{}",
        json!({"ok": ok, "sent": bytes, "seen": seen, "millis": start.elapsed().as_millis() as u64})
    );
    Ok(ok)
}

/// Reads the pattern to its end.
pub fn download(target: &str) -> Result<bool> {
    let mut stream = dial(target)?;
    let start = Instant::now();
    let checker = read_pattern(&mut stream)?;
    let ok = checker.first_wrong().is_none();
    let (bytes, wrong) = (checker.bytes(), checker.first_wrong());
    println!(
        "{}",
        json!({"ok": ok, "bytes": bytes, "first_wrong": wrong, "millis": start.elapsed().as_millis() as u64})
    );
    Ok(ok)
}

/// Sends all, says that it is done, and only then reads all of it back (`serve-late`, `serve-echo` for little).
pub fn half_close(target: &str, bytes: u64) -> Result<bool> {
    let mut stream = dial(target)?;
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let checker = read_pattern(&mut stream)?;
    let ok = checker.bytes() == bytes && checker.first_wrong().is_none();
    println!(
        "{}",
        json!({"ok": ok, "sent": bytes, "bytes": checker.bytes(), "first_wrong": checker.first_wrong()})
    );
    Ok(ok)
}

/// Says nothing until the server has spoken.
pub fn greeting(target: &str) -> Result<bool> {
    let stream = dial(target)?;
    let start = Instant::now();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let greeting = lines.next().context("the server closed without a word")??;
    let micros = start.elapsed().as_micros() as u64;
    writeln!(&stream, "ping")?;
    let reply = lines.next().context("the server closed after its greeting")??;
    let ok = greeting == "220 hello" && reply == "250 ping";
    println!(
        "{}",
        json!({"ok": ok, "greeting": greeting, "reply": reply, "micros": micros})
    );
    Ok(ok)
}

/// Keeps one connection to an echo server: sends each line of its input and tells what came back.
pub fn hold(target: &str) -> Result<bool> {
    let stream = dial(target)?;
    let mut replies = BufReader::new(stream.try_clone()?).lines();
    println!("{}", json!({"connected": stream.peer_addr()?.to_string()}));
    for line in io::stdin().lines() {
        let line = line?;
        let reply = writeln!(&stream, "{line}").and_then(|()| replies.next().unwrap_or(Ok(String::new())));
        match reply {
            Ok(reply) => println!("{}", json!({"ok": reply == line, "reply": reply})),
            Err(error) => println!(
                "{}",
                json!({"ok": false, "error": error.to_string(), "errno": error.raw_os_error()})
            ),
        }
    }
    Ok(true)
}

/// Sends one datagram and waits for its echo.
pub fn udp_echo(target: &str) -> Result<bool> {
    let address = resolve(target)?;
    let any: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.set_read_timeout(Some(SILENCE))?;
    let told = match socket.send_to(b"ping", address) {
        Err(error) => json!({"ok": false, "errno": error.raw_os_error(), "error": error.to_string()}),
        Ok(_) => {
            let mut buffer = [0; 16];
            let (read, from) = socket.recv_from(&mut buffer).context("receive the echo")?;
            json!({"ok": &buffer[..read] == b"ping", "from": from.to_string()})
        }
    };
    println!("{told}");
    Ok(told["ok"] == true)
}

fn dial(target: &str) -> Result<TcpStream> {
    let address = resolve(target)?;
    let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// The first address of `target`: a test that cares gives an address.
fn resolve(target: &str) -> Result<SocketAddr> {
    let mut addresses = target.to_socket_addrs().with_context(|| format!("resolve {target}"))?;
    match addresses.next() {
        Some(address) => Ok(address),
        None => bail!("{target} has no address"),
    }
}

fn read_pattern(stream: &mut TcpStream) -> Result<Checker> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer).context("read")?;
        if read == 0 {
            return Ok(checker);
        }
        checker.take(&buffer[..read]);
    }
}
