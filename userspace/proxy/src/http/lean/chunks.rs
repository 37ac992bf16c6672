//! The end of a message's body, found in what is read of it (RFC 9112, 6 and 7).

use httparse::Status;

use super::{buffers::Buffer, response::AnswerError};
use crate::limits::MAX_HEADER_BYTES;

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
    /// Lines of trailers come, of which there were so many bytes.
    Trailers(usize),
    UntilClose,
    Over,
}

/// What there is at the head of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes of the body, to be consumed by the caller.
    Data(usize),
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

    /// Looks at what was read. Trailers are dropped: nobody announced that it takes any.
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
                State::Size => match httparse::parse_chunk_size(input.unread()) {
                    Ok(Status::Complete((length, size))) => {
                        input.consume(length);
                        self.0 = match size {
                            0 => State::Trailers(0),
                            size => State::Chunk(size),
                        };
                    }
                    Ok(Status::Partial) if there <= MAX_SIZE_LINE => return Ok(Piece::More),
                    Ok(Status::Partial) | Err(_) => return Err(AnswerError::Chunk),
                },
                State::ChunkEnd => match input.unread() {
                    [b'\r', b'\n', ..] => {
                        input.consume(2);
                        self.0 = State::Size;
                    }
                    [b'\r'] => return Ok(Piece::More),
                    _ => return Err(AnswerError::Chunk),
                },
                State::Trailers(before) => {
                    let Some(length) = input.unread().iter().position(|byte| *byte == b'\n').map(|at| at + 1) else {
                        return if before + there > MAX_HEADER_BYTES {
                            Err(AnswerError::TooLong)
                        } else {
                            Ok(Piece::More)
                        };
                    };
                    let is_end = matches!(&input.unread()[..length], b"\r\n" | b"\n");
                    input.consume(length);
                    self.0 = match before + length {
                        _ if is_end => State::Over,
                        all if all > MAX_HEADER_BYTES => return Err(AnswerError::TooLong),
                        all => State::Trailers(all),
                    };
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
        match std::mem::replace(&mut self.0, State::Over) {
            State::Over | State::UntilClose => Ok(()),
            _ => Err(AnswerError::Cut),
        }
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
        ] {
            let told = read(framing, wire, 7).map_err(|error| error.to_string());
            assert_eq!(told, Err(expect.to_string()), "{:?}", String::from_utf8_lossy(wire));
        }
        let long = format!("3;{}", "x".repeat(2 * MAX_SIZE_LINE));
        let told = read(Framing::Chunked, long.as_bytes(), 1000);
        assert!(matches!(told, Err(AnswerError::Chunk)));
        let endless = format!("0\r\n{}", "x: 1\r\n".repeat(MAX_HEADER_BYTES));
        let told = read(Framing::Chunked, endless.as_bytes(), 1000);
        assert!(matches!(told, Err(AnswerError::TooLong)));
    }
}
