//! An endpoint's answer: its head as it goes to the client, and how its body's end is told.

use std::{io, mem::MaybeUninit};

use http::{Method, StatusCode};
use httparse::{Header, ParserConfig, Status};
use weft_adapters::{HeaderLines, HeaderSection, ResponseHead};

use super::{chunks::Framing, lines};
use crate::limits::MAX_HEADERS;

/// Longest name that a map of headers holds; of what else it does not hold, nothing passes for a header here either.
const MAX_NAME: usize = u16::MAX as usize;

/// Why an answer cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("its answer is no HTTP/1: {0}")]
    Malformed(#[from] httparse::Error),
    #[error("its answer has a Content-Length that is no number, or several")]
    Length,
    #[error("its answer has a transfer coding that is not chunked alone")]
    TransferCoding,
    #[error("its answer has a chunk that is none")]
    Chunk,
    #[error("it changed the protocol")]
    Upgrade,
    #[error("its answer's headers are too long")]
    TooLong,
    #[error("the connection ended before the answer did")]
    Cut,
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

/// A head that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    pub status: StatusCode,
    /// As it comes from the endpoint.
    pub framing: Framing,
    /// The connection can be used for another request, once the body's end was read.
    pub keep: bool,
    /// Bytes it had.
    pub length: usize,
}

/// The head of an answer that is no interim one, borrowed from what was read.
pub(super) struct Head<'b> {
    /// Bytes it had.
    size: usize,
    status: StatusCode,
    reason: &'b str,
    headers: &'b [Header<'b>],
    says: Says,
    /// No body follows, whatever it says.
    without_body: bool,
}

/// What an answer says of itself.
#[derive(Clone, Copy)]
struct Says {
    /// How its length is told, if it has a body.
    sized: Framing,
    /// Its `Connection` names more than `keep-alive`, so maybe others of its headers.
    names: bool,
}

/// What a header means for the way of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Passes,
    /// Is between the endpoint and us, or said anew.
    Ours,
    Connection,
    Length,
    TransferEncoding,
}

/// Reads a head in `bytes`; if it is not an interim one, `take` takes of it what it needs. `None`: it is not whole.
///
/// # Errors
/// It cannot be passed on.
pub(super) fn read<T>(
    bytes: &[u8],
    asked: &Method,
    take: &mut impl FnMut(&Head<'_>) -> Result<T, AnswerError>,
) -> Result<Option<(Passed, Option<T>)>, AnswerError> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let read = ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines);
    let (length, code, version) = match (read?, parsed.code, parsed.version) {
        (Status::Complete(length), Some(code), Some(version)) => (length, code, version),
        _ => return Ok(None),
    };
    let status = StatusCode::from_u16(code).map_err(|_| AnswerError::Malformed(httparse::Error::Status))?;
    let mut passed = Passed {
        status,
        framing: Framing::Empty,
        keep: version == 1,
        length,
    };
    if status.is_informational() {
        return Ok(Some((passed, None)));
    }
    let says = passed.look(parsed.headers, version)?;
    let without_body = *asked == Method::HEAD || is_bodiless(status);
    if !without_body {
        passed.framing = says.sized;
    }
    passed.keep &= passed.framing != Framing::Close;
    let head = Head {
        size: length,
        status,
        reason: parsed.reason.unwrap_or_default(),
        headers: parsed.headers,
        says,
        without_body,
    };
    let taken = take(&head)?;
    Ok(Some((passed, Some(taken))))
}

// === impl Head ===

impl Head<'_> {
    /// Appends what goes to the client. `close`: its connection ends after it.
    pub fn write(&self, close: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
        for header in self.passing() {
            lines::write(out, header.name.as_bytes(), header.value);
        }
        match self.length() {
            Some(length) => lines::write_length(out, length),
            None if !self.without_body => lines::write(out, b"transfer-encoding", b"chunked"),
            None => {}
        }
        if close {
            lines::write(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The same for those who may want to change it. Of how the body's end is told, only its length is there, first of all.
    ///
    /// # Errors
    /// What a map of headers does not hold.
    pub fn shown(&self) -> Result<ResponseHead, AnswerError> {
        if self.headers.iter().any(|header| header.name.len() > MAX_NAME) {
            return Err(AnswerError::Malformed(httparse::Error::HeaderName));
        }
        let length = self.length().map(|length| length.to_string());
        let length = length.iter().map(|length| (&b"content-length"[..], length.as_bytes()));
        let passing = self.passing().map(|header| (header.name.as_bytes(), header.value));
        let many = self.headers.len() + 1;
        Ok(ResponseHead {
            status: self.status,
            headers: HeaderSection::Text(HeaderLines::of(length.chain(passing), many, self.size)),
        })
    }

    /// Headers that are neither between the endpoint and us nor said anew.
    fn passing(&self) -> impl Iterator<Item = &Header<'_>> {
        let passes = move |header: &&Header<'_>| {
            Line::of(header) == Line::Passes && !(self.says.names && is_named_by_connection(header, self.headers))
        };
        self.headers.iter().filter(passes)
    }

    /// What is told of the body's length; to HEAD what it would be, had it been asked for with GET.
    fn length(&self) -> Option<u64> {
        match self.says.sized {
            Framing::Length(length) if !is_bodiless(self.status) => Some(length),
            _ => None,
        }
    }
}

// === impl Passed ===

impl Passed {
    /// What its headers say, also of the connection.
    //= RFC 9112, 6.3
    //# If a message is received with both a Transfer-Encoding and a Content-Length header field, the Transfer-Encoding
    //# overrides the Content-Length.
    fn look(&mut self, headers: &[Header<'_>], version: u8) -> Result<Says, AnswerError> {
        let (mut length, mut chunked, mut names) = (None, false, false);
        for header in headers {
            match Line::of(header) {
                Line::Length => {
                    let said = number(header.value).ok_or(AnswerError::Length)?;
                    if length.is_some_and(|length| length != said) {
                        return Err(AnswerError::Length);
                    }
                    length = Some(said);
                }
                Line::TransferEncoding => {
                    if chunked || version == 0 || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(AnswerError::TransferCoding);
                    }
                    chunked = true;
                }
                Line::Connection => {
                    for option in options(header) {
                        self.keep &= !option.eq_ignore_ascii_case(b"close");
                        names |= !option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                Line::Passes | Line::Ours => {}
            }
        }
        let sized = match (chunked, length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Close,
        };
        Ok(Says { sized, names })
    }
}

// === impl Line ===

impl Line {
    fn of(header: &Header<'_>) -> Self {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            2 if is("te") => Self::Ours,
            7 if is("upgrade") || is("trailer") => Self::Ours,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Ours,
            14 if is("content-length") => Self::Length,
            16 if is("proxy-connection") => Self::Ours,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ => Self::Passes,
        }
    }
}

/// Whether an answer of this status never has a body (RFC 9110, 6.4.1), and goes without a length.
pub(super) fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Whether a `Connection` header names it: then it is not for the client.
fn is_named_by_connection(header: &Header<'_>, headers: &[Header<'_>]) -> bool {
    let connections = headers.iter().filter(|header| Line::of(header) == Line::Connection);
    connections
        .flat_map(options)
        .any(|option| option.eq_ignore_ascii_case(header.name.as_bytes()))
}

fn options<'a>(connection: &Header<'a>) -> impl Iterator<Item = &'a [u8]> {
    connection.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &str, asked: &Method) -> Result<Option<(Passed, String)>, AnswerError> {
        let mut write = |head: &Head<'_>| {
            let mut out = Vec::new();
            head.write(false, &mut out);
            Ok(String::from_utf8(out).unwrap())
        };
        let read = super::read(wire.as_bytes(), asked, &mut write)?;
        Ok(read.map(|(passed, written)| (passed, written.unwrap_or_default())))
    }

    fn answer(headers: &str) -> String {
        format!("HTTP/1.1 200 Fine\r\n{headers}\r\n")
    }

    #[test]
    fn a_bodys_length_is_told_to_the_client_in_one_way() {
        for (headers, framing, keep, told) in [
            (
                "Content-Length: 5\r\n",
                Framing::Length(5),
                true,
                "content-length: 5\r\n",
            ),
            (
                "content-length: 5\r\ncontent-length: 5\r\n",
                Framing::Length(5),
                true,
                "content-length: 5\r\n",
            ),
            (
                "transfer-encoding: Chunked\r\n",
                Framing::Chunked,
                true,
                "transfer-encoding: chunked\r\n",
            ),
            (
                "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
                Framing::Chunked,
                true,
                "transfer-encoding: chunked\r\n",
            ),
            ("", Framing::Close, false, "transfer-encoding: chunked\r\n"),
            (
                "content-length: 5\r\nconnection: Close\r\n",
                Framing::Length(5),
                false,
                "content-length: 5\r\n",
            ),
        ] {
            let (passed, head) = read(&answer(headers), &Method::GET).unwrap().unwrap();
            assert_eq!((passed.framing, passed.keep), (framing, keep), "{headers}");
            assert_eq!(head, format!("HTTP/1.1 200 Fine\r\n{told}\r\n"), "{headers}");
        }
    }

    #[test]
    fn what_is_between_the_endpoint_and_us_stays() {
        let wire = answer(
            "X-A: 1\r\nConnection: keep-alive, x-private\r\nX-Private: 2\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
             Trailer: x\r\ncontent-length: 0\r\n",
        );
        let (passed, head) = read(&wire, &Method::GET).unwrap().unwrap();
        assert!(passed.keep);
        assert_eq!(head, "HTTP/1.1 200 Fine\r\nX-A: 1\r\ncontent-length: 0\r\n\r\n");
        let wire = answer("Close: 1\r\nConnection: close\r\nX-A: 1\r\ncontent-length: 0\r\n");
        let (passed, head) = read(&wire, &Method::GET).unwrap().unwrap();
        assert!(!passed.keep);
        assert_eq!(head, "HTTP/1.1 200 Fine\r\nX-A: 1\r\ncontent-length: 0\r\n\r\n");
    }

    #[test]
    fn adapters_are_shown_what_passes_and_the_length_before_it() {
        let wire = answer(
            "X-A: B\r\nConnection: x-private\r\nX-Private: 2\r\nContent-Length: 5\r\nKeep-Alive: 5\r\nSet-Cookie: a=1\r\n\
             set-cookie: b=2\r\n",
        );
        let mut show = |head: &Head<'_>| head.shown();
        let (_, shown) = super::read(wire.as_bytes(), &Method::GET, &mut show).unwrap().unwrap();
        let shown = shown.unwrap();
        let HeaderSection::Text(lines) = &shown.headers else {
            panic!("no text");
        };
        let expect = [
            ("content-length", "5"),
            ("x-a", "B"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ];
        let expect = expect.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        assert_eq!(lines.iter().collect::<Vec<_>>(), expect);
        assert_eq!((shown.status.as_u16(), shown.headers.len()), (200, 4));
        let chunked = answer("transfer-encoding: chunked\r\n");
        let (_, shown) = super::read(chunked.as_bytes(), &Method::GET, &mut show)
            .unwrap()
            .unwrap();
        assert!(shown.unwrap().headers.is_empty());
    }

    #[test]
    fn a_name_that_no_map_holds_is_no_answer_to_show() {
        let wire = answer(&format!("{}: 1\r\n", "x".repeat(MAX_NAME + 1)));
        let mut show = |head: &Head<'_>| head.shown();
        assert!(super::read(wire.as_bytes(), &Method::GET, &mut show).is_err());
    }

    #[test]
    fn answers_without_a_body_have_none_whatever_they_say() {
        let (passed, head) = read(&answer("content-length: 42\r\n"), &Method::HEAD).unwrap().unwrap();
        assert_eq!((passed.framing, passed.keep), (Framing::Empty, true));
        assert!(head.contains("content-length: 42"), "{head}");
        for status in ["204 No Content", "304 Not Modified"] {
            let wire = format!("HTTP/1.1 {status}\r\ncontent-length: 42\r\netag: x\r\n\r\n");
            let (passed, head) = read(&wire, &Method::GET).unwrap().unwrap();
            assert_eq!((passed.framing, passed.keep), (Framing::Empty, true));
            assert_eq!(head, format!("HTTP/1.1 {status}\r\netag: x\r\n\r\n"));
        }
        let (passed, head) = read("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", &Method::GET)
            .unwrap()
            .unwrap();
        assert!(passed.status.is_informational() && head.is_empty());
    }

    #[test]
    fn what_two_could_read_in_two_ways_is_refused() {
        for headers in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 5\r\n",
            "content-length: +5\r\n",
            "content-length: -1\r\n",
            "content-length: 99999999999999999999\r\n",
            "content-length:\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "content-length : 5\r\n",
            "x: 1\r\n content-length: 5\r\n",
        ] {
            assert!(read(&answer(headers), &Method::GET).is_err(), "{headers:?}");
        }
        assert!(read("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &Method::GET).is_err());
        assert!(read("220 smtp\r\n", &Method::GET).is_err());
        let whole = answer("content-length: 5\r\n");
        for cut in 0..whole.len() {
            assert!(matches!(read(&whole[..cut], &Method::GET), Ok(None)), "{cut}");
        }
    }

    #[test]
    fn an_old_server_closes_and_is_understood() {
        let (passed, head) = read("HTTP/1.0 200 OK\r\n\r\n", &Method::GET).unwrap().unwrap();
        assert_eq!((passed.framing, passed.keep), (Framing::Close, false));
        assert_eq!(head, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let (passed, _) = read("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", &Method::GET)
            .unwrap()
            .unwrap();
        assert_eq!((passed.framing, passed.keep), (Framing::Length(5), false));
    }
}
