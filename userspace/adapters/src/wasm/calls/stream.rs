//! What a module does with a stream: go on, end it, answer in the service's place.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
};
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::{AbiVersion, Status, StreamKind},
        headers,
        host::{Host, Stream},
        memory::{Fail, all, answer, slice},
    },
    ENV,
};

/// Longest body of an answer in bytes.
const MAX_BODY: u32 = 1 << 20;

pub(super) fn define(linker: &mut Linker<Host>, abi: AbiVersion) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_continue_stream",
        |mut caller: Caller<'_, Host>, kind: u32| answer(continue_stream(caller.data_mut(), kind).map_err(Fail::from)),
    )?;
    linker.func_wrap(ENV, "proxy_close_stream", |mut caller: Caller<'_, Host>, kind: u32| {
        answer(close_stream(caller.data_mut(), kind).map_err(Fail::from))
    })?;
    linker.func_wrap(
        ENV,
        "proxy_send_local_response",
        |mut caller: Caller<'_, Host>,
         code: u32,
         details: u32,
         details_length: u32,
         body: u32,
         body_length: u32,
         headers: u32,
         headers_length: u32,
         grpc_status: i32| {
            // What it was is told by the access log, not by the module's words for it.
            let _ = (details, details_length);
            let (body, headers) = ((body, body_length), (headers, headers_length));
            answer(respond(&mut caller, code, body, headers, grpc_status))
        },
    )?;
    if abi == AbiVersion::V0_1_0 {
        for (name, side) in [("proxy_continue_request", 0), ("proxy_continue_response", 1)] {
            linker.func_wrap(ENV, name, move |mut caller: Caller<'_, Host>| {
                if let Some(stream) = caller.data_mut().stream_mut() {
                    stream.resume(side);
                }
                Status::Ok as u32
            })?;
        }
        // Filters run after routing: there is nothing to choose anew.
        linker.func_wrap(ENV, "proxy_clear_route_cache", |_: Caller<'_, Host>| Status::Ok as u32)?;
    }
    Ok(())
}

fn continue_stream(host: &mut Host, kind: u32) -> Result<(), Status> {
    let kind = StreamKind::from_abi(kind)?;
    let stream = host.stream_mut().ok_or(Status::BadArgument)?;
    stream.resume(match kind {
        StreamKind::Request | StreamKind::Downstream => 0,
        StreamKind::Response | StreamKind::Upstream => 1,
    });
    Ok(())
}

fn close_stream(host: &mut Host, kind: u32) -> Result<(), Status> {
    StreamKind::from_abi(kind)?;
    let stream = host.stream_mut().ok_or(Status::BadArgument)?;
    stream.close();
    Ok(())
}

fn respond(
    caller: &mut Caller<'_, Host>,
    code: u32,
    body: (u32, u32),
    extra: (u32, u32),
    grpc_status: i32,
) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code));
    let code = code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(Status::BadArgument)?;
    if body.1 > MAX_BODY {
        return Err(Status::BadArgument.into());
    }
    let body = slice(memory, body.0, body.1)?;
    let (mut extra, unfit) = headers::plain(slice(memory, extra.0, extra.1)?)?;
    host.counters.unfit_headers.add(unfit);
    // The proxy frames the body.
    extra.remove(CONTENT_LENGTH);
    extra.remove(TRANSFER_ENCODING);
    let stream = host.stream_mut().ok_or(Status::BadArgument)?;
    if stream.settled {
        return Ok(());
    }
    let mut response = http(code, body, extra);
    if let (true, Some(status)) = (is_grpc(stream), given(code, grpc_status)) {
        let name = HeaderName::from_static("grpc-status");
        response.headers_mut().insert(name, HeaderValue::from(status));
    }
    stream.respond(response);
    host.counters.local_responses.add(1);
    Ok(())
}

fn is_grpc(stream: &Stream) -> bool {
    let kind = stream.request.headers.find(b"content-type");
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The status that a module says for gRPC clients; `None`: the proxy makes it of the HTTP status, as it makes all of an answer
/// that such a client reads.
fn given(code: StatusCode, grpc_status: i32) -> Option<u32> {
    let given = u32::try_from(grpc_status).ok();
    given.or_else(|| (code == StatusCode::OK).then_some(0))
}

fn http(code: StatusCode, body: &[u8], headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(body));
    *response.status_mut() = code;
    *response.headers_mut() = headers;
    if !body.is_empty() && !response.headers().contains_key(CONTENT_TYPE) {
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}
