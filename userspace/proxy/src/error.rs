//! What can go wrong when the proxy is started, and on its data path.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use weft_policy::{ObjectRef, ServiceName};

/// Starting and stopping the workers.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Somebody else listens there, or we may not.
    #[error("listen on port {port} ({address}): is another weft daemon or another proxy running there?")]
    Bind {
        port: u16,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Neither family could be bound.
    #[error("listen on {addresses:?}: this machine has none of these address families")]
    NoAddress { addresses: Vec<SocketAddr> },
    /// A worker's thread or its runtime.
    #[error("start proxy worker {worker}")]
    Worker {
        worker: usize,
        #[source]
        source: io::Error,
    },
}

/// Who caused a failure on the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultSide {
    /// The client.
    Downstream,
    /// The endpoint, or the way to it.
    Upstream,
    /// Configuration, or ourselves.
    Ours,
}

/// A request or an opaque connection that could not be carried out. A deny is no error: see `http::respond`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("no service has the virtual address {address} now")]
    ServiceUnknown { address: SocketAddr },
    #[error("service {}/{} has no port {port}/tcp", service.namespace, service.name)]
    PortUnknown { service: ServiceName, port: u16 },
    #[error("{split} has no backend: all its weights are zero")]
    NoBackend { split: Arc<ObjectRef> },
    #[error("{split}: backend {}/{} does not exist or lacks the port", backend.namespace, backend.name)]
    BackendMissing {
        split: Arc<ObjectRef>,
        backend: ServiceName,
    },
    #[error("service {}/{} port {port}: no endpoint is ready{}", service.namespace, service.name, waited_text(*.waited))]
    NoEndpoint {
        service: ServiceName,
        port: u16,
        waited: Option<Duration>,
    },
    #[error("connect to {address} ({tried} tried)")]
    Connect {
        address: SocketAddr,
        tried: usize,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not answer")]
    Upstream {
        address: SocketAddr,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{address} changed the protocol although nobody asked it to")]
    UnaskedUpgrade { address: SocketAddr },
    #[error("request refused: {why}")]
    Malformed { why: &'static str },
    #[error("transfer coding not supported: only chunked is")]
    TransferCoding,
    #[error("request body broke off or was malformed")]
    RequestBody,
    #[error("adapter {adapter} holds the request body back to see more of it, and it has more than {limit} bytes")]
    FilterBuffer { adapter: String, limit: usize },
    #[error("adapter {adapter} held it for more than {} s", limit.as_secs())]
    FilterPause { adapter: String, limit: Duration },
    #[error("an adapter changed the request into one that cannot be forwarded")]
    Changed {
        #[source]
        source: Box<DataError>,
    },
    #[error("CONNECT is not offered: the mesh needs no proxy settings, dial the destination itself")]
    ConnectMethod,
}

/// Somebody else's error, on its way to who is told of it.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error and what caused it, in one line: for clients and flow events, which no reporter prints the chain for.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

// === impl DataError ===

impl DataError {
    /// Who caused it.
    pub fn side(&self) -> FaultSide {
        match self {
            Self::Malformed { .. }
            | Self::TransferCoding
            | Self::RequestBody
            | Self::FilterBuffer { .. }
            | Self::ConnectMethod => FaultSide::Downstream,
            Self::Connect { .. } | Self::Upstream { .. } | Self::UnaskedUpgrade { .. } | Self::NoEndpoint { .. } => {
                FaultSide::Upstream
            }
            Self::ServiceUnknown { .. }
            | Self::PortUnknown { .. }
            | Self::NoBackend { .. }
            | Self::BackendMissing { .. }
            | Self::FilterPause { .. }
            | Self::Changed { .. } => FaultSide::Ours,
        }
    }

    /// Of a request that was not so when it came.
    pub(crate) fn of_adapters(self) -> Self {
        Self::Changed { source: Box::new(self) }
    }

    /// Whether the same request may succeed elsewhere or later without having been carried out.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::NoEndpoint { .. })
    }

    /// Short word for headers, metrics and flows.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ServiceUnknown { .. } => "service-unknown",
            Self::PortUnknown { .. } => "port-unknown",
            Self::NoBackend { .. } => "no-backend",
            Self::BackendMissing { .. } => "backend-missing",
            Self::NoEndpoint { .. } => "no-endpoint",
            Self::Connect { .. } => "connect-failed",
            Self::Upstream { .. } => "upstream-failed",
            Self::UnaskedUpgrade { .. } => "unasked-upgrade",
            Self::Malformed { .. } => "malformed",
            Self::TransferCoding => "transfer-coding",
            Self::RequestBody => "request-body",
            Self::FilterBuffer { .. } => "filter-buffer",
            Self::FilterPause { .. } => "filter-pause",
            Self::Changed { .. } => "adapter-changed",
            Self::ConnectMethod => "connect-method",
        }
    }
}

fn waited_text(waited: Option<Duration>) -> String {
    waited.map_or_else(String::new, |time| {
        format!(" (waited {} s for one to start)", time.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_error_is_one_line_that_names_the_port() {
        let error = ProxyError::Bind {
            port: 15001,
            address: ([127, 0, 0, 1], 15001).into(),
            source: io::Error::from(io::ErrorKind::AddrInUse),
        };
        let text = error.to_string();
        assert!(text.contains("port 15001") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn only_what_was_never_carried_out_is_retryable() {
        let service = ServiceName {
            namespace: "default".into(),
            name: "web".into(),
        };
        assert!(
            DataError::NoEndpoint {
                service,
                port: 80,
                waited: None
            }
            .retryable()
        );
        assert!(!DataError::RequestBody.retryable());
    }
}
