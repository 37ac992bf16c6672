//! Which requests go the short way, and their heads as they go to the endpoint.
//!
//! Only what can be read in one way: whatever is unusual, long-winded or wrong is left to hyper and [`super::super::head`],
//! which know what to make of it.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::Bytes;
use http::{HeaderValue, Method, Uri, Version, request::Parts, uri::PathAndQuery};
use httparse::{Header, Status};
use weft_adapters::{HeaderLines, HeaderSection, Headers, RequestHead, attribute::RequestView, told};
use weft_policy::HttpRequestView;

use super::lines;
use crate::{
    error::DataError,
    http::{agents::Agents, exchange::Asked, head::is_plain_host, view},
    limits::{MAX_HEADER_BYTES, MAX_HEADERS},
};

/// A head that goes the short way, borrowed from what was read.
pub(super) struct Head<'l, 'b> {
    pub method: Method,
    /// In origin form.
    target: &'b str,
    headers: Cow<'l, [Header<'b>]>,
    user_agent: Option<&'b [u8]>,
    /// Bytes it had.
    pub length: usize,
}

/// Where [`Head::read`] puts header lines.
pub(super) type Lines<'b> = [MaybeUninit<Header<'b>>; MAX_HEADERS];

/// A head that is no map's to hold.
pub(super) const UNFIT: DataError = DataError::Malformed {
    why: "a header or the target has characters that may not be there",
};

/// What a header means for the way of a request.
enum Line {
    /// Goes on as it is.
    Passes,
    /// Is between the client and us.
    Ours,
    Host,
    Cookie,
    UserAgent,
    /// Takes more than this.
    Unusual,
}

// === impl Head ===

impl<'l, 'b> Head<'l, 'b> {
    /// `None`: it is not whole, or hyper is to look at it.
    pub fn read(bytes: &'b [u8], lines: &'l mut Lines<'b>) -> Option<Self> {
        let mut parsed = httparse::Request::new(&mut []);
        let Ok(Status::Complete(length)) = parsed.parse_with_uninit_headers(bytes, lines) else {
            return None;
        };
        let method = match parsed.method? {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "OPTIONS" => Method::OPTIONS,
            "DELETE" => Method::DELETE,
            _ => return None,
        };
        let target = parsed.path.filter(|target| is_plain_target(target))?;
        if parsed.version != Some(1) || length > MAX_HEADER_BYTES {
            return None;
        }
        let headers: &'l [Header<'b>] = parsed.headers;
        let (mut hosts, mut cookies, mut user_agent) = (0, 0, None);
        for header in headers {
            match Line::of(header) {
                Line::Passes | Line::Ours => {}
                Line::Host if is_plain_host(header.value) => hosts += 1,
                Line::Cookie => cookies += 1,
                Line::UserAgent => user_agent = user_agent.or(Some(header.value)),
                Line::Host | Line::Unusual => return None,
            }
        }
        let head = Self {
            method,
            target,
            headers: Cow::Borrowed(headers),
            user_agent,
            length,
        };
        (hosts == 1 && cookies <= 1 && !view::has_two_readings(head.path())).then_some(head)
    }

    /// The same for whoever waits with it: it has its own lines, no more than there are.
    pub fn read_to_keep(bytes: &'b [u8]) -> Option<Head<'b, 'b>> {
        let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let Head {
            method,
            target,
            headers,
            user_agent,
            length,
        } = Head::read(bytes, &mut lines)?;
        Some(Head {
            method,
            target,
            headers: Cow::Owned(headers.into_owned()),
            user_agent,
            length,
        })
    }

    /// What is told of it at its end.
    pub fn asked(&self, agents: &Agents) -> Asked {
        Asked {
            method: self.method.clone(),
            path: told(self.target),
            user_agent: self.user_agent.map(|value| agents.of(value)),
            grpc: false,
            is_http1: true,
            trace: None,
        }
    }

    /// As checks look at it.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            path: self.target,
            host: self.get("host").unwrap_or_default(),
            headers: self,
        }
    }

    /// The same for those who want to change it. `text`: what it was read in; `copy`: the same bytes, to share.
    ///
    /// # Errors
    /// What a map of headers does not hold; what hyper reads, it does.
    pub fn parts(&self, text: &[u8], copy: &Bytes) -> Result<Parts, DataError> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.uri = self.uri(text, copy)?;
        parts.version = Version::HTTP_11;
        parts.headers = lines::map(self.headers.iter(), text, copy).map_err(|_| UNFIT)?;
        Ok(parts)
    }

    /// The same with its headers in a text, where most of those who may change it leave them.
    ///
    /// # Errors
    /// As [`Head::parts`].
    pub fn shown(&self, text: &[u8], copy: &Bytes) -> Result<RequestHead, DataError> {
        let headers = self.headers.iter();
        let pairs = headers.map(|header| (header.name.as_bytes(), header.value));
        Ok(RequestHead {
            method: self.method.clone(),
            uri: self.uri(text, copy)?,
            version: Version::HTTP_11,
            headers: HeaderSection::Text(HeaderLines::of(pairs, self.headers.len(), self.length)),
        })
    }

    fn uri(&self, text: &[u8], copy: &Bytes) -> Result<Uri, DataError> {
        let target = match lines::shared(self.target.as_bytes(), text, copy) {
            Some(target) => PathAndQuery::from_maybe_shared(target),
            None => PathAndQuery::try_from(self.target),
        };
        Ok(Uri::from(target.map_err(|_| UNFIT)?))
    }

    /// The head that goes to the endpoint, as [`super::super::head::prepare_request`] would make it; names stay as they were
    /// written.
    pub fn write(&self, forwarded_for: Option<&HeaderValue>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        for header in &*self.headers {
            if !matches!(Line::of(header), Line::Ours) {
                lines::write(out, header.name.as_bytes(), header.value);
            }
        }
        write_end(forwarded_for, out);
    }
}

impl Headers for Head<'_, '_> {
    fn get(&self, name: &str) -> Option<&str> {
        let header = self
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for header in &*self.headers {
            visit(header.name, header.value);
        }
    }
}

impl HttpRequestView for Head<'_, '_> {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or(self.target)
    }

    fn each_value(&self, name: &str, visit: &mut dyn FnMut(Option<&str>)) {
        let of_name = |header: &&Header<'_>| header.name.eq_ignore_ascii_case(name);
        for header in self.headers.iter().filter(of_name) {
            visit(std::str::from_utf8(header.value).ok());
        }
    }
}

// === impl Line ===

impl Line {
    fn of(header: &Header<'_>) -> Self {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            2 if is("te") => Self::Unusual,
            4 if is("host") => Self::Host,
            6 if is("cookie") => Self::Cookie,
            6 if is("expect") => Self::Unusual,
            7 if is("upgrade") || is("trailer") => Self::Unusual,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("keep-alive") => Self::Ours,
            10 if is("connection") => {
                if header.value.eq_ignore_ascii_case(b"keep-alive") {
                    Self::Ours
                } else {
                    Self::Unusual
                }
            }
            12 if is("content-type") && header.value.len() >= 16 => {
                // gRPC, maybe: its errors are told in another way.
                if header.value[..16].eq_ignore_ascii_case(b"application/grpc") {
                    Self::Unusual
                } else {
                    Self::Passes
                }
            }
            14 if is("content-length") || is("http2-settings") => Self::Unusual,
            16 if is("proxy-connection") => Self::Ours,
            17 if is("transfer-encoding") => Self::Unusual,
            _ => Self::Passes,
        }
    }
}

/// The head in `text`, which [`Head::read`] has read before.
///
/// # Errors
/// As [`Head::parts`].
pub(super) fn parts(text: &[u8]) -> Result<Parts, DataError> {
    let text = Bytes::copy_from_slice(text);
    Head::read_to_keep(&text).ok_or(UNFIT)?.parts(&text, &text)
}

/// The same of what [`Head::write`] has made of it.
///
/// # Errors
/// As [`Head::parts`].
pub(super) fn parts_of_written(written: &[u8], forwarded_for: Option<&HeaderValue>) -> Result<Parts, DataError> {
    let mut end = Vec::new();
    write_end(forwarded_for, &mut end);
    let lines = written.strip_suffix(&*end).ok_or(UNFIT)?;
    parts(&[lines, b"\r\n"].concat())
}

/// The head that goes to the endpoint, of one that adapters have seen, where all of it can be told from its lines alone: as
/// [`super::super::head::prepare_request`] would make it. `false`, and nothing is written: that is to look at it.
pub(super) fn write_shown(head: &RequestHead, forwarded_for: Option<&HeaderValue>, out: &mut Vec<u8>) -> bool {
    let HeaderSection::Text(lines) = &head.headers else {
        return false;
    };
    if head.method == Method::CONNECT || head.uri.authority().is_some() {
        return false;
    }
    let begin = out.len();
    write_request_line(&head.method, &head.uri, out);
    let hosts = lines.iter().try_fold(0, |hosts, (name, value)| {
        let name = str::from_utf8(name).ok()?;
        let hosts = match Line::of(&Header { name, value }) {
            Line::Ours => return Some(hosts),
            Line::Host if is_plain_host(value) => hosts + 1,
            Line::Host | Line::Unusual => return None,
            Line::Passes | Line::Cookie | Line::UserAgent => hosts,
        };
        lines::write(out, name.as_bytes(), value);
        Some(hosts)
    });
    if hosts != Some(1) {
        out.truncate(begin);
        return false;
    }
    write_end(forwarded_for, out);
    true
}

/// What is behind the client's own lines.
fn write_end(forwarded_for: Option<&HeaderValue>, out: &mut Vec<u8>) {
    if let Some(client) = forwarded_for {
        lines::write(out, b"x-forwarded-for", client.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// A head that [`super::super::head::prepare_request`] made.
pub(super) fn write_parts(parts: &Parts, out: &mut Vec<u8>) {
    write_request_line(&parts.method, &parts.uri, out);
    for (name, value) in &parts.headers {
        lines::write(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_request_line(method: &Method, uri: &Uri, out: &mut Vec<u8>) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !target.starts_with(['/', '*']) {
        // A query alone.
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// A path, maybe with a query, of bytes that every party takes for the same (RFC 3986 `pchar`, `/` and `?`).
fn is_plain_target(target: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(&byte);
    target.starts_with('/') && target.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head as it goes on; `None`: hyper is to look.
    fn forwarded(wire: &str) -> Option<String> {
        let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let head = Head::read(wire.as_bytes(), &mut lines)?;
        let mut out = Vec::new();
        head.write(Some(&HeaderValue::from_static("10.0.0.1")), &mut out);
        Some(String::from_utf8(out).unwrap())
    }

    fn get(headers: &str) -> String {
        format!("GET /a?b=c HTTP/1.1\r\nHost: web:80\r\n{headers}\r\n")
    }

    #[test]
    fn what_is_ours_stays_and_all_else_goes_on_as_it_was() {
        let wire = get("Connection: keep-alive\r\nKeep-Alive: 5\r\nX-Forwarded-For: 1.2.3.4\r\nAccept:  */* \r\n");
        assert_eq!(
            forwarded(&wire).unwrap(),
            "GET /a?b=c HTTP/1.1\r\nHost: web:80\r\nX-Forwarded-For: 1.2.3.4\r\nAccept: */*\r\nx-forwarded-for: 10.0.0.1\r\n\r\n"
        );
    }

    #[test]
    fn what_was_written_tells_what_came() {
        let wire = get("Connection: keep-alive\r\nX-Forwarded-For: 1.2.3.4\r\nAccept: */*\r\n");
        let client = HeaderValue::from_static("10.0.0.1");
        let told = parts_of_written(forwarded(&wire).unwrap().as_bytes(), Some(&client)).unwrap();
        let mut came = parts(wire.as_bytes()).unwrap();
        came.headers.remove("connection");
        assert_eq!((&told.method, &told.uri), (&came.method, &came.uri));
        assert_eq!(told.headers, came.headers);
    }

    #[test]
    fn what_could_be_read_in_two_ways_or_takes_more_is_left_to_hyper() {
        assert!(forwarded(&get("")).is_some());
        for headers in [
            "content-length: 0\r\n",
            "Content-Length: 3\r\n",
            "transfer-encoding: chunked\r\n",
            "te: trailers\r\n",
            "trailer: x\r\n",
            "expect: 100-continue\r\n",
            "upgrade: websocket\r\n",
            "connection: close\r\n",
            "connection: x-secret\r\n",
            "connection: keep-alive, x-secret\r\n",
            "http2-settings: x\r\n",
            "content-type: application/grpc+proto\r\n",
            "host: other\r\n",
            "cookie: a=1\r\ncookie: b=2\r\n",
            "content-length : 3\r\n",
            "x-a: 1\r\n content-length: 3\r\n",
            "x-a: \0\r\n",
        ] {
            assert_eq!(forwarded(&get(headers)), None, "{headers:?}");
        }
        for first in [
            "POST / HTTP/1.1",
            "CONNECT web:80 HTTP/1.1",
            "GET http://web/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET / HTTP/1.0",
            "GET /a#b HTTP/1.1",
            "GET /a\\b HTTP/1.1",
            "GET /a/../b HTTP/1.1",
            "GET /%61 HTTP/1.1",
            "GET //a HTTP/1.1",
            "get / HTTP/1.1",
        ] {
            assert_eq!(forwarded(&format!("{first}\r\nhost: web\r\n\r\n")), None, "{first}");
        }
        for host in ["", "a b", "user@web", "web:", "web:http", "a:1:2", "[::1]", "web/x"] {
            assert_eq!(
                forwarded(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")),
                None,
                "{host}"
            );
        }
        assert_eq!(forwarded("GET / HTTP/1.1\r\n\r\n"), None);
        let whole = get("");
        for cut in 0..whole.len() {
            assert_eq!(forwarded(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn parts_are_the_same_of_a_buffer_and_of_a_copy_and_lie_in_the_copy() {
        let wire = get("X-Team: red\r\nx-team: blue\r\n") + "GET /next";
        let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let head = Head::read(wire.as_bytes(), &mut lines).unwrap();
        let text = &wire.as_bytes()[..head.length];
        let copy = Bytes::copy_from_slice(text);
        let (made, again) = (head.parts(text, &copy).unwrap(), parts(text).unwrap());
        assert_eq!((made.uri.path(), made.uri.query()), ("/a", Some("b=c")));
        assert_eq!(
            made.headers.get_all("x-team").iter().collect::<Vec<_>>(),
            ["red", "blue"]
        );
        assert_eq!(
            (made.method, made.uri, &made.headers),
            (again.method, again.uri, &again.headers)
        );
        let value = made.headers["host"].as_bytes().as_ptr();
        assert!(copy.as_ptr_range().contains(&value));
    }

    #[test]
    fn what_adapters_were_shown_and_left_plain_goes_on_as_what_nobody_looks_at() {
        let wire = get(
            "Connection: keep-alive\r\nKeep-Alive: 5\r\nX-Forwarded-For: 1.2.3.4\r\nAccept:  */* \r\nCookie: a=1\r\n",
        );
        let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let head = Head::read(wire.as_bytes(), &mut lines).unwrap();
        let copy = Bytes::copy_from_slice(wire.as_bytes());
        let shown = head.shown(wire.as_bytes(), &copy).unwrap();
        assert_eq!(
            shown.headers.find(b"keep-alive"),
            Some(&b"5"[..]),
            "adapters see it all"
        );
        let mut out = Vec::new();
        assert!(write_shown(
            &shown,
            Some(&HeaderValue::from_static("10.0.0.1")),
            &mut out
        ));
        let written = String::from_utf8(out).unwrap();
        assert!(
            written.starts_with("GET /a?b=c HTTP/1.1\r\nhost: web:80\r\n"),
            "{written}"
        );
        assert_eq!(written.to_lowercase(), forwarded(&wire).unwrap().to_lowercase());
    }

    #[test]
    fn what_adapters_have_made_unusual_is_not_told_from_its_lines() {
        let shown = |name: &[u8], value: &[u8]| RequestHead {
            headers: HeaderSection::Text(HeaderLines::of(
                [(&b"host"[..], &b"web"[..]), (name, value)].into_iter(),
                2,
                0,
            )),
            ..RequestHead::default()
        };
        let usual = shown(b"x-a", b"1");
        let connect = RequestHead {
            method: Method::CONNECT,
            ..usual.clone()
        };
        let absolute = RequestHead {
            uri: Uri::from_static("http://other/"),
            ..usual.clone()
        };
        let map = RequestHead::take(&mut usual.clone().into_parts());
        let mut out = b"before".to_vec();
        for head in [
            shown(b"host", b"other"),
            shown(b"te", b"trailers"),
            shown(b"expect", b"100-continue"),
            shown(b"upgrade", b"websocket"),
            shown(b"http2-settings", b"x"),
            shown(b"content-length", b"3"),
            shown(b"transfer-encoding", b"chunked"),
            shown(b"connection", b"x-a"),
            shown(b"content-type", b"application/grpc"),
            connect,
            absolute,
            map,
        ] {
            assert!(!write_shown(&head, None, &mut out), "{head:?}");
            assert_eq!(out, b"before");
        }
        assert!(write_shown(&usual, None, &mut out));
        assert_eq!(out, b"beforeGET / HTTP/1.1\r\nhost: web\r\nx-a: 1\r\n\r\n");
    }

    #[test]
    fn a_target_is_written_with_the_slash_that_it_may_lack() {
        for (target, expect) in [
            ("/a?b=c", "/a?b=c"),
            ("*", "*"),
            ("http://web", "/"),
            ("http://web?b", "/?b"),
        ] {
            let (parts, ()) = http::Request::options(target).body(()).unwrap().into_parts();
            let mut out = Vec::new();
            write_parts(&parts, &mut out);
            let expect = format!("OPTIONS {expect} HTTP/1.1\r\n\r\n");
            assert_eq!(String::from_utf8(out).unwrap(), expect);
        }
    }

    #[test]
    fn rules_see_path_method_and_headers() {
        let wire = get("X-Team: red\r\nx-team: blue\r\n");
        let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let head = Head::read(wire.as_bytes(), &mut lines).unwrap();
        let mut teams = Vec::new();
        head.each_value("x-team", &mut |team| teams.push(team.map(str::to_owned)));
        assert_eq!((head.method(), head.path()), ("GET", "/a"));
        assert_eq!(teams, [Some("red".to_owned()), Some("blue".to_owned())]);
        assert_eq!(head.asked(&Agents::default()).path, "/a?b=c");
        assert_eq!(head.length, wire.len());
    }
}
