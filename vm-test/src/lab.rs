//! The lab: everything a test of the whole program needs, of its own, and removed with it.

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cgroup::Cgroup,
    daemon::Daemon,
    interrupt,
    netns::NetNs,
    nginx::{Nginx, Server},
    poll,
    process::{self, Output},
    workload::{DEFAULT_NAMESPACE, Run},
};

/// A network namespace, a cgroup, a folder and at most one daemon in them.
///
/// Fields are dropped in this order, after [`Drop::drop`] has ended the daemon: the cgroup kills what still runs in it.
pub struct Lab {
    name: String,
    weft: PathBuf,
    pub(crate) daemon: Mutex<Option<Daemon>>,
    cgroup: Cgroup,
    netns: NetNs,
    dir: TempDir,
}

/// Lines of the daemon's log that a failing test prints.
const LOG_TAIL: usize = 60;

// === impl Lab ===

impl Lab {
    /// Makes an empty lab. `name` is what it is about, for people who look at a machine while tests run.
    ///
    /// # Errors
    /// No `weft` binary, or the machine refuses a namespace or a cgroup ([`crate::need::kernel`] says why).
    pub fn new(name: &str) -> Result<Self> {
        Self::with_binary(name, find_weft()?)
    }

    /// The same with this `weft` under test.
    ///
    /// # Errors
    /// The machine refuses a namespace or a cgroup.
    pub fn with_binary(name: &str, weft: PathBuf) -> Result<Self> {
        interrupt::on_signals()?;
        poll::check_interrupt()?;
        let id = next_id();
        let dir = tempfile::Builder::new()
            .prefix(&format!("{id}-"))
            .tempdir()
            .context("make the lab's folder")?;
        for sub in ["resources", "state", "bpffs", "work"] {
            fs::create_dir(dir.path().join(sub)).with_context(|| format!("make {sub} in the lab's folder"))?;
        }
        let netns = NetNs::new(&id)?;
        let cgroup = Cgroup::new(&id)?;
        Ok(Self {
            name: name.to_owned(),
            weft,
            daemon: Mutex::new(None),
            cgroup,
            netns,
            dir,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `weft` binary under test.
    pub fn weft_binary(&self) -> &Path {
        &self.weft
    }

    pub fn resources(&self) -> PathBuf {
        self.dir.path().join("resources")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpffs")
    }

    /// Files of the test itself: server configurations, bodies.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Puts a file into the resources folder, replacing it as an editor does (write aside, rename).
    ///
    /// # Errors
    /// The folder is gone or full.
    pub fn resource(&self, file: &str, yaml: &str) -> Result<()> {
        let aside = self.dir.path().join(format!("{file}.new"));
        fs::write(&aside, yaml).with_context(|| format!("write {file}"))?;
        fs::rename(&aside, self.resources().join(file)).with_context(|| format!("put {file} into the resources"))
    }

    /// Takes a file out of the resources folder.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_resource(&self, file: &str) -> Result<()> {
        fs::remove_file(self.resources().join(file)).with_context(|| format!("remove {file} from the resources"))
    }

    /// Applies resources (`weft apply`): on return they are in force, and what they deny is cut.
    ///
    /// # Errors
    /// One of them is refused, or the daemon does not answer.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.work().join("applied.yaml");
        fs::write(&file, yaml).context("write what is to be applied")?;
        self.weft(["apply", "-f", &file.display().to_string()])?.ok().map(drop)
    }

    /// A command that runs in the lab's network namespace, not in the mesh.
    pub fn command(&self, words: impl IntoIterator<Item = impl Into<String>>) -> Command {
        let mut command = self.netns.command();
        command.args(words.into_iter().map(Into::into)).current_dir(self.work());
        command
    }

    /// Runs a program in the lab's network namespace, not in the mesh.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn outside(&self, words: impl IntoIterator<Item = impl Into<String>>) -> Result<Output> {
        process::output(self.command(words), process::BOUND)
    }

    /// Runs `weft VERB --state-dir STATE ...`.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn weft<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut words = words.into_iter().map(Into::into);
        let verb = words.next().context("a verb of weft")?;
        let state = self.state().display().to_string();
        self.weft_offline([verb, "--state-dir".into(), state].into_iter().chain(words))
    }

    /// Runs `weft` with exactly these words: verbs that talk to no daemon.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn weft_offline<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        let binary = self.weft.display().to_string();
        self.outside([binary].into_iter().chain(words.into_iter().map(Into::into)))
    }

    /// A workload of the service `service`, to be started by `weft run`.
    pub fn run(&self, service: &str) -> Run<'_> {
        Run::new(self, service)
    }

    /// The virtual IP of a service as a client of the mesh is told it, written as before a port; `database` is `ahostsv4` or
    /// `ahostsv6` (getent(1)).
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, service: &str, database: &str) -> Result<String> {
        let words = ["getent", "--no-addrconfig", database, service];
        let hosts = self.run("client").output(words)?.ok()?.stdout;
        let vip = hosts.split_whitespace().next();
        let vip = vip.with_context(|| format!("no address of {service}"))?;
        Ok(if vip.contains(':') {
            format!("[{vip}]")
        } else {
            vip.to_owned()
        })
    }

    /// Waits until the mesh knows who listens behind `port` of `service`, written as for [`Run::port`]: until then connections
    /// to it visit the proxy, which waits as well. On return the next workload that starts finds it in the kernel's tables.
    ///
    /// # Errors
    /// Nobody comes: the text has what there is.
    pub fn endpoint(&self, service: &str, port: &str) -> Result<()> {
        let (numbers, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let number = numbers.split_once(':').map_or(numbers, |(number, _)| number);
        let number: u16 = number.parse().with_context(|| format!("read port `{port}`"))?;
        poll::until(&format!("an endpoint of {service} at {port}"), || {
            let status = self.status()?;
            let services = status["services"].as_array().context("services")?;
            let found = services
                .iter()
                .filter(|found| found["namespace"] == DEFAULT_NAMESPACE && found["name"] == service)
                .filter_map(|found| found["ports"].as_array())
                .flatten()
                .filter(|found| found["port"] == number && found["protocol"] == protocol)
                .any(|found| found["endpoints"].as_array().is_some_and(|all| !all.is_empty()));
            ensure!(found, "services: {services:?}");
            Ok(())
        })
    }

    /// A workload that is nginx, started and listening.
    ///
    /// # Errors
    /// nginx does not start.
    pub fn nginx(&self, nginx: Nginx) -> Result<Server> {
        nginx.start(self)
    }

    /// The helper program of this package (`src/bin/traffic`), built beside the tests.
    ///
    /// # Errors
    /// It is not built: `cargo test -p vm-test` does.
    pub fn traffic(&self) -> Result<String> {
        let test = env::current_exe().context("find the test's own program")?;
        let beside = test
            .ancestors()
            .skip(1)
            .take(2)
            .map(|dir| dir.join("traffic"))
            .find(|file| file.exists());
        let file = beside.context("`traffic` is not built beside the tests: `cargo test -p vm-test` does")?;
        Ok(file.display().to_string())
    }

    /// All kept flow events, oldest first.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn flows(&self) -> Result<Vec<Value>> {
        self.weft(["flows", "-o", "json"])?.ok()?.json_lines()
    }

    /// The first kept flow event that `matches`; events come a moment after what they tell.
    ///
    /// # Errors
    /// None comes: the text has all that were kept.
    pub fn flow(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        poll::until(&format!("a flow event: {what}"), || {
            let flows = self.flows()?;
            let Some(found) = flows.iter().find(|flow| matches(flow)) else {
                let lines: Vec<String> = flows.iter().map(Value::to_string).collect();
                bail!("{} events were kept:\n{}", lines.len(), lines.join("\n"));
            };
            Ok(found.clone())
        })
    }

    /// The same, while `act` is done again and again to make it.
    ///
    /// # Errors
    /// As [`Lab::flow`], or what `act` says.
    pub fn flow_while(
        &self,
        what: &str,
        matches: impl Fn(&Value) -> bool,
        act: impl Fn() -> Result<()>,
    ) -> Result<Value> {
        poll::until(&format!("a flow event: {what}"), || {
            act()?;
            self.flows()?.into_iter().find(&matches).context("none yet")
        })
    }

    /// `weft status -o json`.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        self.weft(["status", "-o", "json"])?.ok()?.json()
    }

    /// Bytes that the lab's loopback device has received so far: what sockets hand one another past TCP never comes there.
    ///
    /// # Errors
    /// The kernel has no such counter.
    pub fn loopback_bytes(&self) -> Result<u64> {
        let text = self.outside(["cat", "/proc/net/dev"])?.ok()?.stdout;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
        let bytes = line.and_then(|counters| counters.split_whitespace().next()?.parse().ok());
        bytes.with_context(|| format!("no counters of lo in {text}"))
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Leaves everything as it is and running, and returns a script that removes it.
    ///
    /// # Errors
    /// The script cannot be written; the lab is removed then.
    pub fn keep(self) -> Result<PathBuf> {
        let script = self.dir.path().join("remove");
        let (state, bpffs, cgroup) = (self.state(), self.bpffs(), self.cgroup());
        let text = format!(
            "#!/bin/sh\n# Removes lab {name}: its processes, kernel programs, cgroups, network namespace and folder.\n\
             echo 1 > '{cgroup}/cgroup.kill'\n\
             '{weft}' uninstall --state-dir '{state}' --bpffs '{bpffs}' --cgroup '{cgroup}'\n\
             umount '{bpffs}' 2>/dev/null\n\
             for _ in $(seq 50); do\n\
             \x20   find '{cgroup}' -depth -type d -exec rmdir {{}} ';' 2>/dev/null\n\
             \x20   [ -d '{cgroup}' ] || break\n    sleep 0.1\ndone\n\
             ip netns del {netns}\n\
             rm -rf '{dir}'\n",
            name = self.name,
            weft = self.weft.display(),
            state = state.display(),
            bpffs = bpffs.display(),
            cgroup = cgroup.display(),
            netns = self.netns.name(),
            dir = self.dir.path().display(),
        );
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        std::mem::forget(self);
        Ok(script)
    }

    /// Unpins and unmounts what a daemon left in the lab's bpffs.
    fn sweep_bpffs(&self) {
        let bpffs = self.bpffs();
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        // Not mounted (or gone altogether): nothing is pinned, the folder goes with the lab.
        if device(&bpffs).is_none_or(|mounted| Some(mounted) == device(self.dir.path())) {
            return;
        }
        unlink_all(&bpffs);
        if let Err(error) = nix::mount::umount2(&bpffs, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("unmount {} by hand: {error}", bpffs.display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
        let ran = self.log_file().exists();
        if let Err(error) = self.stop() {
            eprintln!("lab {}: {error:#}", self.name);
        }
        if ran && let Err(error) = self.uninstall() {
            eprintln!("lab {}: {error:#}", self.name);
        }
        self.sweep_bpffs();
    }
}

impl Lab {
    /// Prints the end of the daemon's log, for a test that fails.
    pub fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
        eprintln!(
            "--- log of the daemon of lab {} (last {} lines)\n{}\n---",
            self.name,
            tail.len(),
            tail.join("\n")
        );
    }
}

/// A name that no other lab has, nor any other process's: of a namespace, a cgroup, a folder.
pub(crate) fn next_id() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("weft-t-{}-{number}", std::process::id())
}

/// `WEFT_BIN`, else the release binary of this checkout.
pub(crate) fn find_weft() -> Result<PathBuf> {
    let file = match env::var_os("WEFT_BIN") {
        Some(file) => PathBuf::from(file),
        None => {
            let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
            let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
            target.join("release/weft")
        }
    };
    if !file.exists() {
        bail!(
            "no weft binary at {} (WEFT_BIN names another): `cargo xtask build` makes it",
            file.display()
        );
    }
    file.canonicalize()
        .with_context(|| format!("resolve {}", file.display()))
}

fn unlink_all(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let removed = if path.is_dir() {
            unlink_all(&path);
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            eprintln!("remove {} by hand: {error}", path.display());
        }
    }
}
