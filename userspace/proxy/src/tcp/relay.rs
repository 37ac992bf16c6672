//! Bytes both ways, with the ends of TCP kept apart: a FIN passes on as a FIN, a reset as a reset.
//!
//! Each direction is a loop over one bounded buffer, so a slow reader holds up its writer and nobody's memory. A
//! direction that ends with EOF shuts the other socket for writing and leaves the opposite direction alone. An error
//! ends both: the socket that still lives is closed with a reset, because a FIN would tell its program that the
//! other side was done, which is not what happened.

use std::{cell::Cell, io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    io::{Prefixed, Socket},
    limits::RELAY_BUFFER,
};

/// A pair of connected sockets.
pub(crate) struct Relay {
    client: Prefixed<Socket>,
    server: Prefixed<Socket>,
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
}

// === impl Relay ===

impl Relay {
    pub(crate) fn new(client: Prefixed<Socket>, server: Prefixed<Socket>) -> Self {
        Self {
            client,
            server,
            sent: Cell::new(0),
            received: Cell::new(0),
        }
    }

    /// Bytes moved so far: from the client, from the server.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.sent.get(), self.received.get())
    }

    /// Moves bytes until both directions have ended.
    ///
    /// # Cancel safety
    /// What was read and not yet written is lost: after dropping the future the only thing to do is [`Relay::reset`].
    pub(crate) async fn run(&mut self) -> Outcome {
        let (client_read, client_write) = tokio::io::split(&mut self.client);
        let (server_read, server_write) = tokio::io::split(&mut self.server);
        let up = pump(client_read, server_write, &self.sent);
        let down = pump(server_read, client_write, &self.received);
        let result = both(up, down).await;
        match result {
            Ok(()) => Outcome::Finished,
            Err(error) => {
                self.abort();
                Outcome::Broken(error)
            }
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
}

async fn both(
    up: impl Future<Output = Result<(), Failed>>,
    down: impl Future<Output = Result<(), Failed>>,
) -> io::Result<()> {
    tokio::pin!(up, down);
    let (first, rest): (_, std::pin::Pin<&mut dyn Future<Output = Result<(), Failed>>>) = tokio::select! {
        first = &mut up => (first, down),
        first = &mut down => (first, up),
    };
    match first {
        Ok(()) => rest.await.map_err(|(Failed::Read(error) | Failed::Write(error))| error),
        Err(Failed::Read(error)) => Err(error),
        Err(Failed::Write(error)) => {
            // The source of `rest` is the dead socket: it ends by itself, after the bytes that had arrived.
            let _ended = rest.await;
            Err(error)
        }
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
            return match to.shutdown().await {
                // The sink has gone already and nothing was lost on it.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                result => result.map_err(Failed::Write),
            };
        }
        to.write_all(&buffer[..count]).await.map_err(Failed::Write)?;
        moved.set(moved.get() + count as u64);
    }
}
