//! Heads and trailers as filters see them: with `:method`, `:path`, `:authority`, `:scheme` and `:status` among the headers.
//!
//! `host` is `:authority`, as in Envoy, and is not listed beside it.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::HOST,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    abi::Status,
    pairs::{self, MAX_BYTES, MAX_PAIRS},
};
use crate::stream::{self, HeaderSection, RequestHead, ResponseHead};

/// Longest value of a header that a filter may set, bytes.
const MAX_VALUE: usize = 64 << 10;

/// A map that a filter reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum MapRef<'a> {
    Request(&'a RequestHead),
    Response(&'a ResponseHead),
    Plain(&'a HeaderMap),
}

/// A map that a filter changes.
#[derive(Debug)]
pub(super) enum MapMut<'a> {
    Request(&'a mut RequestHead),
    Response(&'a mut ResponseHead),
    Plain(&'a mut HeaderMap),
}

/// No head can hold it. Modules are not told: Envoy answers `Ok`, and SDKs end the module on anything else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit;

// === impl RequestHead ===

impl RequestHead {
    /// A copy for later callbacks. `held`: as in [`HeaderSection::kept`].
    pub(super) fn kept(&self, held: bool) -> Self {
        Self {
            method: self.method.clone(),
            uri: self.uri.clone(),
            version: self.version,
            headers: self.headers.kept(held),
        }
    }

    pub(super) fn authority(&self) -> Option<&[u8]> {
        match self.uri.authority() {
            Some(authority) => Some(authority.as_str().as_bytes()),
            None => self.headers.find(b"host"),
        }
    }

    /// `Host` headers.
    fn hosts(&self) -> usize {
        self.headers.count(b"host")
    }

    pub(super) fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    pub(super) fn scheme(&self) -> &str {
        self.uri.scheme_str().unwrap_or("http")
    }

    fn pseudo(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            b":method" => Some(self.method.as_str().as_bytes()),
            b":path" => self.uri.path_and_query().map(|path| path.as_str().as_bytes()),
            b":authority" => self.authority(),
            b":scheme" => Some(self.scheme().as_bytes()),
            _ => None,
        }
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unfit> {
        if value.len() > MAX_VALUE {
            return Err(Unfit);
        }
        match name {
            b":method" => self.method = Method::from_bytes(value).map_err(|_| Unfit)?,
            b":path" => {
                let path = PathAndQuery::try_from(value).map_err(|_| Unfit)?;
                let mut parts = self.uri.clone().into_parts();
                parts.path_and_query = Some(path);
                self.uri = Uri::from_parts(parts).map_err(|_| Unfit)?;
            }
            b":authority" => {
                let authority = Authority::try_from(value).map_err(|_| Unfit)?;
                if self.uri.authority().is_none() || self.hosts() > 0 {
                    self.headers.map_mut().insert(HOST, header_value(value)?);
                }
                if self.uri.authority().is_some() {
                    let mut parts = self.uri.clone().into_parts();
                    parts.authority = Some(authority);
                    self.uri = Uri::from_parts(parts).map_err(|_| Unfit)?;
                }
            }
            b":scheme" => {
                let scheme = Scheme::try_from(value).map_err(|_| Unfit)?;
                // Without authority the URI has no place for one: it is what the connection says.
                if self.uri.authority().is_some() {
                    let mut parts = self.uri.clone().into_parts();
                    parts.scheme = Some(scheme);
                    self.uri = Uri::from_parts(parts).map_err(|_| Unfit)?;
                }
            }
            _ => return Err(Unfit),
        }
        Ok(())
    }
}

// === impl MapRef ===

impl<'a> MapRef<'a> {
    /// The first value under `name`.
    pub fn get(self, name: &[u8]) -> Option<&'a [u8]> {
        match self {
            Self::Request(head) if name.starts_with(b":") => head.pseudo(name),
            Self::Request(head) if is_host(name) => head.authority(),
            Self::Response(head) if name == b":status" => Some(head.status.as_str().as_bytes()),
            Self::Request(head) => head.headers.find(name),
            Self::Response(head) => head.headers.find(name),
            Self::Plain(headers) => Some(headers.get(str::from_utf8(name).ok()?)?.as_bytes()),
        }
    }

    /// All pairs, `:` first.
    pub fn pairs(self) -> Vec<(&'a [u8], &'a [u8])> {
        let mut pairs: Vec<(&[u8], &[u8])> = Vec::with_capacity(self.len());
        match self {
            Self::Request(head) => {
                if let Some(authority) = head.authority() {
                    pairs.push((b":authority", authority));
                }
                pairs.push((b":path", head.path().as_bytes()));
                pairs.push((b":method", head.method.as_str().as_bytes()));
                pairs.push((b":scheme", head.scheme().as_bytes()));
                head.headers.each(|name, value| {
                    if !is_host(name) {
                        pairs.push((name, value));
                    }
                });
            }
            Self::Response(head) => {
                pairs.push((b":status", head.status.as_str().as_bytes()));
                head.headers.each(|name, value| pairs.push((name, value)));
            }
            Self::Plain(headers) => pairs.extend(stream::pairs(headers)),
        }
        pairs
    }

    /// How many pairs there are.
    pub fn len(self) -> usize {
        match self {
            Self::Request(head) => {
                let hosts = head.hosts();
                let authority = usize::from(head.uri.authority().is_some() || hosts > 0);
                3 + authority + head.headers.len() - hosts
            }
            Self::Response(head) => 1 + head.headers.len(),
            Self::Plain(headers) => headers.len(),
        }
    }
}

// === impl MapMut ===

impl MapMut<'_> {
    fn headers(&mut self) -> &mut HeaderMap {
        match self {
            Self::Request(head) => head.headers.map_mut(),
            Self::Response(head) => head.headers.map_mut(),
            Self::Plain(headers) => headers,
        }
    }

    /// What may be a text.
    fn section(&mut self) -> Option<&mut HeaderSection> {
        match self {
            Self::Request(head) => Some(&mut head.headers),
            Self::Response(head) => Some(&mut head.headers),
            Self::Plain(_) => None,
        }
    }

    /// Whether `name` is no header; if so, it was set.
    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Unfit> {
        match self {
            Self::Request(head) if name.starts_with(b":") => head.set_pseudo(name, value)?,
            Self::Request(head) if is_host(name) => head.set_pseudo(b":authority", value)?,
            Self::Response(head) if name == b":status" => {
                head.status = StatusCode::from_bytes(value).map_err(|_| Unfit)?;
            }
            _ if name.starts_with(b":") => return Err(Unfit),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Of names and values, without what begins with `:`.
    fn bytes(&self) -> usize {
        let mut bytes = 0;
        let count = |name: &[u8], value: &[u8]| bytes += name.len() + value.len();
        match self {
            Self::Request(head) => head.headers.each(count),
            Self::Response(head) => head.headers.each(count),
            Self::Plain(headers) => bytes = bytes_of(headers),
        }
        bytes
    }

    /// # Errors
    /// Nothing was added.
    pub fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unfit> {
        if self.bytes() + name.len() + value.len() > MAX_BYTES {
            return Err(Unfit);
        }
        self.append(name, value)
    }

    fn append(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unfit> {
        if !self.set_pseudo(name, value)? {
            if self.section().is_some_and(|section| section.add(name, value).is_ok()) {
                return Ok(());
            }
            let (name, value) = (header_name(name)?, header_value(value)?);
            let headers = self.headers();
            // The map itself ends far beyond, and then by a panic of whoever adds the next.
            if headers.len() >= MAX_PAIRS {
                return Err(Unfit);
            }
            headers.try_append(name, value).map_err(|_| Unfit)?;
        }
        Ok(())
    }

    /// # Errors
    /// What begins with `:` stays as it was; of anything else there is none now: what the client sent must not pass for what the
    /// filter wanted in its place.
    pub fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unfit> {
        if !self.set_pseudo(name, value)? {
            if self
                .section()
                .is_some_and(|section| section.replace(name, value).is_ok())
            {
                return Ok(());
            }
            let name = header_name(name)?;
            let headers = self.headers();
            let Ok(value) = header_value(value) else {
                headers.remove(name);
                return Err(Unfit);
            };
            if headers.len() >= MAX_PAIRS && !headers.contains_key(&name) {
                return Err(Unfit);
            }
            let before = bytes_of(headers);
            let goes: usize = headers
                .get_all(&name)
                .iter()
                .map(|value| name.as_str().len() + value.len())
                .sum();
            // What came larger may shrink.
            if before - goes + name.as_str().len() + value.len() > MAX_BYTES.max(before) {
                headers.remove(name);
                return Err(Unfit);
            }
            headers.try_insert(name, value).map_err(|_| Unfit)?;
        }
        Ok(())
    }

    /// Removes all values under `name`. What begins with `:` stays: a head has it.
    pub fn remove(&mut self, name: &[u8]) {
        let host = is_host(name) && matches!(self, Self::Request(_));
        if host || self.section().is_some_and(|section| section.remove(name).is_ok()) {
            return;
        }
        if let Ok(name) = str::from_utf8(name) {
            self.headers().remove(name);
        }
    }

    /// Has `pairs` and nothing else, but for what begins with `:` and is not among them. Says how many of them are unfit.
    pub fn set_all(&mut self, pairs: &[(&[u8], &[u8])]) -> u64 {
        let host = match self {
            Self::Request(head) => head.headers.map_mut().remove(HOST),
            _ => None,
        };
        self.headers().clear();
        if let Some(host) = host {
            self.headers().insert(HOST, host);
        }
        self.add_all(pairs)
    }

    /// `pairs` were encoded, and so are bounded.
    fn add_all(&mut self, pairs: &[(&[u8], &[u8])]) -> u64 {
        let unfit = |pair: &&(&[u8], &[u8])| self.append(pair.0, pair.1).is_err();
        pairs.iter().filter(unfit).count() as u64
    }
}

/// Headers without a head, from encoded pairs; and how many of these are unfit.
pub(super) fn plain(encoded: &[u8]) -> Result<(HeaderMap, u64), Status> {
    let mut headers = HeaderMap::new();
    let pairs = pairs::decode(encoded).ok_or(Status::BadArgument)?;
    let unfit = MapMut::Plain(&mut headers).add_all(&pairs);
    Ok((headers, unfit))
}

fn bytes_of(headers: &HeaderMap) -> usize {
    stream::pairs(headers)
        .map(|(name, value)| name.len() + value.len())
        .sum()
}

fn is_host(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"host")
}

fn header_name(name: &[u8]) -> Result<HeaderName, Unfit> {
    HeaderName::from_bytes(name).map_err(|_| Unfit)
}

fn header_value(value: &[u8]) -> Result<HeaderValue, Unfit> {
    if value.len() > MAX_VALUE {
        return Err(Unfit);
    }
    HeaderValue::from_bytes(value).map_err(|_| Unfit)
}

#[cfg(test)]
mod tests {
    use http::request;

    use super::*;

    fn head(request: request::Builder) -> RequestHead {
        let mut parts = request.body(()).expect("a request").into_parts().0;
        RequestHead::take(&mut parts)
    }

    fn text(value: Option<&[u8]>) -> Option<&str> {
        value.map(|value| str::from_utf8(value).expect("text"))
    }

    #[test]
    fn host_is_the_authority_in_both_forms_of_a_uri() {
        for request in [
            http::Request::builder().uri("/a?b").header("host", "shop"),
            http::Request::builder().uri("http://shop/a?b"),
        ] {
            let mut head = head(request.header("x", "1"));
            let map = MapRef::Request(&head);
            assert_eq!(text(map.get(b":authority")), Some("shop"));
            assert_eq!(text(map.get(b"Host")), Some("shop"));
            assert_eq!(text(map.get(b":path")), Some("/a?b"));
            assert_eq!(map.pairs().len(), map.len());
            assert!(map.pairs().iter().all(|(name, _)| *name != b"host"));
            let mut map = MapMut::Request(&mut head);
            map.replace(b":authority", b"other:81").expect("an authority");
            map.replace(b":path", b"/c").expect("a path");
            map.replace(b":method", b"PUT").expect("a method");
            let map = MapRef::Request(&head);
            assert_eq!(text(map.get(b"host")), Some("other:81"));
            assert_eq!(text(map.get(b":path")), Some("/c"));
            assert_eq!(text(map.get(b":method")), Some("PUT"));
        }
    }

    #[test]
    fn what_no_head_can_hold_is_unfit() {
        let mut head = head(http::Request::builder().uri("/"));
        let mut map = MapMut::Request(&mut head);
        for (name, value) in [
            (&b":path"[..], &b"/ \n"[..]),
            (b":method", b"G T"),
            (b":status", b"200"),
            (b"bad name", b"1"),
            (b"x", b"a\r\nb: c"),
        ] {
            assert_eq!(map.replace(name, value), Err(Unfit), "{name:?}");
        }
        let mut response = ResponseHead::default();
        let mut map = MapMut::Response(&mut response);
        assert_eq!(map.replace(b":status", b"99999"), Err(Unfit));
        map.replace(b":status", b"404").expect("a status");
        assert_eq!(response.status, 404);
    }

    #[test]
    fn a_map_is_bounded_and_has_room_for_the_proxy() {
        let mut headers = HeaderMap::new();
        let mut map = MapMut::Plain(&mut headers);
        for number in 0..MAX_PAIRS {
            map.add(format!("x-{number}").as_bytes(), b"1").expect("room");
        }
        assert_eq!(map.add(b"x-0", b"2"), Err(Unfit));
        assert_eq!(map.add(b"more", b"1"), Err(Unfit));
        assert_eq!(map.replace(b"more", b"1"), Err(Unfit));
        map.replace(b"x-0", b"2").expect("in place of the last");
        map.remove(b"x-0");
        let long = vec![b'v'; MAX_VALUE + 1];
        assert_eq!(map.add(b"long", &long), Err(Unfit));
        map.add(b"long", &long[1..]).expect("room again");
        headers.append("by-the-proxy", HeaderValue::from_static("1"));
    }

    #[test]
    fn the_bytes_of_a_map_are_bounded_and_a_larger_one_can_shrink() {
        let value = [b'v'; MAX_VALUE];
        let mut headers = HeaderMap::new();
        for _ in 0..20 {
            headers.append("came", HeaderValue::from_bytes(&value).expect("a value"));
        }
        headers.append("other", HeaderValue::from_bytes(&value).expect("a value"));
        let mut map = MapMut::Plain(&mut headers);
        assert_eq!(map.add(b"x", b"1"), Err(Unfit));
        map.replace(b"other", b"1").expect("it shrinks");
        assert_eq!(map.replace(b"other", &value), Err(Unfit));
        assert_eq!(text(MapRef::Plain(&headers).get(b"other")), None);
        assert_eq!(headers.len(), 20);
        let mut map = MapMut::Plain(&mut headers);
        map.replace(b"came", &value).expect("it shrinks");
        for number in 1..14 {
            map.replace(format!("x{number}").as_bytes(), &value).expect("room");
        }
        assert_eq!(map.add(b"x14", &value), Ok(()));
        assert_eq!(map.replace(b"x15", &value), Err(Unfit));
        map.replace(b"x14", &value).expect("in place of the last");
    }

    #[test]
    fn what_begins_with_a_colon_is_bounded_too() {
        let mut head = head(http::Request::builder().uri("http://shop/"));
        let long = [b'v'; MAX_VALUE + 1];
        for name in [&b":method"[..], b":authority", b"host"] {
            assert_eq!(MapMut::Request(&mut head).replace(name, &long), Err(Unfit));
        }
    }

    #[test]
    fn a_new_set_keeps_the_head() {
        let mut head = head(
            http::Request::builder()
                .uri("/a")
                .header("host", "shop")
                .header("x", "1"),
        );
        let unfit = MapMut::Request(&mut head).set_all(&[(b"y", b"2"), (b"y", b"\0"), (b"y", b"3")]);
        assert_eq!(unfit, 1);
        let map = MapRef::Request(&head);
        assert_eq!(text(map.get(b":authority")), Some("shop"));
        assert_eq!(map.len(), 6);
        assert_eq!(text(map.get(b"x")), None);
    }
}
