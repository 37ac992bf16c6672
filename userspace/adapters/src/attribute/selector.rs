//! Which value of a request an adapter looks at: an attribute, one header, one query parameter, one cookie.

use std::{
    borrow::Cow,
    fmt::{self, Write},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};

use super::{Attribute, Bag, TextBuffer, Value};

/// Resolved when configuration is loaded; a request only indexes by it.
///
/// Written as Mixer writes it: `source.ip`, `request.headers["x-user"]`, `request.query_params["key"]`,
/// `request.cookies["session"]` (quotes may be left out).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Attribute(Attribute),
    /// By lower-case name.
    Header(String),
    /// By its decoded name; its value is decoded, too.
    Query(String),
    Cookie(String),
}

/// What was written names nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{found}` is no attribute, expected one such as `source.ip` or `request.path`, or `request.headers[\"NAME\"]`, \
     `request.query_params[\"NAME\"]`, `request.cookies[\"NAME\"]`"
)]
pub struct UnknownSelector {
    pub found: String,
}

// === impl Selector ===

impl Selector {
    /// Shows every value that the request has under this name (each line of a header, each parameter, each cookie), and
    /// whether it is text: bytes that are no UTF-8 are shown as U+FFFD. Allocates for these only, and for parameters that
    /// are encoded.
    pub fn each(&self, bag: &Bag<'_>, visit: &mut dyn FnMut(Value<'_>, bool)) {
        match (self, bag.request) {
            (Self::Attribute(attribute), _) => {
                if let Some(value) = bag.get(*attribute) {
                    visit(value, true);
                }
            }
            (_, None) => {}
            (Self::Header(name), Some(request)) => request.headers.values(name, &mut |value| show(value, visit)),
            (Self::Query(name), Some(request)) => request.query_params(name).for_each(|value| {
                // One that holds U+FFFD by itself, encoded, is taken for broken.
                let is_text = matches!(value, Cow::Borrowed(_)) || !value.contains(char::REPLACEMENT_CHARACTER);
                visit(Value::Str(&value), is_text);
            }),
            (Self::Cookie(name), Some(request)) => request.cookies(name, &mut |value| show(value, visit)),
        }
    }

    /// Appends every value to the key of something that is kept: lengths in front, and a mark behind the last, so that no
    /// two lists of values are written alike.
    pub(crate) fn write_key(&self, bag: &Bag<'_>, key: &mut impl Write) {
        // Buffers grow: writing cannot fail.
        self.each(bag, &mut |found, _| {
            let mut buffer = TextBuffer::default();
            let found = found.text(&mut buffer);
            _ = write!(key, "{}:{found}", found.len());
        });
        _ = key.write_char('-');
    }
}

impl FromStr for Selector {
    type Err = UnknownSelector;

    fn from_str(text: &str) -> Result<Self, UnknownSelector> {
        let unknown = || UnknownSelector { found: text.to_owned() };
        let Some((map, key)) = text.strip_suffix(']').and_then(|text| text.split_once('[')) else {
            return match Attribute::from_name(text) {
                // A whole map has no text.
                None | Some(Attribute::RequestHeaders) => Err(unknown()),
                Some(attribute) => Ok(Self::Attribute(attribute)),
            };
        };
        let key = key
            .strip_prefix('"')
            .and_then(|key| key.strip_suffix('"'))
            .unwrap_or(key);
        if key.is_empty() || key.contains(['"', '[', ']']) {
            return Err(unknown());
        }
        match map {
            "request.headers" => http::HeaderName::from_bytes(key.as_bytes())
                .map(|name| Self::Header(name.as_str().to_owned()))
                .map_err(|_| unknown()),
            "request.query_params" => Ok(Self::Query(key.to_owned())),
            "request.cookies" => Ok(Self::Cookie(key.to_owned())),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attribute(attribute) => f.write_str(attribute.name()),
            Self::Header(name) => write!(f, "request.headers[\"{name}\"]"),
            Self::Query(name) => write!(f, "request.query_params[\"{name}\"]"),
            Self::Cookie(name) => write!(f, "request.cookies[\"{name}\"]"),
        }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

fn show(value: &[u8], visit: &mut dyn FnMut(Value<'_>, bool)) {
    let text = String::from_utf8_lossy(value);
    visit(Value::Str(&text), matches!(text, Cow::Borrowed(_)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::tests::{with_bag, with_path};

    /// What a selector shows, and whether it is text.
    fn shown(selector: &Selector, bag: &Bag<'_>) -> Vec<(String, bool)> {
        let mut shown = Vec::new();
        selector.each(bag, &mut |value, is_text| shown.push((value.to_string(), is_text)));
        shown
    }

    /// The request is `GET /a/b?c=d`.
    #[test]
    fn a_selector_leads_to_its_values() {
        let headers = [
            ("x-user", "ann"),
            ("X-User", "bob"),
            ("cookie", "a=1; session=\"s\"; b=2"),
        ];
        for (text, expect) in [
            ("request.method", &["GET"][..]),
            ("source.principal", &["default/client"]),
            ("source.ip", &[]),
            ("request.headers[\"X-User\"]", &["ann", "bob"]),
            ("request.headers[x-user]", &["ann", "bob"]),
            ("request.headers[x-other]", &[]),
            ("request.query_params[\"c\"]", &["d"]),
            ("request.query_params[\"d\"]", &[]),
            ("request.cookies[\"session\"]", &["s"]),
            ("request.cookies[b]", &["2"]),
            ("request.cookies[x]", &[]),
        ] {
            let selector: Selector = text.parse().unwrap();
            let expect: Vec<_> = expect.iter().map(|value| ((*value).to_owned(), true)).collect();
            assert_eq!(with_bag(&headers, |bag| shown(&selector, &bag)), expect, "{text}");
            assert_eq!(selector.to_string().parse(), Ok(selector));
        }
    }

    #[test]
    fn parameters_are_found_however_they_are_encoded() {
        let selector: Selector = "request.query_params[user]".parse().unwrap();
        for (path, expect) in [
            ("/?user=bob", &[("bob", true)][..]),
            ("/?user=%62ob", &[("bob", true)]),
            ("/?us%65r=bob", &[("bob", true)]),
            ("/?us%65r=%62%6f%62", &[("bob", true)]),
            ("/?user=a+b%20c", &[("a b c", true)]),
            ("/?user=a&x=1&user=b", &[("a", true), ("b", true)]),
            ("/?user", &[("", true)]),
            ("/?user=%zz%4", &[("%zz%4", true)]),
            ("/?user=%ff", &[("\u{fffd}", false)]),
            ("/?%75ser=1%00", &[("1\0", true)]),
            ("/?User=bob", &[]),
            ("/user=bob", &[]),
        ] {
            let found = with_path(path, |bag| shown(&selector, &bag));
            let expect: Vec<_> = expect
                .iter()
                .map(|(value, text)| ((*value).to_owned(), *text))
                .collect();
            assert_eq!(found, expect, "{path}");
        }
    }

    #[test]
    fn what_names_nothing_is_refused_with_the_names_there_are() {
        for text in [
            "",
            "source.colour",
            "request.headers",
            "request.headers[]",
            "request.headers[\"\"]",
            "request.headers[a b]",
            "request.headers[\"a\"",
            "source.labels[\"app\"]",
        ] {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("`{text}` is no attribute, expected one such as"))
            );
        }
    }
}
