//! Label sets: Istio's names, filled from what a record knows, `unknown` where it does not.
//!
//! A key holds the record's own `Arc`s; it is hashed and compared by what its labels say (not by address and port, which
//! are no labels), and its texts are made only when somebody scrapes. So counting allocates nothing.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use weft_policy::ObjectRef;

use crate::record::{Destination, Flow, FlowProtocol, FlowVerdict, L7, Peer, Side};

/// Istio's word for what is not known.
pub(super) const UNKNOWN: &str = "unknown";

/// Stands for every number that its protocol does not know; printed as `other`. A server makes numbers up as it likes,
/// and each would be a series.
const OTHER: u16 = u16::MAX;

/// The last status that gRPC knows, UNAUTHENTICATED.
const LAST_GRPC_STATUS: u16 = 16;

/// The two ends of an edge, and who tells.
#[derive(Debug, Clone)]
pub(super) struct EdgeLabels {
    pub reporter: Side,
    pub source: Arc<Peer>,
    pub destination: Arc<Destination>,
    pub protocol: FlowProtocol,
    pub trust_domain: Arc<str>,
}

/// An edge and how its requests ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RequestLabels {
    pub edge: EdgeLabels,
    pub code: u16,
    pub grpc_status: Option<u16>,
    /// Refused by us, not answered by the workload.
    pub denied: bool,
}

/// Who was (or would be) refused what by which object.
#[derive(Debug, Clone)]
pub(super) struct DenyLabels {
    pub reporter: Side,
    pub source: Arc<Peer>,
    pub destination: Arc<Destination>,
    pub protocol: FlowProtocol,
    pub rule: Option<Arc<ObjectRef>>,
}

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, put together when printed.
struct Spiffe<'a> {
    trust_domain: &'a str,
    namespace: &'a str,
    account: Option<&'a str>,
}

/// A status, or [`OTHER`].
struct Number(u16);

/// Parts one after the other.
struct Joined<'a>(&'a [&'a str]);

// === impl EdgeLabels ===

impl EdgeLabels {
    /// Everything that tells two series apart.
    fn key(&self) -> impl Hash + Eq + '_ {
        let destination = &self.destination;
        (
            self.reporter,
            &*self.source,
            &destination.namespace,
            &destination.service,
            &destination.account,
            self.protocol,
        )
    }

    /// Istio's name of the reporter. A proxy that both sides share is what ambient calls a waypoint.
    fn reporter(&self) -> &'static str {
        match self.reporter {
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Device => "device",
            Side::Proxy => "waypoint",
        }
    }

    /// Nothing is encrypted yet. A source cannot tell (Istio says `unknown` there), and packets do not.
    fn security_policy(&self) -> &'static str {
        match self.reporter {
            Side::Source | Side::Device => UNKNOWN,
            Side::Destination | Side::Proxy => "none",
        }
    }
}

impl PartialEq for EdgeLabels {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.destination, &other.destination);
        self.reporter == other.reporter
            && self.protocol == other.protocol
            && self.source == other.source
            && (Arc::ptr_eq(a, b) || (&a.namespace, &a.service, &a.account) == (&b.namespace, &b.service, &b.account))
    }
}

impl Eq for EdgeLabels {}

impl Hash for EdgeLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl EncodeLabelSet for EdgeLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        let (source, destination) = (&*self.source, &*self.destination);
        let source_workload = source.service.as_deref().unwrap_or(UNKNOWN);
        let service = destination.service.as_deref();
        let service_name = service.unwrap_or(UNKNOWN);
        let namespace = destination.namespace.as_str();
        label(encoder, "reporter", &self.reporter())?;
        label(encoder, "source_workload", &source_workload)?;
        label(encoder, "source_workload_namespace", &source.namespace.as_str())?;
        let principal = Spiffe {
            trust_domain: &self.trust_domain,
            namespace: &source.namespace,
            account: Some(source.account.as_str()).filter(|account| *account != UNKNOWN),
        };
        label(encoder, "source_principal", &principal)?;
        match service {
            // What has no namespace is no service: the proxy, the overflow.
            Some(name) if namespace.is_empty() => label(encoder, "destination_service", &name)?,
            Some(name) => {
                label(
                    encoder,
                    "destination_service",
                    &Joined(&[name, ".", namespace, ".", weft_policy::DNS_SUFFIX]),
                )?;
            }
            None => label(encoder, "destination_service", &UNKNOWN)?,
        }
        label(encoder, "destination_service_name", &service_name)?;
        label(encoder, "destination_service_namespace", &namespace)?;
        let principal = Spiffe {
            trust_domain: &self.trust_domain,
            namespace,
            account: destination.account.as_deref().filter(|account| *account != UNKNOWN),
        };
        label(encoder, "destination_principal", &principal)?;
        label(encoder, "destination_workload", &service_name)?;
        label(encoder, "destination_workload_namespace", &namespace)?;
        label(encoder, "request_protocol", &self.protocol.as_str())?;
        label(encoder, "connection_security_policy", &self.security_policy())
    }
}

// === impl RequestLabels ===

impl RequestLabels {
    /// Whether they are those of a request, as far as can be told without comparing texts.
    pub fn are_surely_of(&self, flow: &Flow, l7: &L7) -> bool {
        let edge = &self.edge;
        Arc::ptr_eq(&edge.source, &flow.source)
            && Arc::ptr_eq(&edge.destination, &flow.destination)
            && (edge.reporter, edge.protocol) == (flow.reporter, flow.protocol)
            && self.code == Self::code(l7.status)
            && self.grpc_status == l7.grpc_status.map(Self::grpc_status)
            && self.denied == (flow.verdict == FlowVerdict::Deny)
    }

    /// The label of an HTTP status; 0: there was no answer.
    pub fn code(status: u16) -> u16 {
        match status {
            0 | 100..=599 => status,
            _ => OTHER,
        }
    }

    pub fn grpc_status(status: u16) -> u16 {
        match status {
            ..=LAST_GRPC_STATUS => status,
            _ => OTHER,
        }
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        self.edge.encode(encoder)?;
        label(encoder, "response_code", &Number(self.code))?;
        if let Some(status) = self.grpc_status {
            label(encoder, "grpc_response_status", &Number(status))?;
        }
        // Envoy's flag for a request that an authorisation filter refused.
        label(encoder, "response_flags", &if self.denied { "UAEX" } else { "-" })
    }
}

// === impl DenyLabels ===

impl DenyLabels {
    fn key(&self) -> impl Hash + Eq + '_ {
        let destination = &self.destination;
        (
            self.reporter,
            &*self.source,
            &destination.namespace,
            &destination.service,
            self.protocol,
            &self.rule,
        )
    }
}

impl PartialEq for DenyLabels {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.destination, &other.destination);
        self.reporter == other.reporter
            && self.protocol == other.protocol
            && self.source == other.source
            && (&a.namespace, &a.service) == (&b.namespace, &b.service)
            && self.rule == other.rule
    }
}

impl Eq for DenyLabels {}

impl Hash for DenyLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl EncodeLabelSet for DenyLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        let rule = self.rule.as_ref();
        label(encoder, "reporter", &self.reporter.as_str())?;
        label(encoder, "source_namespace", &self.source.namespace.as_str())?;
        label(
            encoder,
            "source_service",
            &self.source.service.as_deref().unwrap_or(UNKNOWN),
        )?;
        label(encoder, "source_account", &self.source.account.as_str())?;
        label(encoder, "destination_namespace", &self.destination.namespace.as_str())?;
        label(
            encoder,
            "destination_service",
            &self.destination.service.as_deref().unwrap_or(UNKNOWN),
        )?;
        label(encoder, "protocol", &self.protocol.as_str())?;
        label(encoder, "rule_kind", &rule.map_or(UNKNOWN, |rule| &*rule.kind))?;
        label(
            encoder,
            "rule_namespace",
            &rule.and_then(|rule| rule.namespace.as_deref()).unwrap_or(""),
        )?;
        label(encoder, "rule_name", &rule.map_or(UNKNOWN, |rule| rule.name.as_str()))
    }
}

// === values ===

fn label(encoder: &mut LabelSetEncoder, name: &str, value: &impl EncodeLabelValue) -> Result<(), fmt::Error> {
    use prometheus_client::encoding::EncodeLabelKey;

    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    EncodeLabelKey::encode(&name, &mut key)?;
    let mut text = key.encode_label_value()?;
    value.encode(&mut text)?;
    text.finish()
}

impl EncodeLabelValue for Spiffe<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        match self.account {
            Some(account) => {
                Joined(&["spiffe://", self.trust_domain, "/ns/", self.namespace, "/sa/", account]).encode(encoder)
            }
            None => UNKNOWN.encode(encoder),
        }
    }
}

impl EncodeLabelValue for Number {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        match self.0 {
            OTHER => "other".encode(encoder),
            known => u64::from(known).encode(encoder),
        }
    }
}

impl EncodeLabelValue for Joined<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|part| part.encode(encoder))
    }
}
