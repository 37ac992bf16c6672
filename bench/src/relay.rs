//! `weft-relay`: the least that a proxy can do. It copies bytes between each client and a connection of that client's own to
//! one target, and reads nothing into them.
//!
//! What it takes is the price of the kernel's TCP: four system calls a request beside the waits. No proxy takes less that reads
//! a request from one socket and writes it to another.

#![forbid(unsafe_code)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use rustix::{
    event::epoll,
    io::Errno,
    net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt},
};

/// Events of one wait.
const EVENTS: usize = 256;
/// Bytes of one read.
const BUFFER: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Key of the listener; those of pairs count from 0, two a pair.
const LISTENER: u64 = u64::MAX;

/// Copies bytes between clients and one target.
#[derive(Parser)]
struct Args {
    /// Where it listens: ADDRESS:PORT.
    listen: SocketAddr,
    /// Where to: ADDRESS:PORT.
    target: SocketAddr,
    /// Threads, each with a listener of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// A client's connection and its own to the target.
type Pair = [TcpStream; 2];

struct Relay {
    poll: OwnedFd,
    listener: TcpListener,
    target: SocketAddr,
    pairs: Vec<Option<Pair>>,
    buffer: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let relays = (0..args.threads.max(1)).map(|_| Relay::new(args.listen, args.target));
    let relays: Vec<Relay> = relays.collect::<Result<_>>()?;
    let threads: Vec<_> = relays
        .into_iter()
        .map(|mut relay| thread::spawn(move || relay.run()))
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    Ok(())
}

// === impl Relay ===

impl Relay {
    fn new(listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        let family = if listen.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        net::bind(&socket, &listen).with_context(|| format!("bind {listen}"))?;
        net::listen(&socket, BACKLOG)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &poll,
            &socket,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            poll,
            listener: TcpListener::from(socket),
            target,
            pairs: Vec::new(),
            buffer: vec![0; BUFFER],
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("wait for events"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    key => self.copy(key as usize / 2, key as usize % 2),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((client, _)) => self.pair(client)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client has gone already.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("accept a connection"),
            }
        }
    }

    fn pair(&mut self, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(self.target).with_context(|| format!("connect to {}", self.target))?;
        let index = self.pairs.iter().position(Option::is_none).unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let pair = [client, server];
        for (side, stream) in pair.iter().enumerate() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let key = epoll::EventData::new_u64((2 * index + side) as u64);
            epoll::add(&self.poll, stream, key, epoll::EventFlags::IN)?;
        }
        self.pairs[index] = Some(pair);
        Ok(())
    }

    /// Carries what came at one side to the other. The end of either, or more than the other takes at once, ends both.
    fn copy(&mut self, index: usize, from: usize) {
        // An event of the same wait may have ended it.
        let Some(pair) = &mut self.pairs[index] else { return };
        let goes_on = match pair[from].read(&mut self.buffer) {
            Ok(0) => false,
            Ok(read) => pair[1 - from].write_all(&self.buffer[..read]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if !goes_on {
            self.pairs[index] = None;
        }
    }
}
