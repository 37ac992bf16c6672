//! Connections to endpoints: opened here, kept for the next request here, closed here. Each worker has its own pool.

mod body;
mod connect;
mod driven;
mod error;
mod home;
mod http1;
mod http2;
mod plain;
mod pool;

pub(crate) use body::UpstreamBody;
pub(crate) use connect::{Upstream, connect};
pub(crate) use error::SendError;
pub(crate) use plain::{Home, HomeRef, Plain};
pub(crate) use pool::{Lease, Pool, Sending, Wire};
