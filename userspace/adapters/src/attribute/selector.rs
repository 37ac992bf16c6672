//! Which value of a request an adapter looks at: an attribute, one header, one query parameter, one cookie.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use super::{Attribute, Bag, Value};

/// Resolved when configuration is loaded; a request only indexes by it.
///
/// Written as Mixer writes it: `source.ip`, `request.headers["x-user"]`, `request.query_params["key"]`,
/// `request.cookies["session"]` (quotes may be left out).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Attribute(Attribute),
    /// By lower-case name.
    Header(String),
    /// Its raw value, not percent-decoded.
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
    /// The value; `None`: this request has none.
    pub fn get<'a>(&self, bag: &Bag<'a>) -> Option<Value<'a>> {
        Some(match self {
            Self::Attribute(attribute) => bag.get(*attribute)?,
            Self::Header(name) => Value::Str(bag.header(name)?),
            Self::Query(name) => Value::Str(bag.request?.query_param(name)?),
            Self::Cookie(name) => Value::Str(bag.request?.cookie(name)?),
        })
    }

    /// Shows every value that the request has under this name (each line of a header, each parameter, each cookie), and whether
    /// it is text: bytes that are no UTF-8 are shown as U+FFFD. Allocates for these only.
    pub fn each(&self, bag: &Bag<'_>, visit: &mut dyn FnMut(Value<'_>, bool)) {
        match (self, bag.request) {
            (Self::Attribute(attribute), _) => {
                if let Some(value) = bag.get(*attribute) {
                    visit(value, true);
                }
            }
            (_, None) => {}
            (Self::Header(name), Some(request)) => request.headers.values(name, &mut |value| show(value, visit)),
            (Self::Query(name), Some(request)) => request
                .query_params(name)
                .for_each(|value| visit(Value::Str(value), true)),
            (Self::Cookie(name), Some(request)) => request.cookies(name, &mut |value| show(value, visit)),
        }
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
    use crate::attribute::tests::with_bag;

    /// The request is `GET /a/b?c=d`.
    #[test]
    fn a_selector_leads_to_its_value() {
        let headers = [("x-user", "ann"), ("cookie", "a=1; session=\"s\"; b=2")];
        for (text, expect) in [
            ("request.method", Some("GET")),
            ("source.principal", Some("default/client")),
            ("source.ip", None),
            ("request.headers[\"X-User\"]", Some("ann")),
            ("request.headers[x-user]", Some("ann")),
            ("request.headers[x-other]", None),
            ("request.query_params[\"c\"]", Some("d")),
            ("request.query_params[\"d\"]", None),
            ("request.cookies[\"session\"]", Some("s")),
            ("request.cookies[b]", Some("2")),
            ("request.cookies[x]", None),
        ] {
            let selector: Selector = text.parse().unwrap();
            let found = with_bag(&headers, |bag| selector.get(&bag).map(|value| value.to_string()));
            assert_eq!(found.as_deref(), expect, "{text}");
            assert_eq!(selector.to_string().parse(), Ok(selector));
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
