//! Calls to services: HTTP and gRPC.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Uri, header};
use prost::Message;
use tokio::sync::mpsc;
use tracing::debug;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        callout::{CALL, Call, Kind, Order},
        grpc::{self, MAX_MESSAGE, MAX_WAITING},
        headers,
        host::Host,
        kept::bytes_of,
        memory::{Fail, all, answer, give, slice, write_u32},
        pairs,
        worker::MAX_CALLS,
    },
    ENV,
};

/// Longest time that a call may take; also that of one without a limit.
const MAX_TIME: Duration = Duration::from_secs(60);

/// Longest body of a call in bytes.
const MAX_BODY: u32 = 1 << 20;

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_http_call",
        |mut caller: Caller<'_, Host>,
         upstream: u32,
         upstream_length: u32,
         head: u32,
         head_length: u32,
         body: u32,
         body_length: u32,
         trailers: u32,
         trailers_length: u32,
         timeout: u32,
         token: u32| {
            let upstream = (upstream, upstream_length);
            let (head, body, trailers) = ((head, head_length), (body, body_length), (trailers, trailers_length));
            answer(http_call(&mut caller, upstream, head, body, trailers, timeout, token))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_grpc_call",
        |mut caller: Caller<'_, Host>,
         upstream: u32,
         upstream_length: u32,
         service: u32,
         service_length: u32,
         method: u32,
         method_length: u32,
         metadata: u32,
         metadata_length: u32,
         message: u32,
         message_length: u32,
         timeout: u32,
         token: u32| {
            let call = GrpcCall {
                upstream: (upstream, upstream_length),
                service: (service, service_length),
                method: (method, method_length),
                metadata: (metadata, metadata_length),
            };
            let once = Some(((message, message_length), timeout));
            answer(grpc_call(&mut caller, &call, once, token).map_err(as_of_grpc))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_grpc_stream",
        |mut caller: Caller<'_, Host>,
         upstream: u32,
         upstream_length: u32,
         service: u32,
         service_length: u32,
         method: u32,
         method_length: u32,
         metadata: u32,
         metadata_length: u32,
         token: u32| {
            let call = GrpcCall {
                upstream: (upstream, upstream_length),
                service: (service, service_length),
                method: (method, method_length),
                metadata: (metadata, metadata_length),
            };
            answer(grpc_call(&mut caller, &call, None, token).map_err(as_of_grpc))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_grpc_send",
        |mut caller: Caller<'_, Host>, token: u32, message: u32, length: u32, end: u32| {
            answer(grpc_send(&mut caller, token, (message, length), end != 0))
        },
    )?;
    linker.func_wrap(ENV, "proxy_grpc_cancel", |mut caller: Caller<'_, Host>, token: u32| {
        answer(grpc_cancel(caller.data_mut(), token).map_err(Fail::from))
    })?;
    linker.func_wrap(ENV, "proxy_grpc_close", |mut caller: Caller<'_, Host>, token: u32| {
        answer(grpc_close(caller.data_mut(), token).map_err(Fail::from))
    })?;
    linker.func_wrap(
        ENV,
        "proxy_get_status",
        |mut caller: Caller<'_, Host>, code: u32, at: u32, length: u32| {
            answer(get_status(&mut caller, code, at, length))
        },
    )?;
    Ok(())
}

/// A place in the module's memory, and how many bytes from there.
type Span = (u32, u32);

/// `envoy.config.core.v3.GrpcService`.
#[derive(Clone, PartialEq, Message)]
struct GrpcService {
    #[prost(message, optional, tag = "1")]
    envoy_grpc: Option<EnvoyGrpc>,
}

#[derive(Clone, PartialEq, Message)]
struct EnvoyGrpc {
    #[prost(string, tag = "1")]
    cluster_name: String,
}

/// What both kinds of gRPC calls say.
struct GrpcCall {
    upstream: Span,
    service: Span,
    method: Span,
    metadata: Span,
}

fn http_call(
    caller: &mut Caller<'_, Host>,
    upstream: Span,
    head: Span,
    body: Span,
    trailers: Span,
    timeout: u32,
    place: u32,
) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let upstream = callable(host, slice(memory, upstream.0, upstream.1)?)?;
    let request = request(slice(memory, head.0, head.1)?)?;
    if body.1 > MAX_BODY {
        return Err(Status::BadArgument.into());
    }
    let kind = Kind::Http {
        body: Bytes::copy_from_slice(slice(memory, body.0, body.1)?),
        trailers: map(slice(memory, trailers.0, trailers.1)?)?,
        limit: limit(timeout),
    };
    let token = order(host, upstream, request, kind, Call::Once)?;
    write_u32(caller, place, token)
}

/// `once`: the message and the limit in milliseconds of a call; `None`: a stream.
fn grpc_call(
    caller: &mut Caller<'_, Host>,
    call: &GrpcCall,
    once: Option<(Span, u32)>,
    place: u32,
) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let upstream = slice(memory, call.upstream.0, call.upstream.1)?;
    let cluster = cluster_name(upstream);
    let upstream = callable(host, cluster.as_ref().map_or(upstream, String::as_bytes))?;
    let text = |span: Span| {
        let bytes = slice(memory, span.0, span.1)?;
        str::from_utf8(bytes).map_err(|_| Status::BadArgument)
    };
    let path = format!("/{}/{}", text(call.service)?, text(call.method)?);
    let metadata = map(slice(memory, call.metadata.0, call.metadata.1)?)?;
    let request = grpc_request(&upstream, &path, metadata)?;
    let (kind, call) = match once {
        Some((message, timeout)) => {
            let message = slice(memory, message.0, message.1)?;
            if message.len() > MAX_MESSAGE {
                return Err(Status::BadArgument.into());
            }
            let kind = Kind::GrpcCall {
                message: grpc::framed(message),
                limit: limit(timeout),
            };
            (kind, Call::Once)
        }
        None => {
            let (sender, messages) = mpsc::channel(MAX_WAITING);
            (Kind::GrpcStream { messages }, Call::Stream(Some(sender)))
        }
    };
    let token = order(host, upstream, request, kind, call)?;
    write_u32(caller, place, token)
}

/// What a call that cannot be made answers, as in Envoy: the Rust SDK ends the module on a bad argument here.
fn as_of_grpc(fail: Fail) -> Fail {
    match fail {
        Fail::Status(Status::BadArgument) => Fail::Status(Status::ParseFailure),
        fail => fail,
    }
}

/// The name in a [`GrpcService`]; `None`: `upstream` is a name itself.
fn cluster_name(upstream: &[u8]) -> Option<String> {
    let service = GrpcService::decode(upstream).ok()?;
    Some(service.envoy_grpc?.cluster_name)
}

fn grpc_send(caller: &mut Caller<'_, Host>, token: u32, message: Span, end: bool) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let message = slice(memory, message.0, message.1)?;
    if message.len() > MAX_MESSAGE {
        return Err(Status::BadArgument.into());
    }
    let open = match host.calls.get_mut(&token) {
        Some(Call::Stream(open)) => open,
        Some(Call::Once) => return Err(Status::BadArgument.into()),
        None => return Err(Status::NotFound.into()),
    };
    let sender = open.as_ref().ok_or(Status::NotFound)?;
    let kept = host.kept.hold(message.len()).map_err(|_| Status::BadArgument)?;
    let sent = sender.try_send((grpc::framed(message), kept));
    sent.map_err(|_| Status::BadArgument)?;
    if end {
        *open = None;
    }
    Ok(())
}

/// Ends a call or a stream: nothing more of it is told, not even what came and waits.
fn grpc_cancel(host: &mut Host, token: u32) -> Result<(), Status> {
    let untold = host.stream_mut().is_some_and(|stream| {
        let waiting = stream.events.len();
        stream.events.retain(|event| event.token() != token);
        stream.events.len() < waiting
    });
    if host.calls.remove(&token).is_none() {
        // It may be over without the module having been told.
        return untold.then_some(()).ok_or(Status::NotFound);
    }
    match host.outbox.iter().position(|order| order.token == token) {
        Some(at) => drop(host.outbox.remove(at)),
        None => host.cancelled.push(token),
    }
    Ok(())
}

/// Ends this side of a stream; of a call, as in Envoy, all.
fn grpc_close(host: &mut Host, token: u32) -> Result<(), Status> {
    match host.calls.get_mut(&token) {
        Some(Call::Stream(open)) => *open = None,
        Some(Call::Once) => grpc_cancel(host, token)?,
        None => return Err(Status::NotFound),
    }
    Ok(())
}

fn get_status(caller: &mut Caller<'_, Host>, code: u32, at: u32, length: u32) -> Result<(), Fail> {
    let answer = &caller.data().answer;
    let (status, text) = (answer.grpc_status, answer.grpc_text.clone());
    write_u32(caller, code, status)?;
    give(caller, text.as_bytes(), at, length)
}

/// Milliseconds of the ABI as a time.
fn limit(milliseconds: u32) -> Duration {
    match milliseconds {
        0 => MAX_TIME,
        milliseconds => Duration::from_millis(u64::from(milliseconds)).min(MAX_TIME),
    }
}

/// The upstream's name, if there is one that this plugin may call.
fn callable(host: &Host, name: &[u8]) -> Result<String, Status> {
    let plugin = &*host.plugin.config.name;
    let Ok(name) = str::from_utf8(name) else {
        debug!(plugin, "not called: the upstream's name is no text");
        return Err(Status::BadArgument);
    };
    if !host.plugin.config.may_call.allow(name) {
        host.counters.refused_calls.add(1);
        debug!(
            plugin,
            upstream = name,
            "not called: not among those that the plugin may call"
        );
        return Err(Status::BadArgument);
    }
    if !host.plugin.upstreams.knows(name) {
        debug!(plugin, upstream = name, "not called: no such service");
        return Err(Status::BadArgument);
    }
    Ok(name.to_owned())
}

/// Has a call made when the callback is over; says its number.
fn order(host: &mut Host, upstream: String, request: Request<()>, kind: Kind, call: Call) -> Result<u32, Status> {
    if host.stream().is_some_and(|stream| stream.settled) {
        return Err(Status::BadArgument);
    }
    if host.calls.len() >= MAX_CALLS {
        return Err(Status::InternalFailure);
    }
    let kept = host.kept.hold(CALL + bytes_of(request.headers()) + kind.bytes());
    let kept = kept.map_err(|_| Status::InternalFailure)?;
    host.counters.call_outs.add(1);
    let token = host.next_token();
    host.calls.insert(token, call);
    host.outbox.push(Order {
        context: host.effective,
        token,
        upstream,
        request,
        kind,
        kept,
    });
    Ok(token)
}

/// A request from encoded pairs, which must say `:method`, `:path` and `:authority`.
fn request(encoded: &[u8]) -> Result<Request<()>, Status> {
    let (mut method, mut path, mut scheme, mut authority) = (None, None, None, None);
    let mut rest = Vec::new();
    for (name, value) in pairs::decode(encoded).ok_or(Status::BadArgument)? {
        match name {
            b":method" => method = Some(value),
            b":path" => path = Some(value),
            b":scheme" => scheme = Some(value),
            b":authority" | b"host" => authority = Some(value),
            _ => rest.push((name, value)),
        }
    }
    let (Some(method), Some(path), Some(authority)) = (method, path, authority) else {
        return Err(Status::BadArgument);
    };
    let mut headers = HeaderMap::new();
    if headers::MapMut::Plain(&mut headers).set_all(&rest) > 0 {
        return Err(Status::BadArgument);
    }
    let method = Method::from_bytes(method).map_err(|_| Status::BadArgument)?;
    build(method, scheme.unwrap_or(b"http"), authority, path, headers)
}

/// Whoever is asked must see all that the module says, or is not asked: SDKs take that for an answer.
fn map(encoded: &[u8]) -> Result<HeaderMap, Status> {
    match headers::plain(encoded)? {
        (headers, 0) => Ok(headers),
        _ => Err(Status::BadArgument),
    }
}

fn grpc_request(upstream: &str, path: &str, metadata: HeaderMap) -> Result<Request<()>, Status> {
    // Any name will do as the authority; what cannot be one is said to be nobody's.
    let authority = http::uri::Authority::try_from(upstream);
    let authority = authority.map_or_else(|_| "upstream".to_owned(), |authority| authority.to_string());
    let mut request = build(Method::POST, b"http", authority.as_bytes(), path.as_bytes(), metadata)?;
    let headers = request.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
    Ok(request)
}

fn build(
    method: Method,
    scheme: &[u8],
    authority: &[u8],
    path: &[u8],
    mut headers: HeaderMap,
) -> Result<Request<()>, Status> {
    /// The proxy frames the body.
    const CONNECTION_ONLY: [HeaderName; 4] = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ];
    for name in CONNECTION_ONLY {
        headers.remove(name);
    }
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.build().map_err(|_| Status::BadArgument)?;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_of_grpc_is_a_name_or_envoys_message() {
        let envoy_grpc = Some(EnvoyGrpc {
            cluster_name: "authz".into(),
        });
        let message = GrpcService { envoy_grpc }.encode_to_vec();
        assert_eq!(cluster_name(&message).as_deref(), Some("authz"));
        for name in [&b""[..], b"authz", b"outbound|80||authz.shop", &message[1..]] {
            assert_eq!(cluster_name(name), None, "{name:?}");
        }
    }
}
