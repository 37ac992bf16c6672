//! One connection: at most one request on its way, never blocking.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::epoll,
    io::Errno,
    net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt},
};

use crate::response::{self, Whole};

const READ_BUFFER: usize = 16 * 1024;

pub struct Connection {
    stream: TcpStream,
    /// When the request that is on its way was due.
    pub due: Option<Instant>,
    /// Bytes of the request that are written.
    written: usize,
    received: Vec<u8>,
    closed: bool,
}

// === impl Connection ===

impl Connection {
    /// Begins to connect; `poll` tells of it by `key`, once for each edge.
    pub fn open(poll: &OwnedFd, key: u64, target: SocketAddr) -> Result<Self> {
        let family = if target.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match net::connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("connect to {target}")),
        }
        let interest =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(poll, &socket, epoll::EventData::new_u64(key), interest)?;
        Ok(Self {
            stream: TcpStream::from(socket),
            due: None,
            written: 0,
            received: Vec::with_capacity(READ_BUFFER),
            closed: false,
        })
    }

    /// Puts a request on its way that was due then.
    pub fn send(&mut self, request: &[u8], due: Instant) -> Result<()> {
        self.due = Some(due);
        self.written = 0;
        self.write(request)
    }

    /// Something happened: goes on writing and reading; the response, when it is whole.
    pub fn go_on(&mut self, request: &[u8]) -> Result<Option<Whole>> {
        if self.due.is_none() {
            // A server may close an idle connection; the next request finds out.
            return Ok(None);
        }
        self.write(request)?;
        self.read(false)?;
        let mut parsed = response::parse(&self.received, self.closed)?;
        if parsed.is_none() && !self.closed {
            // Nothing tells again of an end that had come with the bytes.
            self.read(true)?;
            parsed = response::parse(&self.received, self.closed)?;
        }
        let Some(whole) = parsed else {
            if self.closed {
                bail!("the connection ended before the response did");
            }
            return Ok(None);
        };
        if whole.length != self.received.len() {
            bail!("{} bytes behind the response", self.received.len() - whole.length);
        }
        self.received.clear();
        Ok(Some(whole))
    }

    fn write(&mut self, request: &[u8]) -> Result<()> {
        while let Some(rest) = request.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(written) => self.written += written,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        Ok(())
    }

    /// What is there; `all`: until the system says that nothing more is.
    fn read(&mut self, all: bool) -> Result<()> {
        let mut buffer = [0; READ_BUFFER];
        while !self.closed {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    self.received.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    if read < buffer.len() && !all {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("receive"),
            }
        }
        Ok(())
    }
}
