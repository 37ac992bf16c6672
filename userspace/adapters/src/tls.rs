//! TLS to the servers that adapters talk to: who they must be, and who we are to them.

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use http::Uri;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::warn;

use crate::error::AdapterError;

/// Largest file of certificates or a key, in bytes. A bundle of all public authorities has a fifth of it.
pub const MAX_PEM: u64 = 1024 * 1024;

/// Parameter `tls` of adapters, named as Prometheus names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsParams {
    /// PEM file of the authorities that may have signed the server's certificate. Default: those of this machine.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that the server gets to see, followed by those that lead to its authority. Default: none.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key. One needs the other.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Name or address that the server's certificate must be for. Default: the host that is connected to.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// What is spoken inside (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// Nothing that is negotiated.
    None,
    /// Servers need not know the extension.
    Http1,
    /// They must: without, gRPC's own clients refuse as well.
    Http2,
}

/// A parameter makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("found `{found}`, expected {expected}")]
pub struct BadTls {
    pub found: String,
    pub expected: String,
}

/// TLS to one server. Files that change are read again before the next connection.
pub struct Tls {
    params: TlsParams,
    name: ServerName<'static>,
    alpn: Alpn,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ClientConfig>,
    stamps: Stamps,
}

/// Length and time of change of each file, as they are named in [`TlsParams`].
type Stamps = [Option<(u64, Option<SystemTime>)>; 3];

// === impl BadTls ===

impl BadTls {
    fn new(found: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self {
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// Parameters of TLS for what is not `secure`.
    pub fn for_plain(place: impl fmt::Display, secure: &str) -> Self {
        Self::new(place, format!("{secure} where `tls` is given"))
    }

    /// The same, of parameter `tls` of an adapter.
    pub fn of(self, adapter: &'static str) -> AdapterError {
        AdapterError::Config {
            adapter,
            field: "tls",
            found: self.found,
            expected: self.expected,
        }
    }
}

// === impl TlsParams ===

impl TlsParams {
    fn files(&self) -> [Option<&Path>; 3] {
        [&self.ca_file, &self.cert_file, &self.key_file].map(Option::as_deref)
    }

    fn stamps(&self) -> Stamps {
        self.files().map(|file| {
            let metadata = std::fs::metadata(file?).ok()?;
            Some((metadata.len(), metadata.modified().ok()))
        })
    }

    fn load(&self, alpn: Alpn) -> Result<ClientConfig, BadTls> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| BadTls::new(error, "TLS 1.2 or 1.3"))?
            .with_root_certificates(match &self.ca_file {
                Some(file) => Arc::new(authorities(file)?),
                None => authorities_of_machine()?,
            });
        let mut config = match (&self.cert_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let pem = read(key)?;
                let secret = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|error| BadTls::new(key.display(), format!("a file with a PEM key ({error:?})")))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| BadTls::new(key.display(), format!("the key of `cert_file` ({error})")))?
            }
            (Some(one), None) | (None, Some(one)) => {
                return Err(BadTls::new(one.display(), "`cert_file` and `key_file` together"));
            }
        };
        config.alpn_protocols = match alpn {
            Alpn::None => Vec::new(),
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
            Alpn::Http2 => vec![b"h2".to_vec()],
        };
        Ok(config)
    }
}

// === impl Tls ===

impl Tls {
    /// To `host`, a name or an address.
    ///
    /// # Errors
    /// A file cannot be read or has not in it what it should; a name is none.
    pub fn new(params: &TlsParams, host: &str, alpn: Alpn) -> Result<Arc<Self>, BadTls> {
        let name = params.server_name.as_deref().unwrap_or(host);
        let (stamps, config) = (params.stamps(), params.load(alpn)?);
        Ok(Arc::new(Self {
            name: ServerName::try_from(name.to_owned())
                .map_err(|_| BadTls::new(name, "a DNS name or an IP address in `server_name`"))?,
            params: params.clone(),
            alpn,
            loaded: Mutex::new(Loaded {
                config: Arc::new(config),
                stamps,
            }),
        }))
    }

    /// To the host of an URL; `None`: it is no `https`.
    ///
    /// # Errors
    /// As [`Tls::new`]; parameters of TLS for an URL that is no `https`.
    pub fn to_url(url: &Uri, params: Option<&TlsParams>, alpn: Alpn) -> Result<Option<Arc<Self>>, BadTls> {
        if url.scheme_str() == Some("https") {
            let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
            return Self::new(params.unwrap_or(&TlsParams::default()), host, alpn).map(Some);
        }
        match params {
            None => Ok(None),
            Some(_) => Err(BadTls::for_plain(url, "an `https` URL")),
        }
    }

    /// TLS on a connection to the server.
    ///
    /// # Errors
    /// The server is not who it must be, speaks something else, or refuses who we are.
    pub async fn wrap(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("TLS: {error}"));
        let connector = TlsConnector::from(self.config());
        let stream = connector.connect(self.name.clone(), stream).await.map_err(failed)?;
        let (_, session) = stream.get_ref();
        if self.alpn == Alpn::Http2 && session.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("TLS: the server does not offer HTTP/2 (ALPN `h2`)"));
        }
        Ok(stream)
    }

    /// As the files are now; those that were good last where they are not.
    fn config(&self) -> Arc<ClientConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.params.stamps();
        if stamps != loaded.stamps {
            // Those that are bad are looked at again when they change.
            loaded.stamps = stamps;
            match self.params.load(self.alpn) {
                Ok(config) => loaded.config = Arc::new(config),
                Err(error) => warn!(%error, "files of `tls` have changed and are no good; the last good ones stay"),
            }
        }
        loaded.config.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BadTls> {
    let bad = |why: String| BadTls::new(path.display(), format!("a file that can be read ({why})"));
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mut content = Vec::new();
    let read = file.take(MAX_PEM + 1).read_to_end(&mut content);
    match read.map_err(|error| bad(error.to_string()))? as u64 > MAX_PEM {
        true => Err(bad(format!("it has more than {MAX_PEM} bytes"))),
        false => Ok(content),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let expected = |why: String| BadTls::new(path.display(), format!("a file with PEM certificates ({why})"));
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(expected("it has none".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(expected(format!("{error:?}"))),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| BadTls::new(path.display(), format!("certificates of authorities ({error})")))?;
    }
    Ok(roots)
}

/// Read once: those of a machine change with its packages. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
fn authorities_of_machine() -> Result<Arc<RootCertStore>, BadTls> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    match roots.is_empty() {
        true => Err(BadTls::new(
            "",
            "`ca_file`, for this machine has no certificates of authorities (package ca-certificates)",
        )),
        false => Ok(roots.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
