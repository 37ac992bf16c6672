//! What can go wrong when the server starts.

use std::{io, net::SocketAddr};

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("listen on {address} for DNS over {transport}; is another daemon running in this network namespace?")]
    Bind {
        address: SocketAddr,
        transport: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("use a DNS socket that another process opened")]
    Socket {
        #[source]
        source: io::Error,
    },
}
