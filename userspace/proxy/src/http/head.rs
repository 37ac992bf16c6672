//! Message heads: what is refused, and what changes on the way through.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::lean::{self, AnswerError};
use crate::{error::DataError, upstream::Wire};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Refuses what hyper and h2 let through although two parties could read it in two ways.
///
/// They refuse: differing `Content-Length`s, a `Transfer-Encoding` in HTTP/1.0 or one that does not end in
/// `chunked`, control characters in names and values, connection headers in HTTP/2. A request with both
/// `Transfer-Encoding` and `Content-Length` it reads by the former, drops the latter and closes the connection after
/// it, as RFC 9112 6.3 has it: what goes upstream has one length only.
///
/// # Errors
/// What is wrong, for a 400, 405 or 501.
pub(crate) fn check(head: &request::Parts) -> Result<(), DataError> {
    if head.method == Method::CONNECT {
        return Err(DataError::ConnectMethod);
    }
    //= RFC 9112, 6.1
    //# A server that receives a request message with a transfer coding it does not understand SHOULD respond with 501
    if !is_chunked_at_most(&head.headers) {
        return Err(DataError::TransferCoding);
    }
    check_host(head)
}

//= RFC 9112, 3.2
//# A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message that lacks a Host header
//# field and to any request message that contains more than one Host header field line or a Host header field with an
//# invalid field value.
fn check_host(head: &request::Parts) -> Result<(), DataError> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(DataError::Malformed {
            why: "more than one Host header",
        });
    }
    match host {
        None if head.version == Version::HTTP_11 => Err(DataError::Malformed { why: "no Host header" }),
        None => Ok(()),
        Some(host) if !is_host(host) => Err(DataError::Malformed {
            why: "the Host header is no host",
        }),
        //= RFC 9113, 8.3.1
        //# A server SHOULD treat a request as malformed if it contains a Host header field that identifies an entity
        //# that differs from the entity in the ":authority" pseudo-header field.
        Some(host) if head.version == Version::HTTP_2 => match head.uri.authority() {
            Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
                Err(DataError::Malformed {
                    why: "Host and :authority differ",
                })
            }
            _ => Ok(()),
        },
        Some(_) => Ok(()),
    }
}

//= RFC 9113, 8.2.3
//# If there are multiple Cookie header fields after decompression, these MUST be concatenated into a single octet string
//# using the two-octet delimiter of 0x3b, 0x20 [...] before being passed into a non-HTTP/2 context
/// Rules and adapters read one `Cookie`, and a cookie that they look for may be in another.
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    let mut secret = first.is_sensitive();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
        secret |= cookie.is_sensitive();
    }
    if let Ok(mut joined) = HeaderValue::from_bytes(&joined) {
        joined.set_sensitive(secret);
        headers.insert(COOKIE, joined);
    }
}

/// After adapters: a `Content-Length` that is no single number would leave the length of the body to the reader, and one of
/// a body that is `empty` would make the endpoint take the next request for it, as hyper sends it as it stands.
pub(crate) fn check_length(headers: &mut HeaderMap, empty: bool) {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let fits = |length: &HeaderValue| {
        let digits = length.as_bytes();
        let fits = |digit: &u8| if empty { *digit == b'0' } else { digit.is_ascii_digit() };
        !digits.is_empty() && digits.iter().all(fits)
    };
    if lengths
        .next()
        .is_some_and(|length| !fits(length) || lengths.next().is_some())
    {
        headers.remove(CONTENT_LENGTH);
    }
}

fn is_host(host: &HeaderValue) -> bool {
    // Most are plain, and to be told so costs no memory.
    host.is_empty() || is_plain_host(host.as_bytes()) || authority(host).is_some()
}

/// A name or an IPv4 address, maybe with a port.
pub(crate) fn is_plain_host(host: &[u8]) -> bool {
    let mut parts = host.splitn(2, |byte| *byte == b':');
    let name = parts.next().unwrap_or_default();
    let port = parts.next();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let is_port = |port: &[u8]| (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    !name.is_empty() && name.iter().all(plain) && port.is_none_or(is_port)
}

/// Makes one of what may be said twice, before rules and adapters look: they must see what the endpoint gets.
///
/// # Errors
/// The target names a user.
pub(crate) fn settle(head: &mut request::Parts) -> Result<(), DataError> {
    if let Some(authority) = head.uri.authority() {
        let host = host_value(authority)?;
        head.headers.insert(HOST, host);
    }
    take_off_listed(&mut head.headers);
    join_cookies(&mut head.headers);
    Ok(())
}

/// Removes what the client's `Connection` names, as [`strip_hop_by_hop`] would later: by then adapters may have put something
/// of that name there, or judged by what the endpoint does not get. What is needed of `Connection` stays.
fn take_off_listed(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named = listed(headers);
    let kept = ["close", "keep-alive", "te", "upgrade"];
    let kept: Vec<&str> = kept.into_iter().filter(|option| lists(headers, option)).collect();
    match HeaderValue::from_str(&kept.join(", ")) {
        Ok(connection) if !kept.is_empty() => _ = headers.insert(CONNECTION, connection),
        _ => _ = headers.remove(CONNECTION),
    }
    for name in named.iter().filter(|name| **name != TE && **name != UPGRADE) {
        headers.remove(name);
    }
}

/// Whether a message has no transfer coding but one `chunked`, which a client of ours has undone.
pub(crate) fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(chunked) && codings.next().is_none()
}

fn authority(host: &HeaderValue) -> Option<Authority> {
    Authority::try_from(host.as_bytes())
        .ok()
        .filter(|authority| !authority.as_str().contains('@'))
}

/// The protocol that an HTTP/1.1 request asks to change to.
///
/// HTTP/2 is not offered that way: it would put a whole connection behind the decision on one request.
pub(crate) fn upgrade(head: &request::Parts) -> Option<HeaderValue> {
    if head.version != Version::HTTP_11 || !lists(&head.headers, "upgrade") {
        return None;
    }
    let mut upgrades = head.headers.get_all(UPGRADE).iter();
    let upgrade = upgrades.next().filter(|_| upgrades.next().is_none())?;
    let changes_http = upgrade
        .as_bytes()
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|word| {
            word.len() >= 3 && (word[..3].eq_ignore_ascii_case(b"h2c") || word[..3].eq_ignore_ascii_case(b"htt"))
        });
    (!changes_http).then(|| upgrade.clone())
}

/// Whether the client waits for `100 Continue` before it sends the body.
pub(crate) fn expects_continue(head: &request::Parts) -> bool {
    head.version == Version::HTTP_11
        && head
            .headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A client as `X-Forwarded-For` has it.
pub(crate) fn forwarded_for(client: SocketAddr) -> Option<HeaderValue> {
    HeaderValue::from_str(&client.ip().to_canonical().to_string()).ok()
}

/// Makes the client's head the one that goes to the endpoint.
///
/// There is no `Via`: it would change what endpoints do (nginx: no compression), and applications are to meet each
/// other unchanged. `X-Forwarded-For` is told, because most endpoints do not see the client's address.
///
/// # Errors
/// A target that cannot be written on the other side.
pub(crate) fn prepare_request(
    head: &mut request::Parts,
    wire: Wire,
    original: SocketAddr,
    forwarded_for: Option<&HeaderValue>,
    upgrade: Option<HeaderValue>,
) -> Result<(), DataError> {
    match wire {
        Wire::Http1 => origin_form(head, original)?,
        Wire::Http2 => absolute_form(head, original)?,
    }
    let trailers = lists_in(&head.headers, &TE, "trailers");
    strip_hop_by_hop(&mut head.headers);
    head.headers.remove(HTTP2_SETTINGS);
    let mut connection = Vec::new();
    if trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        connection.push("te");
    }
    if let Some(protocol) = upgrade {
        head.headers.insert(UPGRADE, protocol);
        connection.push("upgrade");
    }
    if wire == Wire::Http1
        && !connection.is_empty()
        && let Ok(connection) = HeaderValue::from_str(&connection.join(", "))
    {
        head.headers.insert(CONNECTION, connection);
    }
    if let Some(client) = forwarded_for {
        head.headers.append(X_FORWARDED_FOR, client.clone());
    }
    Ok(())
}

/// The head that [`prepare_request`] made this one of, without what is the connection's own: for whoever picks and judges again.
pub(crate) fn received(head: &request::Parts, forwarded_for: Option<&HeaderValue>) -> request::Parts {
    let mut head = copy(head);
    if forwarded_for.is_some() {
        let told: Vec<HeaderValue> = head.headers.get_all(X_FORWARDED_FOR).iter().cloned().collect();
        head.headers.remove(X_FORWARDED_FOR);
        // The last is ours.
        for client in told.iter().rev().skip(1).rev() {
            head.headers.append(X_FORWARDED_FOR, client.clone());
        }
    }
    if let Some(host) = head.uri.authority().and_then(|authority| host_value(authority).ok()) {
        head.headers.insert(HOST, host);
    }
    head
}

/// Of a request with a body for HTTP/1: hyper chunks one of unknown length by itself, but takes GET and HEAD to have none.
pub(crate) fn chunk_unsized(headers: &mut HeaderMap) {
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Makes the head of a filter's call one that goes to `address`. `empty`: it has no body.
///
/// # Errors
/// As [`prepare_request`].
pub(crate) fn prepare_call(
    head: &mut request::Parts,
    wire: Wire,
    address: SocketAddr,
    empty: bool,
) -> Result<(), DataError> {
    let trailers = lists_in(&head.headers, &TE, "trailers");
    match wire {
        Wire::Http1 => origin_form(head, address)?,
        Wire::Http2 => absolute_form(head, address)?,
    }
    strip_hop_by_hop(&mut head.headers);
    check_length(&mut head.headers, empty);
    if trailers && wire == Wire::Http2 {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Leaves an answer at most one length; the short way does so too (`lean/response.rs`).
///
/// # Errors
/// It says none that can be told.
//= RFC 9112, 6.3
//# If a message is received with both a Transfer-Encoding and a Content-Length header field, the Transfer-Encoding
//# overrides the Content-Length.
pub(crate) fn settle_length(headers: &mut HeaderMap) -> Result<(), AnswerError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(());
    };
    let length = lean::number(first.as_bytes()).ok_or(AnswerError::Length)?;
    let mut others = 0;
    for other in lengths {
        if lean::number(other.as_bytes()) != Some(length) {
            return Err(AnswerError::Length);
        }
        others += 1;
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    } else if others > 0 {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// Makes the endpoint's head the one that goes to the client.
pub(crate) fn prepare_response(head: &mut response::Parts, upgraded: bool) {
    let protocol = upgraded.then(|| head.headers.get(UPGRADE).cloned()).flatten();
    strip_hop_by_hop(&mut head.headers);
    if upgraded {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    head.version = Version::default();
}

/// The same request once more, without its body: for a connection that was closed under it.
pub(crate) fn copy(head: &request::Parts) -> request::Parts {
    let (mut copy, ()) = http::Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy
}

//= RFC 9112, 3.2.2
//# When a proxy receives a request with an absolute-form of request-target, the proxy MUST ignore the received Host
//# header field (if any) and instead replace it with the host information of the request-target.
fn origin_form(head: &mut request::Parts, original: SocketAddr) -> Result<(), DataError> {
    let given = match head.uri.authority() {
        Some(authority) => Some(host_value(authority)?),
        None if head.headers.contains_key(HOST) => None,
        // HTTP/1.0 had no Host, what we send is HTTP/1.1.
        None => HeaderValue::from_str(&original.to_string()).ok(),
    };
    if let Some(host) = given {
        head.headers.insert(HOST, host);
    }
    let target = head
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(target);
    head.version = Version::HTTP_11;
    Ok(())
}

fn absolute_form(head: &mut request::Parts, original: SocketAddr) -> Result<(), DataError> {
    const WHY: DataError = DataError::Malformed {
        why: "the request's target is no URI",
    };
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    if uri.authority.is_none() {
        let named = head.headers.get(HOST).and_then(authority);
        uri.authority = Some(match named {
            Some(authority) => authority,
            None => Authority::try_from(original.to_string()).map_err(|_| WHY)?,
        });
    }
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(uri).map_err(|_| WHY)?;
    head.headers.remove(HOST);
    head.version = Version::HTTP_2;
    Ok(())
}

fn host_value(authority: &Authority) -> Result<HeaderValue, DataError> {
    HeaderValue::from_str(authority.as_str())
        .ok()
        .filter(|_| !authority.as_str().contains('@'))
        .ok_or(DataError::Malformed {
            why: "the request's target names a user",
        })
}

//= RFC 9110, 7.6.1
//# Intermediaries MUST parse a received Connection header field before a message is forwarded and, for each
//# connection-option in this field, remove any header or trailer field(s) from the message with the same name
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in listed(headers) {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// What `Connection` names, and may.
fn listed(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok())
        // Not its to name: without them the message would mean something else.
        .filter(|name| name != HOST && name != CONTENT_LENGTH)
        .collect()
}

/// Whether `Connection` names `option`.
fn lists(headers: &HeaderMap, option: &str) -> bool {
    lists_in(headers, &CONNECTION, option)
}

fn lists_in(headers: &HeaderMap, name: &HeaderName, option: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
mod tests;
