//! Servers, a thread a connection.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use serde_json::json;
use vm_test::pattern::{Checker, Pattern};

use crate::CHUNK;

/// A connection that counts what the program itself wrote and read. Clones add to the same counts.
pub struct Counted {
    stream: TcpStream,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

// === impl Counted ===

impl Counted {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            counts: Arc::clone(&self.counts),
        })
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // It has no timeout, so a blocking read that says EAGAIN is a socket in a sockmap (`clients::Patient`).
        let read = loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        self.counts.received.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(buffer)?;
        self.counts.sent.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Accepts on `address` and hands every connection to `talk` in a thread of its own; says at the end of each what went
/// over it: `{"served":{"sent":N,"received":N}}`.
pub fn serve(address: &str, talk: impl Fn(Counted) -> Result<()> + Send + Sync + 'static) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("{}", json!({"listening": listener.local_addr()?.to_string()}));
    let talk = Arc::new(talk);
    loop {
        let (stream, _) = listener.accept().context("accept")?;
        let talk = Arc::clone(&talk);
        thread::spawn(move || {
            let counts = Arc::new(Counts::default());
            let counted = Counted {
                stream,
                counts: Arc::clone(&counts),
            };
            if let Err(error) = talk(counted) {
                eprintln!("{}", json!({"error": format!("{error:#}")}));
            }
            let (sent, received) = (
                counts.sent.load(Ordering::Relaxed),
                counts.received.load(Ordering::Relaxed),
            );
            println!("{}", json!({"served": {"sent": sent, "received": received}}));
        });
    }
}

/// Sends so many bytes of the pattern for every number on its input to the connection it accepted; its end is the end of
/// the input.
pub fn told(address: &str) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("{}", json!({"listening": listener.local_addr()?.to_string()}));
    let (mut stream, _) = listener.accept().context("accept")?;
    BufReader::new(stream.try_clone()?).read_line(&mut String::new())?;
    let mut pattern = Pattern::default();
    for line in io::stdin().lines() {
        let bytes: usize = line?.parse().context("a number of bytes")?;
        let mut buffer = vec![0; bytes];
        pattern.fill(&mut buffer);
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    drain(&mut stream)?;
    Ok(true)
}

/// Sends back what comes, until the other side is done; then is done itself.
pub fn echo(mut stream: Counted) -> Result<()> {
    let mut back = stream.try_clone()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(back.shutdown(Shutdown::Write)?);
        }
        back.write_all(&buffer[..read])?;
    }
}

/// Answers every line with the address and port that it sees the client at.
pub fn peer(mut stream: Counted) -> Result<()> {
    let peer = stream.stream.peer_addr().context("ask for the client's address")?;
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        line?;
        writeln!(stream, "{peer}")?;
    }
    Ok(())
}

/// Takes the pattern until the other side is done, then answers with what it saw: needs a half-close that arrives.
pub fn sink(mut stream: Counted) -> Result<()> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        checker.take(&buffer[..read]);
    }
    writeln!(
        stream,
        "{}",
        json!({"bytes": checker.bytes(), "first_wrong": checker.first_wrong()})
    )?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// One HTTP/1.1 request with a body of known length, read in plain blocking reads; answers with what it saw.
pub fn http_sink(mut stream: Counted) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut expects) = (0u64, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().context("read the length")?;
        }
        expects |= line.starts_with("expect:");
    }
    if expects {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut checker = Checker::default();
    let mut buffer = vec![0; CHUNK];
    while checker.bytes() < length {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        checker.take(&buffer[..read]);
    }
    let told = json!({"bytes": checker.bytes(), "first_wrong": checker.first_wrong()}).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{told}",
        told.len()
    )?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Waits for a line, sends `bytes` of the pattern and closes.
pub fn source(mut stream: Counted, bytes: u64) -> Result<()> {
    BufReader::new(stream.try_clone()?).read_line(&mut String::new())?;
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    // A close with unread bytes would be a reset, which may overtake what was sent.
    drain(&mut stream)
}

/// Speaks first, as SMTP and MySQL do, then echoes lines.
pub fn greeting(mut stream: Counted) -> Result<()> {
    writeln!(stream, "220 hello")?;
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        writeln!(stream, "250 {}", line?)?;
    }
    Ok(())
}

/// Reads to the end first and sends all of it back only then.
pub fn late(mut stream: Counted) -> Result<()> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    stream.write_all(&all)?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Says one line to each client and closes: for clients that want to know which server they got.
pub fn says(address: &str, text: &str) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("{}", json!({"listening": listener.local_addr()?.to_string()}));
    loop {
        // A client that has reset already wants to know nothing.
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = writeln!(stream, "{text}");
        }
    }
}

/// Accepts and closes, for clients that only want to connect.
pub fn close_at_once(address: &str) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("{}", json!({"listening": listener.local_addr()?.to_string()}));
    loop {
        // A client that has reset already is as good as gone.
        let _ = listener.accept();
    }
}

/// Sends back every datagram. An answer that is denied meanwhile is not sent.
pub fn udp_echo(address: &str) -> Result<bool> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    println!("{}", json!({"listening": socket.local_addr()?.to_string()}));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (read, from) = socket.recv_from(&mut buffer).context("receive")?;
        let _ = socket.send_to(&buffer[..read], from);
    }
}

/// TCP and UDP echo at each of `ports`, on all addresses.
pub fn soak(ports: &[&str]) -> Result<bool> {
    thread::scope(|scope| {
        for port in ports {
            let address = format!("[::]:{port}");
            let tcp = address.clone();
            scope.spawn(move || failed(serve(&tcp, echo)));
            scope.spawn(move || failed(udp_echo(&address)));
        }
    });
    Ok(false)
}

/// A server that cannot go on takes the others with it.
fn failed(result: Result<bool>) {
    if let Err(error) = result {
        eprintln!("traffic: {error:#}");
        std::process::exit(2);
    }
}

/// Writes the first `bytes` of the pattern.
pub fn write_pattern(stream: &mut impl Write, bytes: u64) -> Result<()> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(&mut buffer[..now]);
        stream.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn drain(stream: &mut impl Read) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
