//! A request as access rules, splits and checks look at it: borrowed, nothing copied.

use std::borrow::Cow;

use http::{header::HOST, request::Parts};
use weft_adapters::attribute::RequestView;
use weft_policy::HttpRequestView;

/// The head of a request.
pub(crate) struct View<'a> {
    head: &'a Parts,
    path: Cow<'a, str>,
}

// === impl View ===

impl<'a> View<'a> {
    /// As received.
    pub(crate) fn new(head: &'a Parts) -> Self {
        Self {
            head,
            path: Cow::Borrowed(head.uri.path()),
        }
    }

    /// As a server may understand it: escapes decoded, `\` as `/`, parameters of segments (RFC 3986, 3.3: `;` and what follows)
    /// and empty segments gone, `.` and `..` resolved.
    ///
    /// `None` if that is the path as received. Servers differ in how much of this they do, so a path that has two
    /// readings must be allowed under both: `/public/..%2fadmin` would else pass a rule about `/public`.
    pub(crate) fn resolved(head: &'a Parts) -> Option<Self> {
        let path = resolve(head.uri.path())?;
        Some(Self {
            head,
            path: Cow::Owned(path),
        })
    }
}

impl HttpRequestView for View<'_> {
    fn method(&self) -> &str {
        self.head.method.as_str()
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn each_value(&self, name: &str, visit: &mut dyn FnMut(Option<&str>)) {
        for value in self.head.headers.get_all(name) {
            visit(std::str::from_utf8(value.as_bytes()).ok());
        }
    }
}

/// As checks look at it.
pub(crate) fn of_checks(head: &Parts) -> RequestView<'_> {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    RequestView {
        method: head.method.as_str(),
        path: head.uri.path_and_query().map_or("/", |path| path.as_str()),
        host: host.unwrap_or_default(),
        headers: &head.headers,
    }
}

/// The target in its second reading (see [`View::resolved`]), with its query.
pub(crate) fn resolved_target(head: &Parts) -> Option<String> {
    let mut target = resolve(head.uri.path())?;
    if let Some(query) = head.uri.query() {
        target.push('?');
        target.push_str(query);
    }
    Some(target)
}

/// Whether servers may understand the path in another way than as it stands.
pub(crate) fn has_two_readings(path: &str) -> bool {
    resolve(path).is_some()
}

fn resolve(path: &str) -> Option<String> {
    if !path.contains(['%', '\\', ';']) && !path.contains("//") && !path.contains("/.") {
        return None;
    }
    let decoded = decode(path).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        // Servers of Java take them off before they look at dots: `/..;/` leads up there.
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => _ = segments.pop(),
            other => segments.push(other),
        }
    }
    let mut resolved = String::with_capacity(decoded.len());
    for segment in &segments {
        resolved.push('/');
        resolved.push_str(segment);
    }
    let is_folder = decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..");
    if resolved.is_empty() || is_folder {
        resolved.push('/');
    }
    (resolved != path).then_some(resolved)
}

/// Percent escapes decoded once; a broken escape stays, as bytes that are no UTF-8 become U+FFFD.
fn decode(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_two_readings_shows_the_second() {
        for (path, expect) in [
            ("/public", None),
            ("/public/a.b/..c", Some("/public/a.b/..c")),
            ("/public/../admin", Some("/admin")),
            ("/public/..%2Fadmin", Some("/admin")),
            ("/public/%2e%2e/admin", Some("/admin")),
            ("/public\\..\\admin", Some("/admin")),
            ("//admin", Some("/admin")),
            ("/%61dmin", Some("/admin")),
            ("/public/..;/admin", Some("/admin")),
            ("/public/..;x=1/admin;y", Some("/admin")),
            ("/;x/admin", Some("/admin")),
            ("/public/..%3b/admin", Some("/admin")),
            ("/a;b/c;d", Some("/a/c")),
            ("/a/./b/", Some("/a/b/")),
            ("/a/..", Some("/")),
            ("/../..", Some("/")),
            ("/100%", Some("/100%")),
            ("/%zz", Some("/%zz")),
            ("/%ff", Some("/\u{fffd}")),
        ] {
            let expect = expect.filter(|other| *other != path);
            assert_eq!(resolve(path).as_deref(), expect, "{path}");
        }
    }
}
