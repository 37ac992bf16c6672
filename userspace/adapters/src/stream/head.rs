//! Heads as filters see them, read into a map only where somebody changes one.
//!
//! Most filters look for a header and set one, and change nothing of an answer. So what comes in as text stays one until more is
//! wanted of it: one piece of memory, where a map takes two and more, hashes each name and counts each value.

use std::mem;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, request};

/// Bytes that say how long a name and its value are.
const LENGTHS: usize = 8;

/// A text is changed so often at most: each change copies it.
const MAX_CHANGES: u8 = 4;

/// And no longer than this, bytes.
const MAX_CHANGED: usize = 4096;

/// A request's head.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    /// As it came; changes are not looked at.
    pub version: Version,
    pub headers: HeaderSection,
}

/// Bytes of names and values of a map up to which a copy of it is a text: of a larger one its values are shared.
const KEPT_AS_TEXT: usize = 16 << 10;

/// An answer's head.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderSection,
}

/// The headers of a head.
#[derive(Debug, Clone)]
pub enum HeaderSection {
    /// Of what tells where a message ends, nobody has changed anything.
    Text(HeaderLines),
    Map(HeaderMap),
}

/// Headers in the order in which they came, in one piece of memory: of each the lengths of its name and its value, then both, the
/// name in lower case. Clones share it.
#[derive(Debug, Clone)]
pub struct HeaderLines {
    text: Bytes,
    count: usize,
    changes: u8,
}

// === impl RequestHead ===

impl RequestHead {
    /// Moves what filters may see out of `parts`.
    pub fn take(parts: &mut request::Parts) -> Self {
        Self {
            method: mem::take(&mut parts.method),
            uri: mem::take(&mut parts.uri),
            version: parts.version,
            headers: HeaderSection::Map(mem::take(&mut parts.headers)),
        }
    }

    /// Moves it back.
    pub fn put(self, parts: &mut request::Parts) {
        (parts.method, parts.uri, parts.version) = (self.method, self.uri, self.version);
        parts.headers = self.headers.into_map();
    }

    pub fn into_parts(self) -> request::Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        self.put(&mut parts);
        parts
    }
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

    /// Has this value under `name`, in the place of all others.
    ///
    /// # Errors
    /// Nothing was changed: that is for the map, which knows what it does not hold.
    pub(crate) fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), ForMap> {
        self.text()?.change(Some(name), Some((name, value)))
    }

    /// Has one more.
    ///
    /// # Errors
    /// As [`HeaderSection::replace`].
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), ForMap> {
        self.text()?.change(None, Some((name, value)))
    }

    /// Has none under `name`.
    ///
    /// # Errors
    /// As [`HeaderSection::replace`].
    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<(), ForMap> {
        let lines = self.text()?;
        match lines.find(name) {
            Some(_) => lines.change(Some(name), None),
            None => Ok(()),
        }
    }

    fn text(&mut self) -> Result<&mut HeaderLines, ForMap> {
        match self {
            Self::Text(lines) => Ok(lines),
            Self::Map(_) => Err(ForMap),
        }
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

    /// A copy for whoever may ask for one of them later. `held`: it may become what goes on, and then has all that a map knows.
    #[must_use]
    pub(crate) fn kept(&self, held: bool) -> Self {
        match self {
            Self::Map(map) if !held => {
                let bytes = pairs(map).map(|(name, value)| name.len() + value.len()).sum();
                match bytes {
                    0..=KEPT_AS_TEXT => Self::Text(HeaderLines::of(pairs(map), map.len(), bytes)),
                    _ => self.clone(),
                }
            }
            _ => self.clone(),
        }
    }
}

impl Default for HeaderSection {
    fn default() -> Self {
        Self::Map(HeaderMap::new())
    }
}

/// A change is none that a text is made for: it is one, and not changed much, as long as it says where the message ends.
#[derive(Debug)]
pub(crate) struct ForMap;

/// Whether a text may have it: no map has to be asked whether it would hold it.
fn is_plain(name: &[u8], value: &[u8]) -> bool {
    let framing: [&[u8]; 3] = [b"connection", b"content-length", b"transfer-encoding"];
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let text = |byte: &u8| matches!(*byte, b'\t' | b' '..=b'~' | 0x80..);
    !name.is_empty()
        && name.iter().all(token)
        && value.iter().all(text)
        && !framing.iter().any(|framing| name.eq_ignore_ascii_case(framing))
}

/// Names and values.
pub(crate) fn pairs(map: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    map.iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

// === impl HeaderLines ===

impl HeaderLines {
    /// `pairs` are names and values that a map would hold; how many, and how many `bytes` they have, need not be known exactly.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, many: usize, bytes: usize) -> Self {
        let mut text = Vec::with_capacity(bytes + many * LENGTHS);
        let mut count = 0;
        for (name, value) in pairs {
            text.extend_from_slice(&length(name));
            text.extend_from_slice(&length(value));
            let at = text.len();
            text.extend_from_slice(name);
            text[at..].make_ascii_lowercase();
            text.extend_from_slice(value);
            count += 1;
        }
        Self {
            text: Bytes::from(text),
            count,
            changes: 0,
        }
    }

    /// Leaves out the lines of one name and puts another one into the first one's place, or behind all.
    fn change(&mut self, without: Option<&[u8]>, put: Option<(&[u8], &[u8])>) -> Result<(), ForMap> {
        let size = self.text.len() + put.map_or(0, |(name, value)| LENGTHS + name.len() + value.len());
        let plain =
            put.is_none_or(|(name, value)| is_plain(name, value)) && without.is_none_or(|name| is_plain(name, b""));
        if !plain || self.changes >= MAX_CHANGES || size > MAX_CHANGED {
            return Err(ForMap);
        }
        let goes = |name: &[u8]| without.is_some_and(|gone| name.eq_ignore_ascii_case(gone));
        let at = self.iter().position(|(name, _)| goes(name)).unwrap_or(self.count);
        let before = self.iter().take(at);
        let behind = self.iter().skip(at).filter(|(name, _)| !goes(name));
        let changed = Self::of(before.chain(put).chain(behind), 0, size);
        *self = Self {
            changes: self.changes + 1,
            ..changed
        };
        Ok(())
    }

    fn find(&self, name: &[u8]) -> Option<&[u8]> {
        let mut lines = self.iter();
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.text[..];
        std::iter::from_fn(move || {
            let (name, after) = rest.split_first_chunk()?;
            let (value, after) = after.split_first_chunk()?;
            let (name, after) = after.split_at_checked(u32::from_le_bytes(*name) as usize)?;
            let (value, after) = after.split_at_checked(u32::from_le_bytes(*value) as usize)?;
            rest = after;
            Some((name, value))
        })
    }

    fn to_map(&self) -> HeaderMap {
        // Room for what filters add.
        let mut map = HeaderMap::with_capacity(self.count + 2);
        for (name, value) in self.iter() {
            let value = HeaderValue::from_maybe_shared(self.text.slice_ref(value));
            // A map would hold them, as was promised.
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
                map.append(name, value);
            }
        }
        map
    }
}

/// No header is longer than this can say.
fn length(text: &[u8]) -> [u8; 4] {
    u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes()
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
        HeaderSection::Text(HeaderLines::of(PAIRS.into_iter(), 0, 0))
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
            assert_eq!(text.count(name), map.count(name));
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
        let kept = section.kept(false);
        section.map_mut().insert("x-empty", HeaderValue::from_static("1"));
        assert_eq!(section.find(b"x-empty"), Some(&b"1"[..]));
        let (later, held) = (section.kept(false), section.kept(true));
        section.map_mut().clear();
        assert!(section.is_empty() && matches!((&later, held), (HeaderSection::Text(_), HeaderSection::Map(_))));
        assert_eq!(
            (kept.find(b"x-empty"), later.find(b"x-empty")),
            (Some(&b""[..]), Some(&b"1"[..]))
        );
        assert_eq!(later.into_map().get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn a_text_is_changed_in_place_as_its_map_is() {
        let value = HeaderValue::from_static;
        let mut text = text();
        let mut map = text.clone().into_map();
        text.replace(b"Set-Cookie", b"c=3").expect("a text");
        map.insert("set-cookie", value("c=3"));
        assert_eq!(text.find(b"set-cookie"), Some(&b"c=3"[..]));
        text.add(b"x-empty", b"2").expect("a text");
        map.append("x-empty", value("2"));
        text.remove(b"x-colons").expect("a text");
        map.remove("x-colons");
        text.remove(b"x-none").expect("nothing to do");
        text.replace(b"x-new", b"").expect("a text");
        map.insert("x-new", value(""));
        assert_eq!(all(&text), all(&HeaderSection::Map(map)));
        assert!(matches!(text, HeaderSection::Text(_)) && text.len() == 5);
    }

    #[test]
    fn what_is_changed_often_or_long_or_tells_where_a_message_ends_is_for_a_map() {
        let mut often = text();
        for _ in 0..MAX_CHANGES {
            often.add(b"x", b"1").expect("a text");
        }
        let before = all(&often).len();
        assert!(often.add(b"x", b"1").is_err());
        assert_eq!(all(&often).len(), before);
        assert!(text().replace(b"x", &[b'v'; MAX_CHANGED]).is_err());
        for framing in [&b"Connection"[..], b"content-length", b"transfer-encoding"] {
            let mut framed = HeaderSection::Text(HeaderLines::of([(framing, &b"1"[..])].into_iter(), 1, 0));
            assert!(framed.replace(framing, b"1").is_err() && framed.add(framing, b"1").is_err());
            assert!(framed.remove(framing).is_err());
        }
        often.map_mut();
        assert!(often.remove(b"x").is_err());
    }

    #[test]
    fn a_text_takes_what_a_map_takes_and_nothing_else() {
        for byte in 0..=u8::MAX {
            let name = [b'x', byte];
            let fits = HeaderName::from_bytes(&name).is_ok();
            assert_eq!(text().replace(&name, b"1").is_ok(), fits, "{byte} in a name");
            let fits = HeaderValue::from_bytes(&[byte]).is_ok();
            assert_eq!(text().replace(b"x", &[byte]).is_ok(), fits, "{byte} in a value");
        }
        assert!(text().replace(b"", b"1").is_err());
    }

    #[test]
    fn a_text_has_what_it_was_made_of_with_names_in_lower_case() {
        let lines = HeaderLines::of(PAIRS.into_iter(), PAIRS.len(), 64);
        let expect = PAIRS.map(|(name, value)| (name.to_ascii_lowercase(), value));
        let found: Vec<_> = lines.iter().map(|(name, value)| (name.to_vec(), value)).collect();
        assert_eq!(found, expect);
        assert_eq!(HeaderLines::of([].into_iter(), 0, 0).iter().count(), 0);
    }
}
