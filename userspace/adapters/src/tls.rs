//! TLS to the servers that adapters talk to: who they must be, and who we are to them.

use std::{
    fmt, io,
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

use crate::{error::AdapterError, provider::read_at_most};

/// Largest file of certificates or a key, in bytes. A bundle of all public authorities has a fifth of it.
pub const MAX_PEM: usize = 1024 * 1024;

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
    /// What can be said without a look at files; whom the certificate of `host` must be for.
    ///
    /// # Errors
    /// One of the files of a pair is missing, or a name is none.
    pub fn check(&self, host: &str) -> Result<ServerName<'static>, BadTls> {
        if let (Some(one), None) | (None, Some(one)) = (&self.cert_file, &self.key_file) {
            return Err(BadTls::new(one.display(), "`cert_file` and `key_file` together"));
        }
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned())
            .map_err(|_| BadTls::new(name, "a DNS name or an IP address in `server_name`"))
    }

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
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let pem = read(key)?;
                let secret = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|error| BadTls::new(key.display(), format!("a file with a PEM key ({error:?})")))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| BadTls::new(key.display(), format!("the key of `cert_file` ({error})")))?
            }
            // One alone was refused before.
            _ => builder.with_no_client_auth(),
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
        let name = params.check(host)?;
        let (stamps, config) = (params.stamps(), params.load(alpn)?);
        Ok(Arc::new(Self {
            name,
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
        check_url(url, params)?;
        match is_https(url) {
            true => Self::new(params.unwrap_or(&TlsParams::default()), host_of(url), alpn).map(Some),
            false => Ok(None),
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

/// As [`TlsParams::check`], for the host of an URL.
///
/// # Errors
/// The same; there are parameters and the URL is no `https`.
pub fn check_url(url: &Uri, params: Option<&TlsParams>) -> Result<(), BadTls> {
    match params {
        Some(_) if !is_https(url) => Err(BadTls::for_plain(url, "an `https` URL")),
        Some(params) => params.check(host_of(url)).map(drop),
        None => Ok(()),
    }
}

fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

fn host_of(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_matches(['[', ']'])
}

fn read(path: &Path) -> Result<Vec<u8>, BadTls> {
    read_at_most(path, MAX_PEM).map_err(|why| BadTls::new(path.display(), format!("a file that can be read ({why})")))
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
            "no `ca_file`",
            "one, for this machine has no certificates of authorities (package ca-certificates, or `SSL_CERT_FILE`)",
        )),
        false => Ok(roots.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
