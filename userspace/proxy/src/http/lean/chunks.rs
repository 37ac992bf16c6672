//! The end of a message's body, found in what is read of it (RFC 9112, 6 and 7).

use bytes::Bytes;
use http::HeaderMap;
use httparse::Status;

use super::{buffers::Buffer, lines, response::AnswerError};
use crate::limits::{MAX_HEADER_BYTES, MAX_HEADERS};

/// Longest line that says a chunk's size, with its extensions.
const MAX_SIZE_LINE: usize = 4096;

/// How the length of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// A body that is being read.
pub(super) struct Body(State);

#[derive(Clone, Copy)]
enum State {
    /// So many bytes are left.
    Sized(u64),
    /// A line with the size of the next chunk comes.
    Size,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The line end behind a chunk comes.
    ChunkEnd,
    /// Trailers come, or the line end that stands for none.
    Trailers,
    UntilClose,
    Over,
}

/// What there is at the head of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes of the body, to be consumed by the caller.
    Data(usize),
    /// What came behind a chunked body; it is over.
    Trailers(Box<HeaderMap>),
    /// Nothing whole: more must be read.
    More,
    Over,
}

// === impl Body ===

impl Body {
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Empty | Framing::Length(0) => State::Over,
            Framing::Length(length) => State::Sized(length),
            Framing::Chunked => State::Size,
            Framing::Close => State::UntilClose,
        })
    }

    /// Looks at what was read.
    ///
    /// # Errors
    /// No chunk looks so.
    pub fn next(&mut self, input: &mut Buffer) -> Result<Piece, AnswerError> {
        loop {
            let there = input.unread().len();
            match self.0 {
                State::Over => return Ok(Piece::Over),
                _ if there == 0 => return Ok(Piece::More),
                State::UntilClose => return Ok(Piece::Data(there)),
                State::Sized(left) => {
                    let count = least(left, there);
                    self.0 = match left - count as u64 {
                        0 => State::Over,
                        left => State::Sized(left),
                    };
                    return Ok(Piece::Data(count));
                }
                State::Chunk(left) => {
                    let count = least(left, there);
                    self.0 = match left - count as u64 {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                    return Ok(Piece::Data(count));
                }
                State::Size => match size_line(input.unread())? {
                    Some((length, size)) => {
                        input.consume(length);
                        self.0 = match size {
                            0 => State::Trailers,
                            size => State::Chunk(size),
                        };
                    }
                    None if there <= MAX_SIZE_LINE => return Ok(Piece::More),
                    None => return Err(AnswerError::Chunk),
                },
                State::ChunkEnd => match input.unread() {
                    [b'\r', b'\n', ..] => {
                        input.consume(2);
                        self.0 = State::Size;
                    }
                    [b'\r'] => return Ok(Piece::More),
                    _ => return Err(AnswerError::Chunk),
                },
                State::Trailers => {
                    let Some((length, trailers)) = trailers(input.unread())? else {
                        return if there > MAX_HEADER_BYTES {
                            Err(AnswerError::TooLong)
                        } else {
                            Ok(Piece::More)
                        };
                    };
                    input.consume(length);
                    self.0 = State::Over;
                    if !trailers.is_empty() {
                        return Ok(Piece::Trailers(Box::new(trailers)));
                    }
                }
            }
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.0, State::Over)
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// Something was still to come.
    pub fn end(&mut self) -> Result<(), AnswerError> {
        match self.0 {
            State::Over | State::UntilClose => {
                self.0 = State::Over;
                Ok(())
            }
            // It does not become over by that.
            _ => Err(AnswerError::Cut),
        }
    }
}

/// Length of the line that says a chunk's size, and the size; `None`: it is not whole. httparse takes a line without a digit for 0,
/// and a bare LF for a part of an extension.
fn size_line(bytes: &[u8]) -> Result<Option<(usize, u64)>, AnswerError> {
    if !bytes.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(AnswerError::Chunk);
    }
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete((length, size))) if !bytes[..length - 2].contains(&b'\n') => Ok(Some((length, size))),
        Ok(Status::Partial) => Ok(None),
        Ok(Status::Complete(_)) | Err(_) => Err(AnswerError::Chunk),
    }
}

/// Trailers and how many bytes they had; `None`: they are not whole.
fn trailers(bytes: &[u8]) -> Result<Option<(usize, HeaderMap)>, AnswerError> {
    let mut place = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(bytes, &mut place)? {
        Status::Complete((length, trailers)) => {
            let text = &bytes[..length];
            let map = lines::map(trailers.iter(), text, &Bytes::copy_from_slice(text))?;
            Ok(Some((length, map)))
        }
        Status::Partial => Ok(None),
    }
}

fn least(left: u64, there: usize) -> usize {
    usize::try_from(left).map_or(there, |left| left.min(there))
}

#[cfg(test)]
mod tests {
    use super::{super::buffers::Buffers, *};

    /// The body in `wire`, read in pieces of `step` bytes, and what is left behind it.
    fn read(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), AnswerError> {
        let mut input = Buffers::default().input();
        let (mut body, mut seen, mut rest) = (Body::new(framing), Vec::new(), wire.chunks(step));
        loop {
            match body.next(&mut input)? {
                Piece::Data(count) => {
                    seen.extend_from_slice(&input.unread()[..count]);
                    input.consume(count);
                }
                Piece::Trailers(trailers) => assert_eq!(trailers["x-sum"], "1"),
                Piece::More => match rest.next() {
                    Some(more) => assert!(input.put(more)),
                    None => {
                        body.end()?;
                        return Ok((seen, Vec::new()));
                    }
                },
                Piece::Over => {
                    let left = input.unread().iter().chain(rest.flatten()).copied().collect();
                    return Ok((seen, left));
                }
            }
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says_however_it_is_cut() {
        let chunked = b"3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nx-sum: 1\r\n\r\nnext";
        for step in 1..chunked.len() {
            let (body, rest) = read(Framing::Chunked, chunked, step).unwrap();
            assert_eq!((&*body, &*rest), (&b"abcdefgh"[..], &b"next"[..]), "{step}");
            let (body, rest) = read(Framing::Length(4), b"abcdnext", step).unwrap();
            assert_eq!((&*body, &*rest), (&b"abcd"[..], &b"next"[..]), "{step}");
            let (body, _) = read(Framing::Close, b"abcd", step).unwrap();
            assert_eq!(body, b"abcd", "{step}");
        }
        assert_eq!(read(Framing::Empty, b"next", 4).unwrap().0, b"");
        assert_eq!(read(Framing::Length(0), b"next", 4).unwrap().0, b"");
    }

    #[test]
    fn what_is_cut_or_no_chunk_is_an_error() {
        for (framing, wire, expect) in [
            (Framing::Length(5), &b"abcd"[..], AnswerError::Cut),
            (Framing::Chunked, b"3\r\nabc\r\n", AnswerError::Cut),
            (Framing::Chunked, b"3\r\nabc\r\n0\r\n", AnswerError::Cut),
            (Framing::Chunked, b"3\r\nabcdef", AnswerError::Chunk),
            (Framing::Chunked, b"xyz\r\nabc", AnswerError::Chunk),
            (Framing::Chunked, b"FFFFFFFFFFFFFFFFF\r\nabc", AnswerError::Chunk),
            (Framing::Chunked, b"-1\r\nabc", AnswerError::Chunk),
            (
                Framing::Chunked,
                b"3\r\nabc\r\n\r\n3\r\ndef\r\n0\r\n\r\n",
                AnswerError::Chunk,
            ),
            (Framing::Chunked, b";x\r\n\r\n", AnswerError::Chunk),
            (Framing::Chunked, b" \r\n\r\n", AnswerError::Chunk),
            (Framing::Chunked, b"3;a\nb\r\nabc\r\n0\r\n\r\n", AnswerError::Chunk),
        ] {
            let told = read(framing, wire, 7).map_err(|error| error.to_string());
            assert_eq!(told, Err(expect.to_string()), "{:?}", String::from_utf8_lossy(wire));
        }
        let long = format!("3;{}", "x".repeat(2 * MAX_SIZE_LINE));
        let told = read(Framing::Chunked, long.as_bytes(), 1000);
        assert!(matches!(told, Err(AnswerError::Chunk)));
        let long = format!("0\r\nx: {}", "x".repeat(2 * MAX_HEADER_BYTES));
        let told = read(Framing::Chunked, long.as_bytes(), 1000);
        assert!(matches!(told, Err(AnswerError::TooLong)));
        for trailers in ["no trailer\r\n\r\n".to_owned(), "x: 1\r\n".repeat(MAX_HEADERS + 1)] {
            let wire = format!("0\r\n{trailers}");
            let told = read(Framing::Chunked, wire.as_bytes(), 1000);
            assert!(matches!(told, Err(AnswerError::Malformed(_))), "{trailers}");
        }
    }
}
