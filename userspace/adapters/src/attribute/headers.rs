//! Headers as a borrowed view: looked up where the proxy keeps them, never copied into a map.

/// Look-up of request headers.
pub trait Headers {
    /// First value of a header, by lower-case name. `None` also where the value is no UTF-8.
    fn get(&self, name: &str) -> Option<&str>;
}

/// For connections of which nobody looks at requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl Headers for http::HeaderMap {
    fn get(&self, name: &str) -> Option<&str> {
        let value = http::HeaderMap::get(self, name)?;
        std::str::from_utf8(value.as_bytes()).ok()
    }
}

/// Name and value, in order; for tests and for callers with a handful of headers.
impl Headers for &[(&str, &str)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }
}
