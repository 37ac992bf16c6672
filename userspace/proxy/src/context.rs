//! Where an accepted connection wanted to go and who opened it: the proxy's only question to the kernel side.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use weft_policy::{Identity, RuleId};

/// Answers for a connection that was just accepted.
///
/// The dataplane reads it from the connection's kernel record; tests use a table. It is called once a connection, on
/// the worker's thread, so it must not block for longer than a map look-up.
pub trait Origin: Send + Sync + 'static {
    /// `local` and `peer` are the two ends of the accepted socket.
    ///
    /// `Ok(None)`: nobody captured this connection (someone dialled the proxy's port): it is closed and counted.
    ///
    /// # Errors
    /// The look-up itself failed; treated like `None`, and logged.
    fn context(&self, socket: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<ConnContext>>;

    /// Whether bytes may come to this connected socket of ours past TCP (it is in the kernel's SOCKHASH) and behind them others
    /// through TCP, or that cannot be told.
    fn has_two_queues(&self, socket: BorrowedFd<'_>) -> bool;
}

/// What the kernel noted when it sent a connection here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnContext {
    /// What the client dialled: a virtual IP and service port, an endpoint, or an address outside the mesh.
    pub original: SocketAddr,
    /// Whom the kernel took the destination for.
    pub destination: Identity,
    /// Who dialled.
    pub source: Identity,
    /// cgroup v2 id of the workload that dialled, where it is captured on this node.
    pub source_workload: Option<u64>,
    /// The rule for which the kernel sent it here.
    pub rule: Option<RuleId>,
    /// See [`Origin::has_two_queues`].
    pub has_two_queues: bool,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Captured no connection.
    pub(crate) struct Nobody;

    impl Origin for Nobody {
        fn context(&self, _: BorrowedFd<'_>, _: SocketAddr, _: SocketAddr) -> io::Result<Option<ConnContext>> {
            Ok(None)
        }

        fn has_two_queues(&self, _: BorrowedFd<'_>) -> bool {
            false
        }
    }
}
