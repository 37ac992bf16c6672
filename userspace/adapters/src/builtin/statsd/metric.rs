//! What is counted, and the labels it is told with.

use std::borrow::Cow;

use serde::Deserialize;
use weft_policy::ObjectRef;

use super::config::Kind;
use crate::record::{Destination, EdgeDelta, Flow, FlowProtocol, FlowVerdict, L7, Peer, Side};

macro_rules! metrics {
    ($($metric:ident = $name:literal, $kind:ident, $labels:expr;)*) => {
        /// A series of numbers that can be sent.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        pub enum Metric {
            $(#[serde(rename = $name)] $metric,)*
        }

        impl Metric {
            pub const ALL: &[Self] = &[$(Self::$metric),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$metric => $name,)*
                }
            }

            pub fn kind(self) -> Kind {
                match self {
                    $(Self::$metric => Kind::$kind,)*
                }
            }

            /// Those it has, most telling last.
            pub fn labels(self) -> &'static [Label] {
                match self {
                    $(Self::$metric => $labels,)*
                }
            }
        }
    };
}

metrics! {
    Requests = "requests", Counter, REQUEST;
    RequestDuration = "request_duration", Distribution, REQUEST;
    RequestBytes = "request_bytes", Distribution, REQUEST;
    ResponseBytes = "response_bytes", Distribution, REQUEST;
    Denied = "denied", Counter, DENY;
    Connections = "connections", Gauge, EDGE;
    ConnectionsOpened = "connections_opened", Counter, EDGE;
    ConnectionsClosed = "connections_closed", Counter, EDGE;
    ConnectionsRefused = "connections_refused", Counter, EDGE;
    ConnectionsDenied = "connections_denied", Counter, EDGE;
    ConnectionsReset = "connections_reset", Counter, EDGE;
    SentBytes = "sent_bytes", Counter, EDGE;
    ReceivedBytes = "received_bytes", Counter, EDGE;
    Retransmits = "retransmits", Counter, EDGE;
    ConnectDuration = "connect_duration", Distribution, EDGE;
    Rtt = "rtt", Distribution, EDGE;
}

/// Requests: the proxy is the only one that reports them.
const REQUEST: &[Label] = &[
    Label::SourceNamespace,
    Label::SourceAccount,
    Label::DestinationNamespace,
    Label::DestinationService,
    Label::Protocol,
    Label::Method,
    Label::Status,
];

const DENY: &[Label] = &[
    Label::SourceNamespace,
    Label::SourceAccount,
    Label::DestinationNamespace,
    Label::DestinationService,
    Label::RuleKind,
    Label::RuleNamespace,
    Label::RuleName,
];

/// Both ends report an edge, and a device between them, each what it saw: without the first label it would count twice.
const EDGE: &[Label] = &[
    Label::Reporter,
    Label::SourceNamespace,
    Label::SourceAccount,
    Label::DestinationNamespace,
    Label::DestinationService,
    Label::Protocol,
];

/// What numbers are about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    reporter: Side,
    source: &'a Peer,
    destination: &'a Destination,
    protocol: FlowProtocol,
    verdict: FlowVerdict,
    l7: Option<&'a L7>,
    rule: Option<&'a ObjectRef>,
}

macro_rules! labels {
    ($($label:ident = $name:literal => |$subject:ident| $value:expr,)*) => {
        /// A word that tells series of a metric apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Label {
            $($label),*
        }

        impl Label {
            pub const NAMES: &[&str] = &[$($name),*];

            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$label),)*
                    _ => None,
                }
            }

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$label => $name,)*
                }
            }

            /// `None`: not known, or not of this kind of event.
            pub fn value<'a>(self, subject: &Subject<'a>) -> Option<Cow<'a, str>> {
                match self {
                    $(Self::$label => { let $subject = subject; $value })*
                }
            }
        }
    };
}

labels! {
    Reporter = "reporter" => |subject| Some(subject.reporter.as_str().into()),
    SourceNamespace = "source.namespace" => |subject| Some(subject.source.namespace.as_str().into()),
    SourceService = "source.service" => |subject| subject.source.service.as_deref().map(Into::into),
    SourceAccount = "source.account" => |subject| Some(subject.source.account.as_str().into()),
    DestinationNamespace = "destination.namespace" => |subject| Some(subject.destination.namespace.as_str().into()),
    DestinationService = "destination.service" => |subject| subject.destination.service.as_deref().map(Into::into),
    DestinationAccount = "destination.account" => |subject| subject.destination.account.as_deref().map(Into::into),
    DestinationPort = "destination.port" => |subject| Some(subject.destination.port.to_string().into()),
    Protocol = "protocol" => |subject| Some(subject.protocol.as_str().into()),
    Verdict = "verdict" => |subject| Some(subject.verdict.as_str().into()),
    Method = "method" => |subject| subject.l7.map(|l7| l7.known_method().unwrap_or("other").into()),
    Status = "status" => |subject| subject.l7.map(|l7| l7.status.to_string().into()),
    GrpcStatus = "grpc_status" => |subject| subject.l7.and_then(|l7| l7.grpc_status).map(|code| code.to_string().into()),
    RuleKind = "rule.kind" => |subject| subject.rule.map(|rule| (&*rule.kind).into()),
    RuleNamespace = "rule.namespace" => |subject| subject.rule.and_then(|rule| rule.namespace.as_deref()).map(Into::into),
    RuleName = "rule.name" => |subject| subject.rule.map(|rule| rule.name.as_str().into()),
}

// === impl Subject ===

impl<'a> Subject<'a> {
    pub fn of_flow(flow: &'a Flow) -> Self {
        Self {
            reporter: flow.reporter,
            source: &flow.source,
            destination: &flow.destination,
            protocol: flow.protocol,
            verdict: flow.verdict,
            l7: flow.l7.as_ref(),
            rule: flow.rule.as_deref(),
        }
    }

    pub fn of_edge(edge: &'a EdgeDelta) -> Self {
        Self {
            reporter: edge.reporter,
            source: &edge.source,
            destination: &edge.destination,
            protocol: edge.protocol,
            verdict: edge.verdict,
            l7: None,
            rule: None,
        }
    }
}
