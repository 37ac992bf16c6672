//! Connections to endpoints: opened here, kept for the next request here, closed here. Each worker has its own pool.

mod answer;
mod body;
mod connect;
mod driven;
mod exec;
mod http1;
mod http2;
mod plain;
mod pool;

pub(crate) use answer::{AnswerBody, SendError};
pub(crate) use body::UpstreamBody;
pub(crate) use connect::{Upstream, connect};
pub(crate) use exec::LocalExec;
pub(crate) use plain::{Home, HomeRef, Plain};
pub(crate) use pool::{Lease, Pool, Sending, Wire};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
