use std::{
    env,
    io::Write,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use http::HeaderMap;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use serde_json::json;
use tempfile::TempDir;
use tokio::{io::copy_bidirectional, net::TcpStream, runtime};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    dial::{Address, Dialer},
    post::Poster,
    provider::{Provider, tests::Server},
};

/// An authority, and what it has signed: files `ca.pem`, `NAME.pem` and `NAME.key`.
pub(crate) struct Pki {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// With a server's certificate for 127.0.0.1 and a client's.
    pub fn new() -> Self {
        let (dir, key) = (TempDir::new().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // One that is named as what it has signed would seem to have signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let pki = Self {
            dir,
            issuer: Issuer::new(params, key),
        };
        pki.sign("server", "127.0.0.1");
        pki.sign("client", "client.example");
        pki
    }

    fn sign(&self, name: &str, whose: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![whose.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), signed.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trusts this authority.
    pub fn params(&self) -> TlsParams {
        TlsParams {
            ca_file: Some(self.file("ca.pem")),
            ..TlsParams::default()
        }
    }

    /// The same as `client`.
    pub fn params_of_client(&self) -> TlsParams {
        TlsParams {
            cert_file: Some(self.file("client.pem")),
            key_file: Some(self.file("client.key")),
            ..self.params()
        }
    }

    /// Takes TLS off connections, and passes them on to `server`; ends with the test process.
    pub fn front(&self, server: SocketAddr, alpn: &[&str]) -> SocketAddr {
        let roots = Arc::new(authorities(&self.file("ca.pem")).unwrap());
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let chain = certificates(&self.file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let Ok(mut client) = acceptor.accept(stream).await else {
                            return;
                        };
                        let mut server = TcpStream::connect(server).await.unwrap();
                        // Either may go as it likes.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            });
        });
        address
    }
}

/// An nginx with TLS, which wants a client's certificate where `clients` says so.
struct Nginx {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Nginx {
    fn start(pki: &Pki, clients: bool) -> Option<Self> {
        if Command::new("nginx").arg("-v").output().is_err() {
            skipped("TLS", "nginx and setpriv (Debian packages nginx, util-linux)");
            return None;
        }
        let started = (0..20).find_map(|_| {
            // Free just now; if somebody takes it meanwhile, nginx ends.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            Self::start_at(port, pki, clients)
        });
        Some(started.expect("nginx starts"))
    }

    fn start_at(port: u16, pki: &Pki, clients: bool) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let file = |name: &str| pki.file(name).display().to_string();
        let verify = match clients {
            true => format!("ssl_client_certificate {}; ssl_verify_client on;", file("ca.pem")),
            false => String::new(),
        };
        let config = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/log; events {{}}\n\
             http {{ access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};\n\
             uwsgi_temp_path {dir}; scgi_temp_path {dir};\n\
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; {verify}\n\
             location / {{ return 200 secret; }} }} }}",
            file("server.pem"),
            file("server.key"),
            dir = dir.path().display()
        );
        let path = dir.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--", "nginx", "-c"])
            .arg(&path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Written once it listens. (Who asks the port whether somebody listens there may be answered by himself.)
        let pid = dir.path().join("pid");
        let began = Instant::now();
        while !pid.exists() {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "nginx does not listen");
            thread::sleep(Duration::from_millis(2));
        }
        Some(Self { child, port, _dir: dir })
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/list", self.port)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked and not killed: it ends its workers.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// Says it past the capture of libtest; fails under `cargo xtask test`, which sets the variable.
pub(crate) fn skipped(of: &str, needs: &str) {
    assert!(
        env::var_os("WEFT_TEST_NO_SKIP").is_none(),
        "it must not be skipped, and needs {needs}"
    );
    // Nothing can be done about a terminal that is gone.
    let _ = io::stderr().write_all(format!("skipped: a test of {of} needs {needs}\n").as_bytes());
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What the page at `url` says, or why not.
fn fetch(url: &str, params: Option<&TlsParams>) -> Result<String, String> {
    let source = url.parse::<Provider>().unwrap().source(params).unwrap();
    let fetched = runtime().block_on(source.fetch());
    fetched
        .map(|content| String::from_utf8(content.to_vec()).unwrap())
        .map_err(|error| error.to_string())
}

#[test]
fn a_server_is_believed_that_the_right_authority_vouches_for() {
    let pki = Pki::new();
    let Some(nginx) = Nginx::start(&pki, false) else { return };
    let url = nginx.url();
    assert_eq!(fetch(&url, Some(&pki.params())).unwrap(), "secret");
    let refused = fetch(&url, Some(&Pki::new().params())).unwrap_err();
    assert!(refused.contains("TLS: invalid peer certificate: "), "{refused}");
    let other = TlsParams {
        server_name: Some("other.example".to_owned()),
        ..pki.params()
    };
    let refused = fetch(&url, Some(&other)).unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[test]
fn a_server_that_wants_to_know_us_is_shown_our_certificate() {
    let pki = Pki::new();
    let Some(nginx) = Nginx::start(&pki, true) else { return };
    let refused = fetch(&nginx.url(), Some(&pki.params())).unwrap_err();
    assert!(refused.contains("answered 400"), "{refused}");
    assert_eq!(fetch(&nginx.url(), Some(&pki.params_of_client())).unwrap(), "secret");
}

#[test]
fn files_that_changed_are_read_again_and_bad_ones_leave_the_last_good() {
    let (pki, other) = (Pki::new(), Pki::new());
    let Some(nginx) = Nginx::start(&pki, false) else { return };
    let ca_file = other.file("rotated.pem");
    let put = |content: &[u8]| std::fs::write(&ca_file, content).unwrap();
    put(&std::fs::read(other.file("ca.pem")).unwrap());
    let params = TlsParams {
        ca_file: Some(ca_file.clone()),
        ..TlsParams::default()
    };
    let source = nginx.url().parse::<Provider>().unwrap().source(Some(&params)).unwrap();
    let fetch = || runtime().block_on(source.fetch());
    fetch().unwrap_err();
    let both = [std::fs::read(pki.file("ca.pem")).unwrap(), b"\n# rotated\n".to_vec()].concat();
    put(&both);
    assert_eq!(fetch().unwrap(), "secret");
    put(b"nothing");
    assert_eq!(fetch().unwrap(), "secret");
}

#[test]
fn what_is_posted_is_posted_over_tls() {
    let (pki, server) = (Pki::new(), Server::start("taken"));
    let front = pki.front(server.address, &["http/1.1"]);
    let url: Uri = format!("https://{front}/spans").parse().unwrap();
    let posted = |params: &TlsParams| {
        let tls = Tls::to_url(&url, Some(params), Alpn::Http1).unwrap();
        let mut poster = Poster::new(url.clone(), tls, Duration::from_secs(20));
        let nothing = HeaderMap::new();
        runtime().block_on(poster.post("text/plain", &nothing, "spans".into()))
    };
    assert_eq!(posted(&pki.params_of_client()).unwrap(), "taken");
    assert_eq!(server.asked.load(Ordering::Relaxed), 1);
    posted(&pki.params()).unwrap_err();
    assert_eq!(server.asked.load(Ordering::Relaxed), 1, "by a stranger");
}

#[test]
fn a_server_without_http2_is_no_server_of_grpc() {
    let pki = Pki::new();
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    for (alpn, error) in [
        (&["h2"][..], None),
        (&[], Some("TLS: the server does not offer HTTP/2 (ALPN `h2`)")),
        (&["http/1.1"], Some("TLS: received fatal alert: NoApplicationProtocol")),
    ] {
        let address = pki.front(plain.local_addr().unwrap(), alpn);
        let dialer = Dialer {
            address: Address::parse(&address.to_string()).unwrap(),
            tls: Some(Tls::new(&pki.params_of_client(), "127.0.0.1", Alpn::Http2).unwrap()),
        };
        let connected = runtime().block_on(dialer.connect()).map(drop);
        assert_eq!(connected.err().map(|error| error.to_string()).as_deref(), error);
    }
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let pki = Pki::new();
    let file = |name: &str| pki.file(name).display().to_string();
    let cases = [
        (
            json!({"ca_file": "/nowhere"}),
            "found `/nowhere`, expected a file that can be read (No such file".to_owned(),
        ),
        (
            json!({"ca_file": file("server.key")}),
            format!(
                "found `{}`, expected a file with PEM certificates (it has none)",
                file("server.key")
            ),
        ),
        (
            json!({"ca_file": file("ca.pem"), "cert_file": file("client.pem")}),
            format!(
                "found `{}`, expected `cert_file` and `key_file` together",
                file("client.pem")
            ),
        ),
        (
            json!({"ca_file": file("ca.pem"), "cert_file": file("client.pem"), "key_file": file("client.pem")}),
            format!("found `{}`, expected a file with a PEM key (", file("client.pem")),
        ),
        (
            json!({"ca_file": file("ca.pem"), "cert_file": file("client.pem"), "key_file": file("server.key")}),
            format!("found `{}`, expected the key of `cert_file` (", file("server.key")),
        ),
        (
            json!({"ca_file": file("ca.pem"), "server_name": "a b"}),
            "found `a b`, expected a DNS name or an IP address in `server_name`".to_owned(),
        ),
    ];
    for (params, expected) in cases {
        let params: TlsParams = serde_json::from_value(params).unwrap();
        let error = Tls::new(&params, "a.example", Alpn::Http1).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
    // Parameters are looked at on machines that have not the files.
    let elsewhere: TlsParams = serde_json::from_value(json!({"ca_file": "/nowhere"})).unwrap();
    check_url(&"https://a/b".parse().unwrap(), Some(&elsewhere)).unwrap();
    let provider: Provider = "http://a/b".parse().unwrap();
    let error = provider.source(Some(&TlsParams::default())).unwrap_err().of("list");
    assert_eq!(
        error.to_string(),
        "adapter `list`, field `tls`: found `http://a/b`, expected an `https` URL where `tls` is given"
    );
}
