//! Properties: what a filter may ask about a stream and the proxy, under the names of Envoy's attributes.
//!
//! Numbers, times (nanoseconds) and durations (nanoseconds) are eight bytes, little-endian; a truth value is one byte.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderName, HeaderValue, Version, header};

use super::{
    headers::MapRef,
    host::{Host, Stream},
};
use crate::stream::{StreamFailure, TrafficDirection};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Segments of a path that are looked at.
const MAX_SEGMENTS: usize = 8;

/// First segments that are the proxy's, also where it knows nothing under them: nothing that a filter sets can be read there, or
/// it would pass for what the proxy says. Envoy's.
const ROOTS: &[&[u8]] = &[
    b"cluster_metadata",
    b"cluster_name",
    b"connection",
    b"connection_id",
    b"destination",
    b"filter_state",
    b"listener_direction",
    b"listener_metadata",
    b"metadata",
    b"node",
    b"plugin_name",
    b"plugin_root_id",
    b"plugin_vm_id",
    b"request",
    b"response",
    b"route_metadata",
    b"route_name",
    b"source",
    b"upstream",
    b"upstream_filter_state",
    b"upstream_host_metadata",
    b"xds",
];

/// What filters have set is there too, as in Envoy with [`SET_PREFIX`] before its name.
const FILTER_STATE: &[u8] = b"filter_state\0";

const SET_PREFIX: &[u8] = b"wasm.";

/// The value of the property at `path`, whose segments have zero bytes between them; `None`: there is none.
pub(super) fn get(host: &Host, path: &[u8]) -> Option<Vec<u8>> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    if let Some(name) = path.strip_prefix(FILTER_STATE) {
        return set_by_filters(host, name.strip_prefix(SET_PREFIX).unwrap_or(name));
    }
    let root = path.split(|byte| *byte == 0).next().unwrap_or_default();
    if !ROOTS.contains(&root) {
        return set_by_filters(host, path);
    }
    let mut segments = [""; MAX_SEGMENTS];
    let mut count = 0;
    for segment in path.split(|byte| *byte == 0) {
        *segments.get_mut(count)? = str::from_utf8(segment).ok()?;
        count += 1;
    }
    let path = &segments[..count];
    of_plugin(host, path).or_else(|| of_stream(host.stream()?, path))
}

fn set_by_filters(host: &Host, name: &[u8]) -> Option<Vec<u8>> {
    host.stream()?.info.state.get(name)
}

fn of_plugin(host: &Host, path: &[&str]) -> Option<Vec<u8>> {
    let config = &host.plugin.config;
    match path {
        ["plugin_name"] => text(&config.name),
        ["plugin_root_id"] => text(&config.root_id),
        ["plugin_vm_id"] => text(&config.vm_id),
        _ => None,
    }
}

fn of_stream(stream: &Stream, path: &[&str]) -> Option<Vec<u8>> {
    let info = &stream.info;
    match path {
        ["request", rest @ ..] if stream.has_request => of_request(stream, rest),
        ["response", rest @ ..] => of_response(stream, rest),
        ["connection", "id"] | ["connection_id"] => number(info.connection),
        // What comes encrypted passes as bytes; nobody has shown the proxy a certificate.
        ["connection", "mtls"] => truth(false),
        ["listener_direction"] => number(match info.direction {
            TrafficDirection::Inbound => 1,
            TrafficDirection::Outbound => 2,
        }),
        ["source", "address"] => text(&info.source_address.to_string()),
        ["source", "port"] => port(info.source_address),
        ["source", "namespace"] => text(&info.source.namespace),
        ["source", "account"] => text(&info.source.account),
        ["source", "service"] => text(info.source.service.as_deref()?),
        ["destination", "address"] => text(&info.original.to_string()),
        ["destination", "port"] => port(info.original),
        ["destination", "namespace"] => text(&info.destination.namespace),
        ["destination", "account"] => text(info.destination.account.as_deref()?),
        ["destination", "service"] => text(info.destination.service.as_deref()?),
        ["upstream", "address"] => {
            let upstream = SocketAddr::new(info.destination.address, info.destination.port);
            text(&upstream.to_string())
        }
        ["upstream", "port"] => number(u64::from(info.destination.port)),
        // As the mesh calls what was called.
        ["cluster_name"] => text(info.destination.service.as_deref()?),
        _ => None,
    }
}

fn of_request(stream: &Stream, path: &[&str]) -> Option<Vec<u8>> {
    let request = &stream.request;
    let header_text = |name: HeaderName| Some(request.headers.find(name.as_str().as_bytes())?.to_vec());
    match path {
        ["path"] => text(request.path()),
        ["url_path"] => text(request.uri.path()),
        ["query"] => text(request.uri.query().unwrap_or_default()),
        ["host"] => request.authority().map(<[u8]>::to_vec),
        ["scheme"] => text(request.scheme()),
        ["method"] => text(request.method.as_str()),
        ["headers", name] => value_of(MapRef::Request(request), name),
        ["referer"] => header_text(header::REFERER),
        ["useragent" | "user_agent"] => header_text(header::USER_AGENT),
        ["id"] => header_text(X_REQUEST_ID),
        ["protocol"] => text(match request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }),
        ["time"] => time(stream.info.began),
        ["duration"] => duration(stream.end?.duration),
        ["size" | "total_size"] => match stream.end {
            Some(end) => number(end.request_bytes),
            // Until the end: as the client announced it.
            None => number(
                str::from_utf8(&header_text(header::CONTENT_LENGTH)?)
                    .ok()?
                    .parse()
                    .ok()?,
            ),
        },
        _ => None,
    }
}

fn of_response(stream: &Stream, path: &[&str]) -> Option<Vec<u8>> {
    match path {
        ["code"] => match stream.end {
            Some(end) => number(u64::from(end.status)),
            None => number(u64::from(
                stream.has_response.then_some(stream.response.status.as_u16())?,
            )),
        },
        ["headers", name] if stream.has_response => value_of(MapRef::Response(&stream.response), name),
        ["trailers", name] => value_of(MapRef::Plain(stream.trailers[1].as_deref()?), name),
        ["grpc_status"] => {
            let trailers = stream.trailers[1].as_deref();
            let trailer = trailers.and_then(|trailers| trailers.get("grpc-status"));
            let status = trailer
                .map(HeaderValue::as_bytes)
                .or_else(|| stream.response.headers.find(b"grpc-status"))?;
            number(str::from_utf8(status).ok()?.parse().ok()?)
        }
        ["size" | "total_size"] => number(stream.end?.response_bytes),
        ["flags"] => flags(stream.end?.failure),
        _ => None,
    }
}

/// Envoy's response flags; `None`: it has none for that.
fn flags(failure: Option<StreamFailure>) -> Option<Vec<u8>> {
    let bit = match failure {
        None => return number(0),
        // UF, upstream connection failure.
        Some(StreamFailure::Connect) => 5,
        // UC, upstream connection termination.
        Some(StreamFailure::Upstream) => 6,
        // UPE, upstream protocol error.
        Some(StreamFailure::UpstreamProtocol) => 23,
        // DC, downstream connection termination.
        Some(StreamFailure::Downstream) => 14,
        // SI, stream idle timeout.
        Some(StreamFailure::Held) => 16,
        Some(StreamFailure::Other) => return None,
    };
    number(1 << bit)
}

/// As the map answers it.
fn value_of(map: MapRef<'_>, name: &str) -> Option<Vec<u8>> {
    map.get(name.as_bytes()).map(<[u8]>::to_vec)
}

fn text(text: &str) -> Option<Vec<u8>> {
    Some(text.as_bytes().to_vec())
}

fn truth(truth: bool) -> Option<Vec<u8>> {
    Some(vec![u8::from(truth)])
}

fn number(number: u64) -> Option<Vec<u8>> {
    Some(number.to_le_bytes().to_vec())
}

fn port(address: SocketAddr) -> Option<Vec<u8>> {
    number(u64::from(address.port()))
}

fn time(time: SystemTime) -> Option<Vec<u8>> {
    duration(time.duration_since(UNIX_EPOCH).ok()?)
}

fn duration(duration: Duration) -> Option<Vec<u8>> {
    number(u64::try_from(duration.as_nanos()).ok()?)
}
