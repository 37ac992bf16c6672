//! Lists, keys and policies that live in a file or behind a URL: fetched off the request path, again and again.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Deserializer, de};
use tokio::{io::AsyncReadExt, time};

use crate::{
    dial::{self, Dialer},
    error::AdapterError,
    tls::{self, Alpn, BadTls, Tls, TlsParams},
};

mod latest;

pub use latest::Latest;

/// Longest a fetch may take. A slower server counts as one that does not answer; the last good content stays.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest content, in bytes. More is refused: it would be parsed and kept in memory.
pub const MAX_CONTENT: usize = 16 * 1024 * 1024;

/// First pause after a failed fetch. It doubles up to the usual interval.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Where content comes from: an absolute path, `file:///path`, or `http[s]://host[:port]/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    File(PathBuf),
    Url(Uri),
}

#[derive(Debug, thiserror::Error)]
#[error("`{found}` is no provider, expected an absolute path, `file:///path` or `http[s]://host[:port]/path`")]
pub struct UnknownProvider {
    pub found: String,
}

/// A provider that can be asked.
#[derive(Debug, Clone)]
pub struct Source {
    provider: Provider,
    tls: Option<Arc<Tls>>,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("fetch {url}: {source}")]
    Connect { url: Uri, source: io::Error },
    #[error("fetch {url}: {source}")]
    Exchange { url: Uri, source: hyper::Error },
    #[error("fetch {url}: answered {status}, expected 200")]
    Status { url: Uri, status: StatusCode },
    #[error("fetch {url}: the body broke off: {reason}")]
    Body { url: Uri, reason: String },
    #[error("fetch {from}: more than {MAX_CONTENT} bytes")]
    TooLarge { from: Provider },
    #[error("fetch {from}: no answer within {FETCH_TIMEOUT:?}")]
    Timeout { from: Provider },
}

// === impl Provider ===

impl Provider {
    /// Whether parameters of TLS make sense for it, as can be said without a look at files.
    ///
    /// # Errors
    /// [`BadTls`].
    pub fn check_tls(&self, tls: Option<&TlsParams>) -> Result<(), BadTls> {
        match self {
            Self::Url(url) => tls::check_url(url, tls),
            Self::File(_) if tls.is_some() => Err(BadTls::for_plain(self, "an `https` URL")),
            Self::File(_) => Ok(()),
        }
    }

    /// `tls`: parameters of TLS, for `https` alone.
    ///
    /// # Errors
    /// [`BadTls`].
    pub fn source(&self, tls: Option<&TlsParams>) -> Result<Source, BadTls> {
        self.check_tls(tls)?;
        Ok(Source {
            tls: match self {
                Self::Url(url) => Tls::to_url(url, tls, Alpn::Http1)?,
                Self::File(_) => None,
            },
            provider: self.clone(),
        })
    }

    /// A file, read at once, for adapters that are being made: it is an error if it cannot be.
    ///
    /// # Errors
    /// [`AdapterError::Config`] of that adapter's field.
    pub fn read_file(path: &Path, adapter: &'static str, field: &'static str) -> Result<Vec<u8>, AdapterError> {
        let wrong = |why: String| AdapterError::Config {
            adapter,
            field,
            found: path.display().to_string(),
            expected: format!("a file that can be read ({why})"),
        };
        read_at_most(path, MAX_CONTENT).map_err(wrong)
    }
}

/// A file of at most so many bytes, or why not.
pub(crate) fn read_at_most(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    file.take(most as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|error| error.to_string())?;
    match content.len() > most {
        true => Err(format!("it has more than {most} bytes")),
        false => Ok(content),
    }
}

// === impl Source ===

impl Source {
    /// # Errors
    /// [`FetchError`]; the caller keeps what it has.
    pub async fn fetch(&self) -> Result<Bytes, FetchError> {
        let fetching = async {
            match &self.provider {
                Provider::File(path) => self.read(path).await,
                Provider::Url(url) => self.get(url).await,
            }
        };
        time::timeout(FETCH_TIMEOUT, fetching).await.unwrap_or_else(|_| {
            Err(FetchError::Timeout {
                from: self.provider.clone(),
            })
        })
    }

    /// Fetches every `interval`, for ever; `take` gets each content or error and says whether it was of use. If not, the
    /// next fetch comes sooner.
    pub async fn follow(self, interval: Duration, mut take: impl FnMut(Result<Bytes, FetchError>) -> bool) {
        let mut retry = FIRST_RETRY;
        loop {
            let pause = if take(self.fetch().await) {
                retry = FIRST_RETRY;
                interval
            } else {
                let pause = retry.min(interval);
                retry = retry.saturating_mul(2);
                pause
            };
            time::sleep(pause).await;
        }
    }

    async fn read(&self, path: &PathBuf) -> Result<Bytes, FetchError> {
        let failed = |source| FetchError::Read {
            path: path.clone(),
            source,
        };
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut content = Vec::new();
        file.take(MAX_CONTENT as u64 + 1)
            .read_to_end(&mut content)
            .await
            .map_err(failed)?;
        if content.len() > MAX_CONTENT {
            return Err(FetchError::TooLarge {
                from: self.provider.clone(),
            });
        }
        Ok(content.into())
    }

    async fn get(&self, url: &Uri) -> Result<Bytes, FetchError> {
        let exchange_failed = |source| FetchError::Exchange {
            url: url.clone(),
            source,
        };
        let host = url.host().unwrap_or_default();
        let stream = Dialer::to_url(url, self.tls.clone())
            .connect()
            .await
            .map_err(|source| FetchError::Connect {
                url: url.clone(),
                source,
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(exchange_failed)?;
        let connection = tokio::spawn(connection);
        let _ends_with_this = AbortOnDrop(connection.abort_handle());
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = url
            .path_and_query()
            .map_or(Uri::from_static("/"), |path| path.clone().into());
        let host = url.authority().map_or(host, |authority| authority.as_str());
        if let Ok(host) = host.parse() {
            request.headers_mut().insert(header::HOST, host);
        }
        let response = sender.send_request(request).await.map_err(exchange_failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status {
                url: url.clone(),
                status: response.status(),
            });
        }
        match Limited::new(response.into_body(), MAX_CONTENT).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(FetchError::TooLarge {
                from: self.provider.clone(),
            }),
            Err(error) => Err(FetchError::Body {
                url: url.clone(),
                reason: error.to_string(),
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.provider.fmt(f)
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        let unknown = || UnknownProvider { found: text.to_owned() };
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::File(path.into()));
        }
        let url: Uri = text.parse().map_err(|_| unknown())?;
        match dial::is_http(&url) {
            true => Ok(Self::Url(url)),
            false => Err(unknown()),
        }
    }
}

impl<'de> Deserialize<'de> for Provider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
#[path = "provider/tests.rs"]
pub(crate) mod tests;
