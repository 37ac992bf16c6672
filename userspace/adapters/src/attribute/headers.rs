//! Headers as a borrowed view: looked up where the proxy keeps them, copied only for somebody outside.

use std::collections::{HashMap, hash_map::Entry};

/// Look-up of request headers.
pub trait Headers {
    /// First value of a header, by lower-case name. `None` also where the value is no UTF-8.
    fn get(&self, name: &str) -> Option<&str>;

    /// Shows every header, in order: name and value, which need not be UTF-8.
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));

    /// Shows every value of a header, by lower-case name, in order: whoever refuses something must not see the first one only.
    fn values(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.each(&mut |found, value| {
            if found.eq_ignore_ascii_case(name) {
                visit(value);
            }
        });
    }
}

/// Those that are `wanted`, by lower-case name; values of one name are joined by commas (cookies by semicolons), as Envoy does.
/// Bytes that are no UTF-8 are U+FFFD.
pub(crate) fn joined(headers: &dyn Headers, wanted: impl Fn(&str) -> bool) -> HashMap<String, String> {
    let mut joined: HashMap<String, String> = HashMap::new();
    headers.each(&mut |name, value| {
        if !wanted(name) {
            return;
        }
        let name = name.to_ascii_lowercase();
        let between = if name == "cookie" { "; " } else { "," };
        let value = String::from_utf8_lossy(value);
        match joined.entry(name) {
            Entry::Occupied(mut values) => values.get_mut().extend([between, &*value]),
            Entry::Vacant(place) => _ = place.insert(value.into_owned()),
        }
    });
    joined
}

/// For connections of which nobody looks at requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }

    fn each(&self, _visit: &mut dyn FnMut(&str, &[u8])) {}
}

impl Headers for http::HeaderMap {
    fn get(&self, name: &str) -> Option<&str> {
        let value = http::HeaderMap::get(self, name)?;
        std::str::from_utf8(value.as_bytes()).ok()
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for (name, value) in self {
            visit(name.as_str(), value.as_bytes());
        }
    }

    fn values(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for value in self.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

/// Name and value, in order; for tests and for callers with a handful of headers.
impl Headers for &[(&str, &str)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for (name, value) in *self {
            visit(name, value.as_bytes());
        }
    }
}
