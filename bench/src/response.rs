//! One response at the front of a buffer.

use anyhow::{Context, Result, bail};

/// Headers a response may have.
const MAX_HEADERS: usize = 64;

/// A whole response.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    pub status: u16,
    pub body: Vec<u8>,
    /// Bytes of it in the buffer.
    pub length: usize,
    /// The server closes the connection after it.
    pub last: bool,
}

/// The response at the front of `buffer`; `None`: more bytes are to come. `closed`: none will.
///
/// # Errors
/// What stands there is no response.
pub fn parse(buffer: &[u8], closed: bool) -> Result<Option<Whole>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(begin) = head.parse(buffer)? else {
        return Ok(None);
    };
    let status = head.code.context("no status")?;
    let mut body_length = None;
    let (mut chunked, mut last) = (false, false);
    for header in head.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            body_length = Some(value.parse::<usize>().context("content-length")?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            last = value.eq_ignore_ascii_case("close");
        }
    }
    let whole = |body: Vec<u8>, length| Whole {
        status,
        body,
        length,
        last,
    };
    let rest = buffer.get(begin..).unwrap_or_default();
    if chunked {
        return Ok(chunks(rest)?.map(|(body, length)| whole(body, begin + length)));
    }
    match body_length {
        Some(length) => Ok(rest.get(..length).map(|body| whole(body.to_vec(), begin + length))),
        None if closed => Ok(Some(Whole {
            last: true,
            ..whole(rest.to_vec(), buffer.len())
        })),
        None if last => Ok(None),
        None => bail!("a response of unknown length on a connection that stays"),
    }
}

/// A whole chunked body (without trailers) and its length on the wire.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Ok(size) = httparse::parse_chunk_size(rest) else {
            bail!("a malformed chunk");
        };
        let httparse::Status::Complete((begin, size)) = size else {
            return Ok(None);
        };
        let end = begin + usize::try_from(size)?;
        let (Some(data), Some(line)) = (rest.get(begin..end), rest.get(end..end + 2)) else {
            return Ok(None);
        };
        if line != b"\r\n" {
            bail!("a chunk without an end");
        }
        body.extend_from_slice(data);
        at += end + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str, closed: bool) -> Option<(u16, String, usize, bool)> {
        parse(text.as_bytes(), closed).unwrap().map(|whole| {
            (
                whole.status,
                String::from_utf8(whole.body).unwrap(),
                whole.length,
                whole.last,
            )
        })
    }

    #[test]
    fn bodies_of_every_framing_are_cut_where_they_end() {
        let sized = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 2";
        assert_eq!(whole(sized, false), Some((200, "abc".into(), sized.len() - 10, false)));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(whole(chunked, false), Some((200, "abc".into(), chunked.len(), false)));
        let open = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc";
        assert_eq!(whole(open, false), None);
        assert_eq!(whole(open, true), Some((200, "abc".into(), open.len(), true)));
    }

    #[test]
    fn no_prefix_is_taken_for_a_whole_response() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ] {
            for end in 0..text.len() {
                assert_eq!(parse(&text.as_bytes()[..end], false).unwrap(), None, "{end}");
            }
            assert!(parse(text.as_bytes(), false).unwrap().is_some());
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for text in [
            "FTP/1.1 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(parse(text.as_bytes(), false).is_err(), "{text}");
        }
    }
}
