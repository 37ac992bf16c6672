//! nginx as the servers of a lab: the real one, with a configuration a beginner would write.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{Lab, poll, process::Running, workload::Run};

/// What it answers on one connection before it closes it: a proxy that shares a few gets through millions in a bench, and Envoy
/// answers 503 to who met the end.
const REQUESTS_A_CONNECTION: u32 = 1_000_000_000;

/// An nginx to be started as a workload.
#[derive(Debug, Clone)]
pub struct Nginx {
    service: String,
    namespace: Option<String>,
    account: Option<String>,
    body: String,
    ports: Vec<(u16, u16)>,
    protocol: &'static str,
    deferred: &'static str,
}

/// An nginx that runs as a workload and listens. Dropping it kills it.
pub struct Server {
    running: Running,
    /// Folder whose files it serves below `/files/`, and where a PUT to `/files/NAME` lands.
    pub files: PathBuf,
}

// === impl Nginx ===

impl Nginx {
    /// Answers every path with `hello from SERVICE`.
    pub fn service(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            namespace: None,
            account: None,
            body: format!("hello from {service}"),
            ports: Vec::new(),
            protocol: "",
            deferred: "",
        }
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// What it answers, without the line's end; nginx's variables (`$remote_addr`) stand for their values.
    pub fn says(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    /// Port of the service, and the one nginx listens on (0.0.0.0 and [::]).
    pub fn port(mut self, service: u16, target: u16) -> Self {
        self.ports.push((service, target));
        self
    }

    /// Speaks HTTP/2 without TLS on its ports, and nothing else.
    pub fn http2(mut self) -> Self {
        self.protocol = " http2";
        self
    }

    /// Its connections come about with the client's first bytes (TCP_DEFER_ACCEPT): until then a handshake is under way.
    pub fn deferred(mut self) -> Self {
        self.deferred = " deferred";
        self
    }

    pub(crate) fn start(self, lab: &Lab) -> Result<Server> {
        let mut run: Run<'_> = lab.run(&self.service);
        if let Some(namespace) = &self.namespace {
            run = run.namespace(namespace);
        }
        if let Some(account) = &self.account {
            run = run.account(account);
        }
        for (service, target) in &self.ports {
            run = run.port(&format!("{service}:{target}"));
        }
        self.start_by(lab, |words| run.start(words))
    }

    /// Writes its configuration, starts it somewhere and waits until it listens.
    ///
    /// # Errors
    /// As `start`, or it does not listen.
    pub fn start_by(&self, lab: &Lab, start: impl FnOnce([&str; 7]) -> Result<Running>) -> Result<Server> {
        let target = self.ports.first().context("an nginx needs a port")?.1;
        let dir = lab.work().join(format!("nginx-{}-{target}", self.service));
        let files = dir.join("files");
        fs::create_dir_all(&files).with_context(|| format!("make {}", files.display()))?;
        fs::write(dir.join("nginx.conf"), self.config()).context("write nginx.conf")?;

        let folder = dir.display().to_string();
        let mut running = start(["nginx", "-p", &folder, "-c", "nginx.conf", "-e", "stderr"])?;
        let pid = running.pid();
        poll::until("nginx to listen", || {
            if !running.is_running()? {
                bail!("nginx ended: {}", running.stderr());
            }
            if listens(pid, target)? {
                Ok(())
            } else {
                bail!("no listener on port {target}: {}", running.stderr())
            }
        })?;
        Ok(Server { running, files })
    }

    fn config(&self) -> String {
        let Self {
            body,
            protocol,
            deferred,
            ..
        } = self;
        let listen: String = self
            .ports
            .iter()
            .map(|(_, port)| {
                let how = format!("{protocol}{deferred}");
                format!("    listen {port}{how}; listen [::]:{port} ipv6only=on{how};\n")
            })
            .collect();
        format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid nginx.pid;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  default_type text/plain;\n  sendfile on;\n  keepalive_requests {REQUESTS_A_CONNECTION};\n\
             \x20 keepalive_timeout 1h;  client_header_timeout 1h;\n\
             \x20 client_max_body_size 0;\n  client_body_temp_path body;\n  proxy_temp_path proxy;\n\
             \x20 fastcgi_temp_path fastcgi;\n  uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n\
             \x20 server {{\n{listen}\n\
             \x20   location / {{ return 200 \"{body}\\n\"; }}\n\
             \x20   location /files/ {{ alias files/; dav_methods PUT; }}\n  }}\n}}\n"
        )
    }
}

// === impl Server ===

impl Server {
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Ends it, as an operator would.
    ///
    /// # Errors
    /// It does not end on SIGTERM.
    pub fn stop(self) -> Result<()> {
        self.running.stop().map(drop)
    }
}

/// Whether something in the network namespace of process `pid` listens on TCP `port`.
///
/// # Errors
/// The process is gone.
pub fn listens(pid: i32, port: u16) -> Result<bool> {
    /// `TCP_LISTEN` as /proc/net/tcp prints it.
    const LISTEN: &str = "0A";
    for table in ["tcp", "tcp6"] {
        let text =
            fs::read_to_string(format!("/proc/{pid}/net/{table}")).with_context(|| format!("read {table} of {pid}"))?;
        let found = text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().and_then(|local| local.rsplit_once(':'));
            let state = fields.nth(1);
            local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port)) && state == Some(LISTEN)
        });
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
