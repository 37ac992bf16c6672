//! Connections to the servers that adapters talk to: TCP, and TLS over it where that is asked for.

use std::{fmt, io, sync::Arc};

use http::Uri;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::tls::Tls;

/// `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// A server.
#[derive(Debug, Clone)]
pub struct Dialer {
    pub address: Address,
    pub tls: Option<Arc<Tls>>,
}

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

// === impl Address ===

impl Address {
    /// `None`: no `host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        // What is no authority of an URL (spaces, slashes) is no address either.
        let authority: http::uri::Authority = text.parse().ok()?;
        let port = authority.port_u16().filter(|port| *port > 0)?;
        let host = authority.host();
        (!host.is_empty() && !text.contains('@')).then(|| Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

// === impl Dialer ===

impl Dialer {
    /// To the host of an URL; where it names no port, to that of HTTP with or without TLS.
    pub fn to_url(url: &Uri, tls: Option<Arc<Tls>>) -> Self {
        let usual = if tls.is_some() { 443 } else { 80 };
        Self {
            address: Address {
                host: url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
                port: url.port_u16().unwrap_or(usual),
            },
            tls,
        }
    }

    /// With no delay for small writes.
    ///
    /// # Errors
    /// The name has no address, none of them answers, or no TLS came about.
    pub async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.wrap(stream).await?),
        })
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// Whether this is an URL of a server that is spoken to by HTTP, with or without TLS.
pub fn is_http(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for (text, expect) in [
            ("localhost:9191", Some(("localhost", 9191))),
            ("10.0.0.1:1", Some(("10.0.0.1", 1))),
            ("[::1]:80", Some(("::1", 80))),
            ("localhost", None),
            ("localhost:0", None),
            ("localhost:99999", None),
            (":80", None),
            ("a b:80", None),
            ("http://a:80", None),
            ("user@a:80", None),
        ] {
            let found = Address::parse(text);
            let expect = expect.map(|(host, port)| Address {
                host: host.to_owned(),
                port,
            });
            assert_eq!(found, expect, "{text}");
            assert!(found.is_none_or(|address| address.to_string() == text));
        }
    }

    #[test]
    fn an_url_without_port_has_the_usual_one() {
        let to = |url: &str| Dialer::to_url(&url.parse().unwrap(), None).address.to_string();
        assert_eq!(to("http://a/b"), "a:80");
        assert_eq!(to("http://[::1]:8080/b"), "[::1]:8080");
    }
}
