//! `actor PORT...`: one program of a random mesh. It serves HTTP (keep-alive) and echoes datagrams at each port of all
//! addresses, and opens and uses flows of its own as its input says, a line a step, an answer a line:
//!
//! | step | does | answer |
//! |---|---|---|
//! | `open ID tcp\|udp TARGET` | connects; UDP: binds a port of its own and connects | `{"ok":true,"local":"ADDR"}` |
//! | `say ID METHOD` | sends a request or a datagram and waits for the answer to it | `{"ok":true,"status":N,"closing":BOOL}` |
//! | `push PORT TARGET` | sends a datagram from the port that it serves | `{"ok":true}` |
//! | `hear ID` | waits for a datagram that `say` did not ask for | `{"ok":true}` |
//! | `close ID` | forgets it | `{"ok":true}` |
//!
//! What fails answers `{"ok":false,"errno":N}`, with `"closed"` or `"silent"` where no errno says it.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vm_test::poll;

use crate::clients::resolve;

/// What is not answered by then is lost. Only failing tests wait this long.
const SILENCE: Duration = Duration::from_secs(5);
/// Sent by `push`; anything else is an echo.
const PUSHED: &[u8] = b"pushed";

enum Flow {
    Tcp(TcpStream),
    /// With the number of its last datagram: an answer to an earlier one is none.
    Udp(UdpSocket, u64),
}

#[derive(Default)]
struct Actor {
    flows: HashMap<String, Flow>,
    served: HashMap<u16, UdpSocket>,
}

/// Runs until its input ends.
pub fn act(ports: &[&str]) -> Result<bool> {
    let mut actor = Actor::default();
    for port in ports {
        actor.serve(port.parse().with_context(|| format!("`{port}` is no port"))?)?;
    }
    println!("{}", json!({"listening": ports}));
    for line in io::stdin().lines() {
        let line = line?;
        let told = match actor.step(&line.split(' ').collect::<Vec<_>>()) {
            Ok(told) => told,
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(failed) => failure(failed),
                None => return Err(error.context(format!("do `{line}`"))),
            },
        };
        println!("{told}");
    }
    Ok(true)
}

fn failure(error: &io::Error) -> Value {
    match error.kind() {
        ErrorKind::WouldBlock => json!({"ok": false, "silent": true}),
        ErrorKind::UnexpectedEof => json!({"ok": false, "closed": true}),
        _ => json!({"ok": false, "errno": error.raw_os_error(), "error": error.to_string()}),
    }
}

// === impl Actor ===

impl Actor {
    fn serve(&mut self, port: u16) -> Result<()> {
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(everywhere).with_context(|| format!("listen on {everywhere}"))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whatever ends a connection is told by the other end of it.
                thread::spawn(move || drop(answer_requests(&stream)));
            }
        });
        let socket = UdpSocket::bind(everywhere).with_context(|| format!("bind {everywhere}"))?;
        let echoing = socket.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                // An error is an answer that was refused: of the flow, not of the socket.
                if let Ok((read, from)) = echoing.recv_from(&mut buffer) {
                    let _ = echoing.send_to(&buffer[..read], from);
                }
            }
        });
        self.served.insert(port, socket);
        Ok(())
    }

    fn step(&mut self, words: &[&str]) -> Result<Value> {
        match *words {
            ["open", id, protocol, target] => self.open(id, protocol, resolve(target)?),
            ["say", id, method] => self.flow(id)?.say(method),
            ["hear", id] => self.flow(id)?.hear(),
            ["push", port, target] => {
                let port: u16 = port.parse().context("a port")?;
                let socket = self.served.get(&port).context("a port that is served")?;
                socket.send_to(PUSHED, mapped(target.parse().context("an address")?))?;
                Ok(json!({"ok": true}))
            }
            ["close", id] => {
                self.flows.remove(id);
                Ok(json!({"ok": true}))
            }
            _ => bail!("unknown step: the head of vm-test/src/bin/traffic/actor.rs lists them"),
        }
    }

    fn flow(&mut self, id: &str) -> Result<&mut Flow> {
        self.flows.get_mut(id).with_context(|| format!("no flow {id}"))
    }

    fn open(&mut self, id: &str, protocol: &str, target: SocketAddr) -> Result<Value> {
        let silence = Some(poll::scaled(SILENCE));
        let (flow, local) = match protocol {
            "tcp" => {
                let stream = TcpStream::connect(target)?;
                stream.set_read_timeout(silence)?;
                let local = stream.local_addr()?;
                (Flow::Tcp(stream), local)
            }
            "udp" => {
                let any: SocketAddr = match target {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(target)?;
                socket.set_read_timeout(silence)?;
                let local = socket.local_addr()?;
                (Flow::Udp(socket, 0), local)
            }
            other => bail!("no protocol {other}"),
        };
        self.flows.insert(id.to_owned(), flow);
        Ok(json!({"ok": true, "local": local.to_string()}))
    }
}

// === impl Flow ===

impl Flow {
    fn say(&mut self, method: &str) -> Result<Value> {
        match self {
            Self::Tcp(stream) => {
                write!(stream, "{method} / HTTP/1.1\r\nHost: mesh\r\nContent-Length: 0\r\n\r\n")?;
                let (head, _) = read_message(&mut BufReader::new(&*stream))?;
                let status: Option<u16> = head.split(' ').nth(1).and_then(|word| word.parse().ok());
                let closing = head.to_ascii_lowercase().contains("connection: close");
                Ok(json!({"ok": true, "status": status, "closing": closing}))
            }
            Self::Udp(socket, number) => {
                *number += 1;
                let sent = format!("{number}");
                socket.send(sent.as_bytes())?;
                heard(socket, |bytes| bytes == sent.as_bytes())
            }
        }
    }

    fn hear(&mut self) -> Result<Value> {
        match self {
            Self::Tcp(_) => bail!("only datagrams are pushed"),
            Self::Udp(socket, _) => heard(socket, |bytes| bytes == PUSHED),
        }
    }
}

/// Waits for the datagram that is `meant`.
fn heard(socket: &UdpSocket, meant: impl Fn(&[u8]) -> bool) -> Result<Value> {
    let mut buffer = [0; 64];
    loop {
        let read = socket.recv(&mut buffer)?;
        if meant(&buffer[..read]) {
            return Ok(json!({"ok": true}));
        }
    }
}

/// As a dual-stack socket sends to it.
fn mapped(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => target,
    }
}

fn answer_requests(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut stream = stream;
    loop {
        read_message(&mut reader)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
}

/// Head and body of a message whose body, if any, has a Content-Length.
fn read_message(reader: &mut impl BufRead) -> io::Result<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: u64 = length.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    if reader.take(length).read_to_end(&mut body)? as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((head, body))
}
