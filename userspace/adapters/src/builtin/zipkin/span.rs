//! A span in the JSON of Zipkin's API, version 2 (<https://zipkin.io/zipkin-api/#/default/post_spans>).

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use serde::Serialize;

use crate::{
    record::{Flow, FlowProtocol, FlowVerdict, L7},
    trace::{SpanId, Trace, TraceId},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span<'a> {
    trace_id: TraceId,
    id: SpanId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<SpanId>,
    /// The proxy calls for its client.
    kind: &'static str,
    name: String,
    /// When it began, in microseconds since 1970.
    timestamp: u128,
    /// In microseconds, at least one.
    duration: u128,
    local_endpoint: Endpoint<'a>,
    remote_endpoint: Endpoint<'a>,
    tags: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

// === impl Span ===

impl<'a> Span<'a> {
    pub fn new(flow: &'a Flow, l7: &'a L7, trace: &Trace) -> Self {
        let ended = flow.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let address = flow.destination.address;
        Self {
            trace_id: trace.trace_id,
            id: trace.span_id,
            parent_id: trace.parent_id,
            kind: "CLIENT",
            name: match flow.protocol {
                FlowProtocol::Grpc => l7.path.trim_start_matches('/').to_lowercase(),
                _ => l7.method.to_lowercase(),
            },
            timestamp: ended.saturating_sub(l7.duration).as_micros(),
            duration: l7.duration.as_micros().max(1),
            local_endpoint: Endpoint {
                service_name: Some(flow.source.service.as_deref().unwrap_or(&flow.source.account)),
                ipv4: None,
                ipv6: None,
                port: None,
            },
            remote_endpoint: Endpoint {
                service_name: flow.destination.service.as_deref(),
                ipv4: matches!(address, IpAddr::V4(_)).then(|| address.to_string()),
                ipv6: matches!(address, IpAddr::V6(_)).then(|| address.to_string()),
                port: Some(flow.destination.port),
            },
            tags: tags(flow, l7),
        }
    }
}

fn tags(flow: &Flow, l7: &L7) -> BTreeMap<&'static str, String> {
    let (source, destination) = (&flow.source, &flow.destination);
    let mut tags = BTreeMap::from([
        ("http.method", l7.method.to_string()),
        ("http.path", l7.path.split('?').next().unwrap_or_default().to_owned()),
        ("http.status_code", l7.status.to_string()),
        ("http.request.size", l7.request_bytes.to_string()),
        ("http.response.size", l7.response_bytes.to_string()),
        ("source.principal", format!("{}/{}", source.namespace, source.account)),
        ("destination.namespace", destination.namespace.clone()),
    ]);
    if let Some(status) = l7.grpc_status {
        tags.insert("grpc.status_code", status.to_string());
    }
    if let Some(agent) = &l7.user_agent {
        tags.insert("http.user_agent", agent.to_string());
    }
    if flow.verdict != FlowVerdict::Allow {
        tags.insert("weft.verdict", flow.verdict.as_str().to_owned());
        if let Some(rule) = &flow.rule {
            tags.insert("weft.rule", rule.to_string());
        }
    }
    if l7.is_error() || flow.verdict == FlowVerdict::Deny {
        tags.insert("error", flow.reason.to_string());
    }
    tags
}
