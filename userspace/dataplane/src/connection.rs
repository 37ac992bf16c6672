//! What the kernel knows of an accepted connection: read from the socket itself.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use aya::maps::{MapData, MapError, SkStorage};
use weft_abi::{SockRecord, sock_flags};

use crate::{error::DataplaneError, loader::Dataplane, tables::telemetry::socket_addr};

/// The record of a connection that was handed to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// What the application asked for.
    pub original: SocketAddr,
    /// Source identity.
    pub source: u32,
    /// cgroup id of the dialling workload.
    pub source_workload: u64,
    /// Destination identity as the kernel saw it.
    pub destination: u32,
    /// Rule that sent it here, 0 = none (routing did).
    pub rule: u32,
    /// Generation of that decision.
    pub generation: u64,
    /// See [`Connections::has_two_queues`].
    pub has_two_queues: bool,
}

/// Reader of `weft_socks`.
pub struct Connections {
    socks: SkStorage<MapData, SockRecord>,
}

struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Connections {
    /// The one reader of a [`Dataplane`].
    ///
    /// # Errors
    ///
    /// Taken already.
    pub fn open(dataplane: &Dataplane) -> Result<Self, DataplaneError> {
        let map = dataplane.take_map("weft_socks")?;
        let socks = SkStorage::try_from(map).map_err(|source| DataplaneError::Map {
            map: "weft_socks",
            what: "open",
            source: Box::new(source),
        })?;
        Ok(Self { socks })
    }

    /// The record of an accepted socket; `None`: nobody's connection was redirected here (somebody dialled us).
    /// One system call.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn of(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Connection>> {
        let Some(record) = self.record(socket)? else {
            return Ok(None);
        };
        if record.flags & sock_flags::REDIRECTED == 0 {
            return Ok(None);
        }
        Ok(Some(Connection {
            original: socket_addr(&record.original, record.original_port_be),
            source: record.source,
            source_workload: record.peer_owner,
            destination: record.destination,
            rule: record.rule,
            generation: record.generation,
            has_two_queues: may_mix(&record),
        }))
    }

    /// Whether bytes may come to a connected socket past TCP (`weft_rx`), and behind them others through TCP. One system call.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn has_two_queues(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.record(socket)?.is_some_and(|record| may_mix(&record)))
    }

    fn record(&self, socket: BorrowedFd<'_>) -> io::Result<Option<SockRecord>> {
        match self.socks.get(&Fd(socket.as_raw_fd()), 0) {
            Ok(record) => Ok(Some(record)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(other) => Err(io::Error::other(other)),
        }
    }
}

/// A direction goes from the queue past TCP to TCP when its sender gets a ULP (kernel TLS), which is refused where both ways are
/// short-circuited: there it is one of the two for good. The flag is taken away where the socket could not join; where it
/// stays without need, a reader only asks once too often.
fn may_mix(record: &SockRecord) -> bool {
    record.flags & (sock_flags::ACCELERATE | sock_flags::FULL) == sock_flags::ACCELERATE
}
