//! Header lines: written out, and put into maps.

use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;

use super::response::AnswerError;

pub(super) fn write(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// # Errors
/// A name or a value that a map does not hold.
pub(super) fn map(lines: &[Header<'_>]) -> Result<HeaderMap, AnswerError> {
    let mut map = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let name = name.map_err(|_| AnswerError::Malformed(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_bytes(line.value);
        let value = value.map_err(|_| AnswerError::Malformed(httparse::Error::HeaderValue))?;
        map.append(name, value);
    }
    Ok(map)
}
