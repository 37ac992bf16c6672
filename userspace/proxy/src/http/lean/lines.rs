//! Header lines: written out, and put into maps.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;

use super::response::AnswerError;

pub(super) fn write(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_length(out: &mut Vec<u8>, length: u64) {
    // A Vec takes all.
    let _ = write!(out, "content-length: {length}\r\n");
}

/// A map of `lines`, which were read in `text`; its values share `copy`, which is the same text.
///
/// # Errors
/// A name or a value that a map does not hold.
pub(super) fn map<'h>(
    lines: impl Iterator<Item = &'h Header<'h>> + Clone,
    text: &[u8],
    copy: &Bytes,
) -> Result<HeaderMap, AnswerError> {
    // Room for what adapters add, and no more: a map of seven is larger than what the allocator keeps at hand.
    let mut map = HeaderMap::with_capacity(lines.clone().count() + 2);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let name = name.map_err(|_| AnswerError::Malformed(httparse::Error::HeaderName))?;
        map.append(name, value(line.value, text, copy)?);
    }
    Ok(map)
}

/// A value that was read in `text`, of which `copy` has the same bytes to share.
///
/// # Errors
/// A map does not hold it.
fn value(value: &[u8], text: &[u8], copy: &Bytes) -> Result<HeaderValue, AnswerError> {
    let value = match shared(value, text, copy) {
        Some(value) => HeaderValue::from_maybe_shared(value),
        None => HeaderValue::from_bytes(value),
    };
    value.map_err(|_| AnswerError::Malformed(httparse::Error::HeaderValue))
}

/// What lies in `copy` where `part` lies in `text`; `None`: it lies elsewhere, as what is empty may.
pub(super) fn shared(part: &[u8], text: &[u8], copy: &Bytes) -> Option<Bytes> {
    let from = part.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let to = from.checked_add(part.len())?;
    (to <= text.len() && to <= copy.len()).then(|| copy.slice(from..to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_in_the_shared_text() {
        let text = b"a: one\r\nX-B:  two \r\nempty:\r\na: three\r\n\r\n";
        let mut lines = [httparse::EMPTY_HEADER; 8];
        let (_, lines) = httparse::parse_headers(text, &mut lines).unwrap().unwrap();
        let copy = Bytes::copy_from_slice(text);
        let map = map(lines.iter(), text, &copy).unwrap();
        let all: Vec<_> = map.get_all("a").iter().collect();
        assert_eq!(all, ["one", "three"]);
        assert_eq!(
            (&map["x-b"], &map["empty"], map.len()),
            (&"two".parse().unwrap(), &"".parse().unwrap(), 4)
        );
        let range = copy.as_ptr_range();
        assert!(range.contains(&map["x-b"].as_bytes().as_ptr()));
        // A text that is none of theirs is not looked into.
        let other = super::map(lines.iter(), b"x", &Bytes::from_static(b"x")).unwrap();
        assert_eq!(other, map);
    }
}
