//! Asking the system's resolvers, byte for byte.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use super::{FORWARD_BUDGET, MAX_UDP, Transport};

/// The first answer of a resolver, over the transport that the client used; `None` if none came in time.
///
/// Servers are asked one after the other, as resolvers do; one that cannot be reached costs no time, one that is silent
/// its share of the budget.
pub async fn ask(question: &[u8], servers: &[SocketAddr], transport: Transport) -> Option<Vec<u8>> {
    let began = Instant::now();
    for (index, server) in servers.iter().enumerate() {
        let left = FORWARD_BUDGET.saturating_sub(began.elapsed());
        let share = left / u32::try_from(servers.len() - index).unwrap_or(1);
        match within(share, question, *server, transport).await {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::debug!(%server, %error, "resolver did not answer"),
        }
    }
    None
}

async fn within(share: Duration, question: &[u8], server: SocketAddr, transport: Transport) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + share;
    let answered = match transport {
        Transport::Udp => timeout_at(deadline, over_udp(question, server)).await,
        Transport::Tcp => timeout_at(deadline, over_tcp(question, server)).await,
    };
    answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A socket of its own for each question: its port is as random as the kernel's choice, and only this server's
/// datagrams reach it (connected).
async fn over_udp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::with_capacity(2 + question.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(question);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if is_answer(question, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The number is the question's, and it is marked an answer.
fn is_answer(question: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0
}
