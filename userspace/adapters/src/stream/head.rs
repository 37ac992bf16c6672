//! Heads as filters see them, read into a map only where somebody changes one.
//!
//! Most filters change nothing of an answer, and most that look at an earlier head look for one header. So what comes in as text
//! stays text until then: one piece of memory, where a map takes two and more, and counts each value.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// An answer's head.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderSection,
}

/// The headers of a head.
#[derive(Debug, Clone)]
pub enum HeaderSection {
    /// Nobody has changed them since they were written.
    Text(HeaderLines),
    Map(HeaderMap),
}

/// Headers as HTTP/1 has them: `name: value` and a line end each, names in lower case. Clones share the text.
#[derive(Debug, Clone)]
pub struct HeaderLines {
    text: Bytes,
    count: usize,
}

// === impl ResponseHead ===

impl ResponseHead {
    pub fn new(status: StatusCode, headers: HeaderMap) -> Self {
        let headers = HeaderSection::Map(headers);
        Self { status, headers }
    }
}

// === impl HeaderSection ===

impl HeaderSection {
    /// The first value under `name`.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Text(lines) => lines.find(name),
            Self::Map(map) => Some(map.get(str::from_utf8(name).ok()?)?.as_bytes()),
        }
    }

    /// The same, to be kept: shared, not copied.
    pub fn get(&self, name: &[u8]) -> Option<HeaderValue> {
        match self {
            Self::Text(lines) => lines.shared(lines.find(name)?),
            Self::Map(map) => map.get(str::from_utf8(name).ok()?).cloned(),
        }
    }

    /// Shows all of them, those of one name in their order.
    pub fn each<'a>(&'a self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        match self {
            Self::Text(lines) => lines.iter().for_each(|(name, value)| visit(name, value)),
            Self::Map(map) => pairs(map).for_each(|(name, value)| visit(name, value)),
        }
    }

    /// How many there are under `name`.
    pub fn count(&self, name: &[u8]) -> usize {
        match self {
            Self::Text(lines) => lines
                .iter()
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .count(),
            Self::Map(map) => str::from_utf8(name).map_or(0, |name| map.get_all(name).iter().count()),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Text(lines) => lines.count,
            Self::Map(map) => map.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// To be changed: a map from now on.
    pub fn map_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Map(map) => map,
            Self::Text(lines) => {
                *self = Self::Map(lines.to_map());
                self.map_mut()
            }
        }
    }

    pub fn into_map(self) -> HeaderMap {
        match self {
            Self::Text(lines) => lines.to_map(),
            Self::Map(map) => map,
        }
    }

    /// A copy for whoever may ask for one of them later.
    #[must_use]
    pub fn kept(&self) -> Self {
        Self::Text(match self {
            Self::Text(lines) => lines.clone(),
            Self::Map(map) => {
                let size = pairs(map).map(|(name, value)| name.len() + value.len() + 4).sum();
                HeaderLines::of(pairs(map), size)
            }
        })
    }
}

impl Default for HeaderSection {
    fn default() -> Self {
        Self::Map(HeaderMap::new())
    }
}

/// Names and values.
pub(crate) fn pairs(map: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    map.iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

// === impl HeaderLines ===

impl HeaderLines {
    /// `pairs` are names and values that a map would hold; `size`: how many bytes their lines have, about.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, size: usize) -> Self {
        let mut text = Vec::with_capacity(size);
        let mut count = 0;
        for (name, value) in pairs {
            let at = text.len();
            text.extend_from_slice(name);
            text[at..].make_ascii_lowercase();
            text.extend_from_slice(b": ");
            text.extend_from_slice(value);
            text.extend_from_slice(b"\r\n");
            count += 1;
        }
        Self {
            text: Bytes::from(text),
            count,
        }
    }

    /// As HTTP/1 sends them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    fn find(&self, name: &[u8]) -> Option<&[u8]> {
        let mut lines = self.iter();
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Neither names nor values hold a line end, and names no colon.
    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.text.split(|byte| *byte == b'\n');
        lines.filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at(colon);
            Some((name, value.strip_prefix(b": ")?.strip_suffix(b"\r")?))
        })
    }

    /// `value` lies in the text.
    fn shared(&self, value: &[u8]) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(self.text.slice_ref(value)).ok()
    }

    fn to_map(&self) -> HeaderMap {
        // Room for what filters add.
        let mut map = HeaderMap::with_capacity(self.count + 2);
        for (name, value) in self.iter() {
            // A map would hold them, as was promised.
            if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name), self.shared(value)) {
                map.append(name, value);
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(&[u8], &[u8]); 5] = [
        (b"Set-Cookie", b"a=1"),
        (b"x-empty", b""),
        (b"X-Colons", b"a: b: c"),
        (b"set-cookie", b"b=2"),
        (b"x-bytes", b"\xff"),
    ];

    fn text() -> HeaderSection {
        HeaderSection::Text(HeaderLines::of(PAIRS.into_iter(), 0))
    }

    fn all(section: &HeaderSection) -> Vec<(&[u8], &[u8])> {
        let mut all = Vec::new();
        section.each(|name, value| all.push((name, value)));
        all.sort();
        all
    }

    #[test]
    fn a_text_answers_as_its_map_does() {
        let text = text();
        let map = HeaderSection::Map(text.clone().into_map());
        for name in [
            "set-cookie",
            "SET-COOKIE",
            "x-empty",
            "x-colons",
            "x-bytes",
            "x-none",
            "",
            "x-colons: a",
        ] {
            let name = name.as_bytes();
            assert_eq!(text.find(name), map.find(name));
            assert_eq!(text.get(name), map.get(name));
            assert_eq!(text.count(name), map.count(name));
            assert_eq!(text.get(name).as_ref().map(HeaderValue::as_bytes), text.find(name));
        }
        assert_eq!(
            (text.find(b"x-colons"), text.len()),
            (Some(&b"a: b: c"[..]), PAIRS.len())
        );
        assert_eq!((all(&text), text.len()), (all(&map), map.len()));
    }

    #[test]
    fn what_is_changed_becomes_a_map_and_what_was_kept_stays() {
        let mut section = text();
        let kept = section.kept();
        section.map_mut().insert("x-empty", HeaderValue::from_static("1"));
        assert_eq!(section.find(b"x-empty"), Some(&b"1"[..]));
        let later = section.kept();
        section.map_mut().clear();
        assert!(section.is_empty() && matches!(later, HeaderSection::Text(_)));
        assert_eq!(
            (kept.find(b"x-empty"), later.find(b"x-empty")),
            (Some(&b""[..]), Some(&b"1"[..]))
        );
        assert_eq!(later.into_map().get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn a_text_is_what_goes_over_the_wire() {
        let lines = HeaderLines::of([(&b"Server"[..], &b"nginx"[..]), (b"etag", b"")].into_iter(), 64);
        assert_eq!(lines.as_bytes(), b"server: nginx\r\netag: \r\n");
        assert_eq!(HeaderLines::of([].into_iter(), 0).iter().count(), 0);
    }
}
