//! Bytes both ways, with the ends of TCP kept apart: a FIN passes on as a FIN, a reset as a reset.
//!
//! Each direction is a loop over one bounded buffer, so a slow reader holds up its writer and nobody's memory (but where the
//! operator declared `acceleration: full`: the kernel does not bound what is handed past TCP). A direction that ends with EOF
//! shuts the other socket for writing and leaves the opposite direction alone. An error ends both: the socket that still lives is
//! closed with a reset, because a FIN would tell its program that the other side was done, which is not what happened.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use weft_adapters::Direction;

use crate::{
    filter::{ResetBy, TcpChain, passage::Broke},
    io::{Prefixed, Socket},
    limits::RELAY_BUFFER,
};

/// A pair of connected sockets.
pub(crate) struct Relay {
    client: Prefixed<Socket>,
    server: Prefixed<Socket>,
    moved: Rc<Moved>,
}

/// Bytes that a relay has moved.
#[derive(Default)]
pub(crate) struct Moved {
    sent: Cell<u64>,
    received: Cell<u64>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Both directions came to their end.
    Finished,
    /// One side reset or vanished; the other was reset.
    Broken(io::Error),
    /// This adapter's filter wanted a reset of both.
    Reset { by: String },
}

// === impl Relay ===

impl Relay {
    pub(crate) fn new(client: Prefixed<Socket>, server: Prefixed<Socket>) -> Self {
        Self {
            client,
            server,
            moved: Rc::default(),
        }
    }

    /// Bytes moved so far, to be read also while it runs.
    pub(crate) fn moved(&self) -> &Rc<Moved> {
        &self.moved
    }

    /// Moves bytes until both directions have ended.
    ///
    /// # Cancel safety
    /// What was read and not yet written is lost: after dropping the future the only thing to do is [`Relay::reset`].
    pub(crate) async fn run(&mut self) -> Outcome {
        let (client_read, client_write) = tokio::io::split(&mut self.client);
        let (server_read, server_write) = tokio::io::split(&mut self.server);
        let up = pump(client_read, server_write, &self.moved.sent);
        let down = pump(server_read, client_write, &self.moved.received);
        let result = both(up, down).await;
        self.outcome(result)
    }

    /// The same through filters. Bytes count when they come out of them.
    ///
    /// # Cancel safety
    /// As [`Relay::run`].
    pub(crate) async fn run_filtered(&mut self, chain: &TcpChain) -> Outcome {
        let (client_read, client_write) = tokio::io::split(&mut self.client);
        let (server_read, server_write) = tokio::io::split(&mut self.server);
        let up = pump_filtered(
            client_read,
            server_write,
            &self.moved.sent,
            chain,
            Direction::Downstream,
        );
        let down = pump_filtered(
            server_read,
            client_write,
            &self.moved.received,
            chain,
            Direction::Upstream,
        );
        let result = both(up, down).await;
        self.outcome(result)
    }

    fn outcome(&mut self, result: Result<(), Failed>) -> Outcome {
        let Err(failed) = result else {
            return Outcome::Finished;
        };
        self.abort();
        match failed {
            Failed::Read(error) | Failed::Write(error) => Outcome::Broken(error),
            Failed::Filter(ResetBy(by)) => Outcome::Reset { by },
        }
    }

    /// Ends both connections with a reset.
    pub(crate) fn reset(mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        linger_none(self.client.stream());
        linger_none(self.server.stream());
    }
}

// === impl Moved ===

impl Moved {
    /// From the client, from the server.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.sent.get(), self.received.get())
    }
}

/// Closes a connection with a reset.
pub(crate) fn reset(stream: Socket) {
    linger_none(&stream);
}

/// The close that follows sends RST instead of FIN.
fn linger_none(stream: &Socket) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "set SO_LINGER");
    }
}

/// Where a direction failed.
enum Failed {
    /// Its source: nothing more comes from there, and nothing can be written to it either.
    Read(io::Error),
    /// Its sink. What the sink sent before it went is still to be delivered by the other direction.
    Write(io::Error),
    /// Between them.
    Filter(ResetBy),
}

async fn both(
    up: impl Future<Output = Result<(), Failed>>,
    down: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    tokio::pin!(up, down);
    let (first, rest): (_, Pin<&mut dyn Future<Output = Result<(), Failed>>>) = tokio::select! {
        first = &mut up => (first, down),
        first = &mut down => (first, up),
    };
    match first {
        Ok(()) => rest.await,
        Err(failed @ Failed::Write(_)) => {
            // The source of `rest` is the dead socket: it ends by itself, after the bytes that had arrived. An adapter that
            // resets because of these says more than the socket.
            match rest.await {
                Err(reset @ Failed::Filter(_)) => Err(reset),
                _ => Err(failed),
            }
        }
        Err(failed) => Err(failed),
    }
}

async fn pump_filtered(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &Cell<u64>,
    chain: &TcpChain,
    side: Direction,
) -> Result<(), Failed> {
    let filters = chain.bytes(side);
    // In a box: connections without filters would have room for it too.
    let mut passage = Box::new(chain.passage());
    let mut buffer = vec![0u8; RELAY_BUFFER];
    loop {
        let mut read = |cx: &mut Context<'_>| {
            let mut into = ReadBuf::new(&mut buffer);
            let read = ready!(Pin::new(&mut from).poll_read(cx, &mut into));
            let filled = into.filled();
            let frame = |()| (!filled.is_empty()).then(|| (Frame::data(Bytes::copy_from_slice(filled)), false));
            Poll::Ready(read.map(frame))
        };
        let frame = poll_fn(|cx| passage.poll_frame(&filters, cx, &mut read)).await;
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                to.write_all(&data).await.map_err(Failed::Write)?;
                moved.set(moved.get() + data.len() as u64);
            }
            Some(Err(Broke::Input(error))) => {
                chain.closed(side);
                return Err(Failed::Read(error));
            }
            Some(Err(Broke::Filter(reset))) => return Err(Failed::Filter(reset)),
            None => {
                chain.closed(side);
                return finish(to).await;
            }
        }
    }
}

/// Tells the sink that nothing more comes.
async fn finish(mut to: impl AsyncWrite + Unpin) -> Result<(), Failed> {
    match to.shutdown().await {
        // The sink has gone already and nothing was lost on it.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result.map_err(Failed::Write),
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &Cell<u64>,
) -> Result<(), Failed> {
    let mut buffer = vec![0u8; RELAY_BUFFER];
    loop {
        let count = from.read(&mut buffer).await.map_err(Failed::Read)?;
        if count == 0 {
            return finish(to).await;
        }
        to.write_all(&buffer[..count]).await.map_err(Failed::Write)?;
        moved.set(moved.get() + count as u64);
    }
}
