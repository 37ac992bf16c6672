//! Requests as spans, by the semantic conventions of HTTP and RPC clients.

use std::time::{Duration, SystemTime};

use super::proto::{CLIENT, ERROR, KeyValue, Span, Status};
use crate::{
    record::{Flow, FlowProtocol, FlowVerdict, L7},
    trace::Trace,
};

pub(super) fn span(flow: &Flow, l7: &L7, trace: &Trace) -> Span {
    let ended = flow.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let failed = l7.is_error() || flow.verdict == FlowVerdict::Deny;
    Span {
        trace_id: trace.trace_id.0.to_be_bytes().to_vec(),
        span_id: trace.span_id.0.to_be_bytes().to_vec(),
        parent_span_id: trace
            .parent_id
            .map(|parent| parent.0.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: match flow.protocol {
            FlowProtocol::Grpc => l7.path.trim_start_matches('/').to_owned(),
            _ => l7.known_method().unwrap_or("HTTP").to_owned(),
        },
        kind: CLIENT,
        start_time_unix_nano: nanos(ended.saturating_sub(l7.duration)),
        end_time_unix_nano: nanos(ended),
        attributes: attributes(flow, l7),
        status: failed.then(|| Status {
            message: flow.reason.to_string(),
            code: ERROR,
        }),
        // Sampled, as the trace's flags say it.
        flags: 1,
    }
}

/// The method as an attribute: of few values.
pub(super) fn method(l7: &L7) -> &str {
    l7.known_method().unwrap_or("_OTHER")
}

pub(super) fn nanos(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attributes(flow: &Flow, l7: &L7) -> Vec<KeyValue> {
    let (source, destination) = (&flow.source, &flow.destination);
    let (path, query) = match l7.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (l7.path.as_str(), None),
    };
    let address = destination.address.to_string();
    let mut attributes = vec![
        KeyValue::text("http.request.method", method(l7)),
        KeyValue::int("http.response.status_code", l7.status),
        KeyValue::text("url.path", path),
        KeyValue::text("server.address", destination.service.as_deref().unwrap_or(&address)),
        KeyValue::int("server.port", destination.port),
        KeyValue::text("network.peer.address", address.as_str()),
        KeyValue::int("network.peer.port", destination.port),
        KeyValue::int("http.request.body.size", l7.request_bytes),
        KeyValue::int("http.response.body.size", l7.response_bytes),
        KeyValue::text("weft.source.namespace", source.namespace.as_str()),
        KeyValue::text("weft.source.account", source.account.as_str()),
        KeyValue::text("weft.destination.namespace", destination.namespace.as_str()),
    ];
    if l7.known_method().is_none() {
        attributes.push(KeyValue::text("http.request.method_original", &*l7.method));
    }
    if let Some(service) = &source.service {
        attributes.push(KeyValue::text("weft.source.service", service.as_str()));
    }
    if let Some(query) = query {
        attributes.push(KeyValue::text("url.query", query));
    }
    if let Some(agent) = &l7.user_agent {
        attributes.push(KeyValue::text("user_agent.original", &**agent));
    }
    if let Some(status) = l7.grpc_status {
        attributes.push(KeyValue::int("rpc.grpc.status_code", status));
    }
    if flow.verdict != FlowVerdict::Allow {
        attributes.push(KeyValue::text("weft.verdict", flow.verdict.as_str()));
        if let Some(rule) = &flow.rule {
            attributes.push(KeyValue::text("weft.rule", rule.to_string()));
        }
    }
    attributes
}
