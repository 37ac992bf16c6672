//! What the kernel and the proxy tell about traffic: one [`Flow`] an event, one [`EdgeDelta`] an edge and interval.
//!
//! A [`Flow`] serialises to the JSON of `weft flows -o json`, one object a line, which others script against: names
//! and meaning of its fields stay. It reads back what it wrote (the command line does), except that time is kept in
//! microseconds.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use weft_abi::LatencyHistogram;
use weft_policy::ObjectRef;

use crate::trace::Trace;

mod json;
#[cfg(test)]
pub(crate) mod samples;

pub(crate) use json::rfc3339::format as format_time;

/// One thing that adapters are told.
#[derive(Debug, Clone)]
pub enum Record {
    Flow(Arc<Flow>),
    /// Boxed: twenty times the size of the other.
    Edge(Box<EdgeDelta>),
    /// Everything that the kernel had counted up to then was told.
    EdgesRead(Instant),
}

/// One event of one connection or request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// When it ended (a request), or happened (everything else). RFC 3339 in UTC with microseconds.
    #[serde(with = "json::rfc3339")]
    pub time: SystemTime,
    pub event: FlowEvent,
    pub reporter: Side,
    pub verdict: FlowVerdict,
    /// Why, in words an operator understands.
    pub reason: Cow<'static, str>,
    /// The object that decided; `None`, in JSON `null`, where nothing had to decide.
    pub rule: Option<Arc<ObjectRef>>,
    pub source: Arc<Peer>,
    pub destination: Arc<Destination>,
    pub protocol: FlowProtocol,
    /// `None` for a connection of which nobody looked at requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l7: Option<L7>,
    /// Bytes from source to destination since the connection (or request) began.
    pub bytes_sent: u64,
    /// Bytes from destination to source since the connection (or request) began.
    pub bytes_received: u64,
    /// Smoothed round trip time of the connection, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// What the client's system call returned, as a positive number (1 is EPERM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowEvent {
    /// A connection was established.
    Open,
    /// A connection ended; the byte counts are final.
    Close,
    /// A connection was refused by policy.
    Deny,
    /// A request ended, or was refused.
    Request,
}

/// Who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The kernel, on the client's side.
    Source,
    /// The kernel, on the server's side.
    Destination,
    /// The kernel, at a device between them: packets, whose ends need not be on this machine.
    Device,
    /// The proxy between them.
    Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    Allow,
    Deny,
    /// Would have been denied; was let through and is reported. `rule` and `reason` say by what.
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    Tcp,
    Udp,
    /// Judged by the kernel, never carried.
    Dccp,
    /// Judged by the kernel, never carried.
    Sctp,
    Http,
    Grpc,
}

/// The calling side. `unknown` stands in the names of a client that is not captured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    pub namespace: String,
    pub service: Option<String>,
    pub account: String,
}

/// The called side.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    pub namespace: String,
    /// `None` for a destination outside the mesh.
    pub service: Option<String>,
    /// `None` until an endpoint is picked.
    pub account: Option<String>,
    /// What the connection was opened to, or the endpoint that was picked.
    pub address: IpAddr,
    pub port: u16,
}

/// What a request added to its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct L7 {
    /// See [`method_word`].
    pub method: Cow<'static, str>,
    /// Path as received, query included; see [`told`].
    pub path: String,
    /// HTTP status that the client got.
    pub status: u16,
    /// From the request's first byte to the response's last; microseconds in JSON.
    #[serde(rename = "duration_us", with = "json::micros")]
    pub duration: Duration,
    /// Body bytes.
    pub request_bytes: u64,
    /// Body bytes.
    pub response_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<Arc<str>>,
    /// The proxy's span of a trace; only while an adapter reports spans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<Trace>>,
}

/// What the kernel's counters of one edge (source, destination, protocol, verdict) grew by since they were last read, told
/// by one of its ends, or by a device between them: who adds up what several tell counts twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeDelta {
    pub reporter: Side,
    pub source: Arc<Peer>,
    pub destination: Arc<Destination>,
    /// HTTP: a proxy looks at its requests, and tells of each by a [`Flow`].
    pub protocol: FlowProtocol,
    pub verdict: FlowVerdict,
    /// It has grown by that since the kernel's tables were made, up to the first time that this daemon read them: an earlier one
    /// has told most of it. Totals take it; who sends differences does not.
    pub history: bool,
    /// Connections established, or flows of datagrams begun.
    pub opened: u64,
    /// Connections ended, in whatever way; where that is seen ([`Side::sees_ends`]).
    pub closed: u64,
    /// Connections that the destination did not accept.
    pub refused: u64,
    /// Connections, or flows of datagrams, that policy refused.
    pub denied: u64,
    /// Connections that ended by a reset, or by giving up.
    pub reset: u64,
    /// Payload bytes from source to destination; told by a device, those of whole frames.
    pub bytes_sent: u64,
    /// Payload bytes from destination to source; told by a device, those of whole frames.
    pub bytes_received: u64,
    /// Segments from source to destination, as this end counts them.
    pub segments_sent: u64,
    /// Segments from destination to source, as this end counts them.
    pub segments_received: u64,
    /// Segments that this end sent again.
    pub retransmits: u64,
    /// From the SYN to the established connection; told by the source.
    pub connect: LatencyHistogram,
    /// Smoothed round trip time as this end measures it: at least a sample a connection, at most one a second.
    pub rtt: LatencyHistogram,
}

// === impl Record ===

impl Record {
    /// A request that has a span.
    pub fn trace(&self) -> Option<(&Flow, &L7, &Trace)> {
        let Self::Flow(flow) = self else { return None };
        let l7 = flow.l7.as_ref()?;
        Some((flow, l7, l7.trace.as_deref()?))
    }
}

/// RFC 9110, 9.3, and RFC 5789.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
];

/// A method's word, which is only copied if clients make it up.
pub fn method_word(method: &str) -> Cow<'static, str> {
    match METHODS.iter().copied().find(|known| *known == method) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(told(method)),
    }
}

/// Bytes that are told of a path, and of whatever else a client may write as long as it likes: records are kept by the thousand.
/// URLs are rarely longer; what is cut off is missing in logs and spans.
pub const MAX_TOLD: usize = 2048;

/// As much of the text as is told of; an ellipsis stands for the rest.
pub fn told(text: &str) -> String {
    if text.len() <= MAX_TOLD {
        return text.to_owned();
    }
    let mut told = text[..text.floor_char_boundary(MAX_TOLD)].to_owned();
    told.push('…');
    told
}

// === impl L7 ===

impl L7 {
    /// The method, if it is one that HTTP defines: clients may write any word there, and names and series are made of it.
    pub fn known_method(&self) -> Option<&str> {
        METHODS.contains(&&*self.method).then_some(&*self.method)
    }

    /// The server failed: a status of 5xx, or one of gRPC other than OK.
    pub fn is_error(&self) -> bool {
        self.status >= 500 || self.grpc_status.is_some_and(|status| status != 0)
    }
}

// === impl Side ===

impl Side {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Device => "device",
            Self::Proxy => "proxy",
        }
    }

    /// Whether it is told where connections of this protocol end, so that it is known how many live. Flows of datagrams
    /// have no end, and a device does not know which packet is a connection's last.
    pub fn sees_ends(self, protocol: FlowProtocol) -> bool {
        self != Self::Device && protocol.is_tcp()
    }
}

// === impl FlowEvent ===

impl FlowEvent {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Deny => "deny",
            Self::Request => "request",
        }
    }
}

// === impl FlowVerdict ===

impl FlowVerdict {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

// === impl FlowProtocol ===

impl FlowProtocol {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dccp => "dccp",
            Self::Sctp => "sctp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// TCP, or what is spoken over it.
    pub fn is_tcp(self) -> bool {
        match self {
            Self::Tcp | Self::Http | Self::Grpc => true,
            Self::Udp | Self::Dccp | Self::Sctp => false,
        }
    }
}

#[cfg(test)]
mod tests;
