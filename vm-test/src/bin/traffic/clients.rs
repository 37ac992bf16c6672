//! Clients: each does one thing and prints one JSON line.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use vm_test::{pattern::Checker, poll};

use crate::{CHUNK, servers::write_pattern};

/// A client gives up on a silent peer after this long, on a real machine.
const SILENCE: Duration = Duration::from_secs(30);

/// A reader that goes on where a blocking read says EAGAIN long before its timeout, and counts how often it did.
///
/// A socket in a sockmap does that (Linux 6.18, `tcp_bpf_recvmsg`): any wake-up without data, say the acknowledgement of
/// our FIN, ends the wait. A test decides whether that may happen on its path.
struct Patient {
    stream: TcpStream,
    last_heard: Instant,
    spurious: u64,
}

// === impl Patient ===

impl Patient {
    fn new(stream: &TcpStream) -> Result<Self> {
        Ok(Self {
            stream: stream.try_clone()?,
            last_heard: Instant::now(),
            spurious: 0,
        })
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && self.last_heard.elapsed() < poll::scaled(SILENCE) =>
                {
                    self.spurious += 1;
                }
                result => {
                    self.last_heard = Instant::now();
                    return result;
                }
            }
        }
    }
}

/// What [`connect`] dials with.
#[derive(Clone, Copy)]
pub enum Transport {
    Tcp,
    /// Multipath TCP (Linux 5.6, `net.mptcp.enabled`).
    Mptcp,
}

/// IPPROTO_MPTCP.
const MPTCP: i32 = 262;

/// Connects once and tells how that went: errno, microseconds, both addresses as the program sees them.
pub fn connect(target: &str, transport: Transport) -> Result<bool> {
    let address = resolve(target)?;
    let start = Instant::now();
    let protocol = match transport {
        Transport::Tcp => Protocol::TCP,
        Transport::Mptcp => Protocol::from(MPTCP),
    };
    let result = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).and_then(|socket| {
        socket.connect(&address.into())?;
        Ok(TcpStream::from(socket))
    });
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

/// For each line of its input connects and resets `count` times, one after the other, and tells the median of what a connect() took:
/// one that a full listener made wait for a retransmission, a second, says nothing of the others.
pub fn connect_many(target: &str, count: u64) -> Result<bool> {
    let address = resolve(target)?;
    println!("{}", json!({"ready": address.to_string()}));
    for line in io::stdin().lines() {
        line?;
        let (mut spent, mut failed) = (Vec::new(), 0u64);
        for _ in 0..count {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // A reset leaves nothing behind that would take the port for a minute.
            socket.set_linger(Some(Duration::ZERO))?;
            let start = Instant::now();
            let result = socket.connect(&address.into());
            spent.push(start.elapsed());
            failed += u64::from(result.is_err());
        }
        spent.sort_unstable();
        let ns = spent.get(spent.len() / 2).map(|median| median.as_nanos() as f64);
        println!("{}", json!({"count": count, "failed": failed, "ns": ns}));
    }
    Ok(true)
}

/// Between two connections of [`until_says`]: what it tells is that exact, and it takes little from what it waits for.
const BETWEEN: Duration = Duration::from_millis(1);

/// For each line of its input: connects again and again until the server is one that says this line (`serve-says`), and tells
/// when it did, in nanoseconds since 1970, and how many connections failed meanwhile.
pub fn until_says(target: &str) -> Result<bool> {
    let address = resolve(target)?;
    println!("{}", json!({"ready": address.to_string()}));
    for line in io::stdin().lines() {
        let wanted = line?;
        let (begin, mut failed) = (Instant::now(), 0u64);
        let told = loop {
            let said = said(address);
            if said.as_ref().is_ok_and(|said| *said == wanted) {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
                let ns = u64::try_from(now.as_nanos()).context("a time before the year 2500")?;
                break json!({"ok": true, "at": ns, "failed": failed});
            }
            failed += u64::from(said.is_err());
            if begin.elapsed() > poll::scaled(SILENCE) {
                break json!({"ok": false, "failed": failed, "last": format!("{said:?}")});
            }
            thread::sleep(BETWEEN);
        };
        println!("{told}");
    }
    Ok(true)
}

/// What a server says at once, and leaves nothing behind that would take the port for a minute.
fn said(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(poll::scaled(SILENCE)))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Socket::from(stream).set_linger(Some(Duration::ZERO))?;
    Ok(line.trim_end().to_owned())
}

/// Listens at an address that somebody else may listen at already, as a further member of his group.
pub fn join(address: &str) -> Result<bool> {
    let address = resolve(address)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    let result = socket.bind(&address.into()).and_then(|()| socket.listen(1));
    println!(
        "{}",
        json!({ "ok": result.is_ok(), "errno": result.as_ref().err().and_then(io::Error::raw_os_error) })
    );
    Ok(result.is_ok())
}

/// Asks for a page, waits for the answer, reads one byte, and tells how many the kernel says are left and how many are.
pub fn unread(target: &str) -> Result<bool> {
    let mut stream = dial(target)?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .context("ask")?;
    let mut first = [0; 1];
    stream.read_exact(&mut first).context("read the first byte")?;
    // The whole answer is there when nothing more comes within a moment that no loopback takes.
    let mut said = said_unread(&stream)?;
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(10));
        let now = said_unread(&stream)?;
        if now == said && now > 0 {
            break;
        }
        said = now;
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("read the rest")?;
    println!(
        "{}",
        json!({ "ok": said == rest.len(), "said": said, "were": rest.len() })
    );
    Ok(said == rest.len())
}

/// FIONREAD.
fn said_unread(stream: &TcpStream) -> Result<usize> {
    rustix::io::ioctl_fionread(stream)
        .map(|n| n as usize)
        .context("ask FIONREAD")
}

/// Sends the pattern, says that it is done, and reads what the sink saw.
pub fn upload(target: &str, bytes: u64) -> Result<bool> {
    let mut stream = dial(target)?;
    let start = Instant::now();
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let (mut answer, mut reader) = (String::new(), Patient::new(&stream)?);
    reader.read_to_string(&mut answer).context("read what the sink saw")?;
    let seen: Value = serde_json::from_str(&answer).with_context(|| format!("the sink answered `{answer}`"))?;
    let ok = seen["bytes"] == bytes && seen["first_wrong"].is_null();
    println!(
        "{}",
        json!({"ok": ok, "sent": bytes, "received": answer.len(), "seen": seen, "millis": start.elapsed().as_millis() as u64})
    );
    Ok(ok)
}

/// More than a word of a test, and less than buffers take while nobody reads.
const BEFORE: usize = 64 << 10;

/// A line that is no HTTP.
const ASK: &[u8] = b"send\n";

/// Asks with a line that is no HTTP, and reads the pattern to its end.
pub fn download(target: &str) -> Result<bool> {
    let mut stream = dial(target)?;
    stream.write_all(ASK)?;
    let start = Instant::now();
    let mut reader = Patient::new(&stream)?;
    let checker = read_pattern(&mut reader)?;
    let ok = checker.first_wrong().is_none();
    let told = json!({
        "ok": ok, "bytes": checker.bytes(), "first_wrong": checker.first_wrong(),
        "sent": ASK.len(), "received": checker.bytes(), "spurious_eagain": reader.spurious, "millis": start.elapsed().as_millis() as u64,
    });
    println!("{told}");
    Ok(ok)
}

/// Sends all, says that it is done, and only then reads all of it back (`serve-late`, `serve-echo` for little).
pub fn half_close(target: &str, bytes: u64) -> Result<bool> {
    let mut stream = dial(target)?;
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut reader = Patient::new(&stream)?;
    let checker = read_pattern(&mut reader)?;
    let ok = checker.bytes() == bytes && checker.first_wrong().is_none();
    let told = json!({
        "ok": ok, "sent": bytes, "received": checker.bytes(), "bytes": checker.bytes(), "first_wrong": checker.first_wrong(),
        "spurious_eagain": reader.spurious,
    });
    println!("{told}");
    Ok(ok)
}

/// Sends, reads all of it back (`serve-echo`), and ends the connection by a reset.
pub fn reset(target: &str, bytes: u64) -> Result<bool> {
    let mut stream = dial(target)?;
    write_pattern(&mut stream, bytes)?;
    let mut back = vec![0; usize::try_from(bytes).context("a buffer of that size")?];
    stream.read_exact(&mut back).context("read the echo")?;
    // SO_LINGER of no time: close sends RST.
    Socket::from(stream).set_linger(Some(Duration::ZERO))?;
    println!("{}", json!({"ok": true, "sent": bytes, "received": bytes}));
    Ok(true)
}

/// Waits for a line on its input, then connects and hangs up so many times; tells how often it got through.
pub fn connects(target: &str, times: u64) -> Result<bool> {
    let address = resolve(target)?;
    println!("{}", json!({"ready": true}));
    io::stdin().read_line(&mut String::new())?;
    let mut through = 0u64;
    for _ in 0..times {
        if let Ok(stream) = TcpStream::connect(address) {
            through += 1;
            // The server is done when it sees our end.
            stream.shutdown(Shutdown::Write)?;
            let _ = Patient::new(&stream)?.read(&mut [0; 1]);
        }
    }
    println!("{}", json!({"ok": through == times, "through": through}));
    Ok(through == times)
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
    hold_on(&dial(target)?)
}

/// The same on a socket that had another connection before, over which [`BEFORE`] bytes and a line's end were echoed.
pub fn hold_again(target: &str) -> Result<bool> {
    let stream = dial(target)?;
    let line = "x".repeat(BEFORE);
    writeln!(&stream, "{line}").context("send over the first connection")?;
    let mut reply = String::new();
    BufReader::new(Patient::new(&stream)?).read_line(&mut reply)?;
    ensure!(
        reply.trim_end() == line,
        "the first connection echoed {} bytes",
        reply.len()
    );
    rustix::net::connect_unspec(&stream).context("leave the first connection")?;
    let socket = Socket::from(stream);
    socket.connect(&resolve(target)?.into()).context("connect again")?;
    hold_on(&socket.into())
}

fn hold_on(stream: &TcpStream) -> Result<bool> {
    let mut replies = BufReader::new(Patient::new(stream)?).lines();
    println!("{}", json!({"connected": stream.peer_addr()?.to_string()}));
    for line in io::stdin().lines() {
        let line = line?;
        let reply = writeln!({ stream }, "{line}").and_then(|()| replies.next().unwrap_or(Ok(String::new())));
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

/// Sends one datagram from local port `port` (0: any) and waits for its echo.
pub fn udp_echo(target: &str, port: u16) -> Result<bool> {
    let address = resolve(target)?;
    let socket = datagrams_to(address, port)?;
    // Sooner than whoever looks whether it is answered yet loses patience: a policy may cut it between its two ways.
    socket.set_read_timeout(Some(poll::scaled(LOST)))?;
    let mut buffer = [0; 16];
    let told = match socket
        .send_to(b"ping", address)
        .and_then(|_| socket.recv_from(&mut buffer))
    {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => json!({"ok": false, "lost": true}),
        Err(error) => json!({"ok": false, "errno": error.raw_os_error(), "error": error.to_string()}),
        Ok((read, from)) => json!({"ok": &buffer[..read] == b"ping", "from": from.to_string()}),
    };
    println!("{told}");
    Ok(told["ok"] == true)
}

/// A datagram that loopback or a veth has not brought back by then, on a real machine, is lost.
const LOST: Duration = Duration::from_secs(1);

/// Keeps one connected socket to an echo server: sends each line of its input and tells what came back.
pub fn udp_hold(target: &str) -> Result<bool> {
    let address = resolve(target)?;
    let socket = datagrams_to(address, 0)?;
    socket.connect(address).context("connect")?;
    socket.set_read_timeout(Some(poll::scaled(LOST)))?;
    println!("{}", json!({"local": socket.local_addr()?.to_string()}));
    let mut buffer = [0; 1500];
    for line in io::stdin().lines() {
        let line = line?;
        let echo = socket.send(line.as_bytes()).and_then(|_| socket.recv(&mut buffer));
        match echo {
            Ok(read) => println!("{}", json!({"ok": &buffer[..read] == line.as_bytes()})),
            Err(error) => println!(
                "{}",
                json!({"ok": false, "lost": error.kind() == io::ErrorKind::WouldBlock, "errno": error.raw_os_error()})
            ),
        }
    }
    Ok(true)
}

/// Datagrams that a flow is made of.
pub struct Datagrams {
    pub count: u64,
    /// Of each.
    pub bytes: u64,
}

/// Sends datagrams from local port `port`, each when the one before has come back; tells how many bytes went both ways.
pub fn udp_echoes(target: &str, connected: bool, port: u16, datagrams: &Datagrams) -> Result<bool> {
    let address = resolve(target)?;
    let socket = datagrams_to(address, port)?;
    if connected {
        socket.connect(address).context("connect")?;
    }
    socket.set_read_timeout(Some(poll::scaled(SILENCE)))?;
    let datagram = vec![b'x'; usize::try_from(datagrams.bytes).context("a buffer of that size")?];
    let mut buffer = vec![0; datagram.len() + 1];
    let (mut sent, mut received) = (0, 0);
    for _ in 0..datagrams.count {
        let written = if connected {
            socket.send(&datagram)
        } else {
            socket.send_to(&datagram, address)
        };
        sent += written.context("send")?;
        received += socket.recv_from(&mut buffer).context("receive the echo")?.0;
    }
    println!(
        "{}",
        json!({"ok": sent == received, "sent": sent, "received": received})
    );
    Ok(sent == received)
}

/// A socket at `port` (0: any) that can send to `address`.
fn datagrams_to(address: SocketAddr, port: u16) -> Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], port).into(),
        SocketAddr::V6(_) => ([0u16; 8], port).into(),
    };
    UdpSocket::bind(any).context("bind")
}

fn dial(target: &str) -> Result<TcpStream> {
    let address = resolve(target)?;
    let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(poll::scaled(SILENCE)))?;
    stream.set_write_timeout(Some(poll::scaled(SILENCE)))?;
    Ok(stream)
}

/// The first address of `target`: a test that cares gives an address.
pub fn resolve(target: &str) -> Result<SocketAddr> {
    let mut addresses = target.to_socket_addrs().with_context(|| format!("resolve {target}"))?;
    match addresses.next() {
        Some(address) => Ok(address),
        None => bail!("{target} has no address"),
    }
}

fn read_pattern(stream: &mut Patient) -> Result<Checker> {
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
