//! One DNS question, by hand: the answer's code and addresses as they came, with no resolver's opinion in between.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use vm_test::poll;

/// As long as glibc waits for one server, on a real machine.
const TIMEOUT: Duration = Duration::from_secs(5);

const ID: u16 = 0x7765;
const TYPES: &[(&str, u16)] = &[("A", 1), ("MX", 15), ("AAAA", 28)];

/// Asks `server` for `name` over `transport` (`udp`, `tcp`) and prints rcode, addresses and milliseconds.
pub fn ask(transport: &str, server: &str, name: &str, kind: &str) -> Result<bool> {
    let Some((_, kind)) = TYPES.iter().find(|(word, _)| *word == kind) else {
        bail!("unknown type {kind}")
    };
    let question = question(name, *kind)?;
    let start = Instant::now();
    let answer = match transport {
        "udp" => over_udp(server, &question)?,
        "tcp" => over_tcp(server, &question)?,
        other => bail!("unknown transport {other}"),
    };
    let millis = start.elapsed().as_millis() as u64;
    let (rcode, answers) = parse(&answer)?;
    println!("{}", json!({"rcode": rcode, "answers": answers, "millis": millis}));
    Ok(true)
}

fn over_udp(server: &str, question: &[u8]) -> Result<Vec<u8>> {
    let any = if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.set_read_timeout(Some(poll::scaled(TIMEOUT)))?;
    socket.connect(server).with_context(|| format!("connect to {server}"))?;
    socket.send(question).context("send the question")?;
    let mut buffer = vec![0; 4096];
    let read = socket.recv(&mut buffer).context("receive the answer")?;
    buffer.truncate(read);
    Ok(buffer)
}

fn over_tcp(server: &str, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(poll::scaled(TIMEOUT)))?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).context("send the question")?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("receive the answer's length")?;
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer).context("receive the answer")?;
    Ok(buffer)
}

fn question(name: &str, kind: u16) -> Result<Vec<u8>> {
    // Header: our number, recursion desired, one question.
    let mut message = ID.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).context("a label of at most 63 bytes")?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    Ok(message)
}

/// rcode and the addresses of all A and AAAA records in the answer section.
fn parse(message: &[u8]) -> Result<(u8, Vec<String>)> {
    let word = |at: usize| -> Result<u16> {
        let bytes = message
            .get(at..at + 2)
            .with_context(|| format!("the answer ends before byte {at}"))?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    if word(0)? != ID {
        bail!("the answer has another number than the question");
    }
    let rcode = (word(2)? & 0xf) as u8;
    let (questions, records) = (word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(message, at)? + 4;
    }
    let mut answers = Vec::new();
    for _ in 0..records {
        at = after_name(message, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length).context("a record is cut off")?;
        match (kind, data.len()) {
            (1, 4) => answers.push(Ipv4Addr::from([data[0], data[1], data[2], data[3]]).to_string()),
            (28, 16) => {
                let mut bytes = [0; 16];
                bytes.copy_from_slice(data);
                answers.push(Ipv6Addr::from(bytes).to_string());
            }
            _ => {}
        }
        at += 10 + length;
    }
    Ok((rcode, answers))
}

/// Where the name at `at` ends: at its zero, or behind the pointer that finishes it.
fn after_name(message: &[u8], mut at: usize) -> Result<usize> {
    loop {
        match message.get(at).context("a name is cut off")? {
            0 => return Ok(at + 1),
            length if length & 0xc0 == 0xc0 => return Ok(at + 2),
            length => at += 1 + usize::from(*length),
        }
    }
}
