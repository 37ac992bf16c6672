//! The proxy's questions to the kernel: where did this connection want to go, and how do its bytes come?

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use weft_dataplane::Connections;
use weft_policy::{Identity, RuleId};
use weft_proxy::{ConnContext, Origin};

/// Answers from the socket's own record.
pub struct KernelOrigin(pub Connections);

impl Origin for KernelOrigin {
    fn context(&self, socket: BorrowedFd<'_>, _: SocketAddr, _: SocketAddr) -> io::Result<Option<ConnContext>> {
        Ok(self.0.of(socket)?.map(|connection| ConnContext {
            original: connection.original,
            destination: Identity(connection.destination),
            source: Identity(connection.source),
            source_workload: (connection.source_workload != 0).then_some(connection.source_workload),
            rule: (connection.rule != 0).then_some(RuleId(connection.rule)),
            has_two_queues: connection.has_two_queues,
        }))
    }

    fn has_two_queues(&self, socket: BorrowedFd<'_>) -> bool {
        // Asking twice is slow; asking once too few loses bytes.
        self.0.has_two_queues(socket).unwrap_or(true)
    }
}
