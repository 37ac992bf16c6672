//! Bytes in, protocol out.

use crate::limits::DETECT_BYTES;

/// What HTTP/2 clients send first (RFC 9113 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method name looked for; the longest registered one has 17 letters.
const MAX_METHOD: usize = 24;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
    /// A TLS ClientHello; passed through.
    Tls,
    Opaque,
}

/// What a prefix of a connection tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Clear(Spoken),
    /// More bytes could change it; `best` holds if none come.
    Unclear {
        best: Spoken,
    },
}

/// Judges the bytes read so far.
///
/// A line counts as HTTP/1 only if it ends in ` HTTP/1.0` or ` HTTP/1.1`: other line protocols have a `GET` too (Redis,
/// memcached). A line that is too long, or has something else in it after a method and a target that begins as
/// one of HTTP does, still goes to the HTTP side, which answers 400 or 414 instead of passing it around the rules.
pub fn judge(read: &[u8]) -> Judgement {
    if let Some(judgement) = judge_tls(read).or_else(|| judge_h2(read)) {
        return judgement;
    }
    judge_http1(read)
}

fn judge_tls(read: &[u8]) -> Option<Judgement> {
    // Record type handshake, version 3.x, length, message ClientHello.
    match *read {
        [0x16] | [0x16, 3] | [0x16, 3, _] | [0x16, 3, _, _] | [0x16, 3, _, _, _] => {
            Some(Judgement::Unclear { best: Spoken::Opaque })
        }
        [0x16, 3, _, _, _, 1, ..] => Some(Judgement::Clear(Spoken::Tls)),
        [0x16, ..] => Some(Judgement::Clear(Spoken::Opaque)),
        _ => None,
    }
}

fn judge_h2(read: &[u8]) -> Option<Judgement> {
    if read.starts_with(H2_PREFACE) {
        return Some(Judgement::Clear(Spoken::Http2));
    }
    // `PR` is also how PROPFIND begins: up to there it is either.
    (H2_PREFACE.starts_with(read)).then_some(Judgement::Unclear { best: Spoken::Opaque })
}

fn judge_http1(read: &[u8]) -> Judgement {
    const OPAQUE: Judgement = Judgement::Clear(Spoken::Opaque);
    // RFC 9112 2.2: an empty line before the request line is to be ignored.
    let line = match read {
        [b'\r'] => return Judgement::Unclear { best: Spoken::Opaque },
        [b'\r', b'\n', rest @ ..] => rest,
        _ => read,
    };
    let Some(space) = line.iter().position(|&byte| byte == b' ') else {
        let plausible = line.len() <= MAX_METHOD && line.iter().all(u8::is_ascii_uppercase);
        return if plausible {
            Judgement::Unclear { best: Spoken::Opaque }
        } else {
            OPAQUE
        };
    };
    let method = &line[..space];
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|&byte| is_method(byte)) {
        return OPAQUE;
    }
    let target = &line[space + 1..];
    // Origin form, asterisk form and absolute form begin so; a CONNECT has `host:port`.
    let begins_as_http = match target.first() {
        None => return Judgement::Unclear { best: Spoken::Opaque },
        Some(b'/' | b'*') => true,
        Some(_) => {
            method == b"CONNECT" || is_prefix_of_either(target, b"http://") || is_prefix_of_either(target, b"https://")
        }
    };
    match line.iter().position(|&byte| byte == b'\n') {
        Some(end) => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            let versioned = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            Judgement::Clear(if versioned || begins_as_http {
                Spoken::Http1
            } else {
                Spoken::Opaque
            })
        }
        None if begins_as_http && line.len() >= DETECT_BYTES => Judgement::Clear(Spoken::Http1),
        None if begins_as_http => Judgement::Unclear { best: Spoken::Http1 },
        None => OPAQUE,
    }
}

/// Letters of registered methods and of the extensions in use.
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

fn is_prefix_of_either(bytes: &[u8], word: &[u8]) -> bool {
    let shared = bytes.len().min(word.len());
    bytes[..shared].eq_ignore_ascii_case(&word[..shared])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(read: &[u8], expect: Judgement) {
        assert_eq!(judge(read), expect, "{:?}", String::from_utf8_lossy(read));
    }

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (read, spoken) in [
            (&b"GET / HTTP/1.1\r\n"[..], Spoken::Http1),
            (b"\r\nGET / HTTP/1.1\r\n", Spoken::Http1),
            (b"PROPFIND /dav HTTP/1.1\r\n", Spoken::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Spoken::Http1),
            (b"GET http://web/ HTTP/1.0\n", Spoken::Http1),
            (b"CONNECT web:443 HTTP/1.1\r\n", Spoken::Http1),
            (b"GET /no-version\r\n", Spoken::Http1),
            (H2_PREFACE, Spoken::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Spoken::Http2),
            (&[0x16, 3, 1, 0, 200, 1, 0, 0], Spoken::Tls),
            (&[0x16, 2, 1], Spoken::Opaque),
            (b"GET key\r\n", Spoken::Opaque),
            (b"get / HTTP/1.1\r\n", Spoken::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Spoken::Opaque),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Spoken::Opaque),
            (b"SSH-2.0-OpenSSH\r\n", Spoken::Opaque),
            (b" GET / HTTP/1.1\r\n", Spoken::Opaque),
        ] {
            check(read, Judgement::Clear(spoken));
        }
    }

    #[test]
    fn a_prefix_never_contradicts_the_whole() {
        for whole in [
            &b"GET / HTTP/1.1\r\n"[..],
            H2_PREFACE,
            b"PROPFIND /dav HTTP/1.1\r\n",
            b"OPTIONS * HTTP/1.1\r\n",
        ] {
            let decided = judge(whole);
            for length in 1..whole.len() {
                match judge(&whole[..length]) {
                    Judgement::Unclear { .. } => {}
                    clear => assert_eq!(clear, decided, "{:?}", String::from_utf8_lossy(&whole[..length])),
                }
            }
        }
    }

    #[test]
    fn a_request_line_without_end_is_http() {
        let mut line = b"GET /".to_vec();
        line.resize(DETECT_BYTES, b'a');
        check(&line, Judgement::Clear(Spoken::Http1));
    }
}
