//! The bag itself: views over what the proxy already has, and typed values out of them.

use std::{borrow::Cow, fmt, net::IpAddr};

use super::{Attribute, Headers};
use crate::record::FlowProtocol;

/// All attributes of one connection or request, borrowed.
#[derive(Clone, Copy)]
pub struct Bag<'a> {
    /// Of the configuration that the request is judged under; later ones have higher numbers.
    pub generation: u64,
    pub source: PeerView<'a>,
    pub destination: DestinationView<'a>,
    /// `None` while only the connection is judged.
    pub request: Option<RequestView<'a>>,
    pub connection: ConnectionView<'a>,
    pub protocol: FlowProtocol,
}

/// The caller.
#[derive(Debug, Clone, Copy)]
pub struct PeerView<'a> {
    pub namespace: &'a str,
    pub service: Option<&'a str>,
    pub account: &'a str,
    pub ip: Option<IpAddr>,
}

/// The called side.
#[derive(Debug, Clone, Copy)]
pub struct DestinationView<'a> {
    pub namespace: &'a str,
    pub service: Option<&'a str>,
    pub account: Option<&'a str>,
    pub ip: IpAddr,
    pub port: u16,
}

/// The head of a request.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    pub method: &'a str,
    /// As received, query included.
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a dyn Headers,
}

/// What is known about the connection beside its ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectionView<'a> {
    pub mtls: bool,
    pub requested_server_name: Option<&'a str>,
}

/// `NAMESPACE/ACCOUNT`, put together only when it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
}

/// The value of an attribute.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Str(&'a str),
    Int(i64),
    Bool(bool),
    Ip(IpAddr),
    Principal(Principal<'a>),
    Headers(&'a dyn Headers),
}

// === impl Bag ===

impl<'a> Bag<'a> {
    /// The value of an attribute; `None`: this connection or request has none.
    pub fn get(&self, attribute: Attribute) -> Option<Value<'a>> {
        Some(match attribute {
            Attribute::SourceNamespace => Value::Str(self.source.namespace),
            Attribute::SourceService => Value::Str(self.source.service?),
            Attribute::SourcePrincipal => Value::Principal(self.source.principal()),
            Attribute::SourceIp => Value::Ip(self.source.ip?),
            Attribute::DestinationNamespace => Value::Str(self.destination.namespace),
            Attribute::DestinationService => Value::Str(self.destination.service?),
            Attribute::DestinationPrincipal => Value::Principal(self.destination.principal()?),
            Attribute::DestinationIp => Value::Ip(self.destination.ip),
            Attribute::DestinationPort => Value::Int(self.destination.port.into()),
            Attribute::RequestMethod => Value::Str(self.request?.method),
            Attribute::RequestPath => Value::Str(self.request?.path),
            Attribute::RequestUrlPath => Value::Str(self.request?.url_path()),
            Attribute::RequestHost => Value::Str(self.request?.host),
            Attribute::RequestHeaders => Value::Headers(self.request?.headers),
            Attribute::ContextProtocol => Value::Str(self.protocol.as_str()),
            Attribute::ConnectionMtls => Value::Bool(self.connection.mtls),
            Attribute::ConnectionRequestedServerName => Value::Str(self.connection.requested_server_name?),
        })
    }

    /// First value of a request header, by lower-case name.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.request?.headers.get(name)
    }
}

// === impl PeerView ===

impl<'a> PeerView<'a> {
    pub fn principal(&self) -> Principal<'a> {
        Principal {
            namespace: self.namespace,
            account: self.account,
        }
    }
}

// === impl DestinationView ===

impl<'a> DestinationView<'a> {
    pub fn principal(&self) -> Option<Principal<'a>> {
        Some(Principal {
            namespace: self.namespace,
            account: self.account?,
        })
    }
}

// === impl RequestView ===

impl<'a> RequestView<'a> {
    /// Path without query.
    pub fn url_path(&self) -> &'a str {
        self.path.split_once('?').map_or(self.path, |(path, _)| path)
    }

    /// All values of a query parameter; empty for one without `=`. Names and values are decoded as servers decode them: `+`
    /// is a space, `%XX` a byte, what is no UTF-8 then is U+FFFD. Allocates only for what is encoded.
    pub(crate) fn query_params(&self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        form_urlencoded::parse(query.as_bytes())
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// Shows all values of a cookie, in all lines, without quotes around them.
    pub(crate) fn cookies(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.headers
            .values("cookie", &mut |line| cookies(line, name).for_each(&mut *visit));
    }
}

/// Values of a cookie in a line, without quotes around them.
fn cookies<'a>(line: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = line.split(|byte| *byte == b';');
    let pairs = pairs.filter_map(|pair| {
        let (key, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        Some((key.trim_ascii(), value[1..].trim_ascii()))
    });
    pairs
        .filter(move |(key, _)| *key == name.as_bytes())
        .map(|(_, mut value)| {
            while let Some(rest) = value.strip_prefix(b"\"") {
                value = rest;
            }
            while let Some(rest) = value.strip_suffix(b"\"") {
                value = rest;
            }
            value
        })
}

// === impl Principal ===

impl fmt::Display for Principal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.account)
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    /// The text of a textual attribute.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// As an expression or a log line shows it. Headers have no text of their own.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) => f.write_str(text),
            Self::Int(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
            Self::Ip(address) => address.fmt(f),
            Self::Principal(principal) => principal.fmt(f),
            Self::Headers(_) => f.write_str("{...}"),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
