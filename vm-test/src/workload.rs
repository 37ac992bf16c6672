//! `weft run`: a program as a workload of the lab's mesh.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::{
    Lab, poll,
    process::{self, Output, Running},
};

/// What `weft run` is told about a workload. Every start is an instance of its own.
#[derive(Clone)]
pub struct Run<'lab> {
    lab: &'lab Lab,
    service: String,
    namespace: Option<String>,
    flags: Vec<String>,
    prefix: Vec<String>,
}

/// The namespace of a workload that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

// === impl Run ===

impl<'lab> Run<'lab> {
    pub(crate) fn new(lab: &'lab Lab, service: &str) -> Self {
        Self {
            lab,
            service: service.to_owned(),
            namespace: None,
            flags: Vec::new(),
            prefix: Vec::new(),
        }
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self.flag("--namespace", namespace)
    }

    pub fn account(self, account: &str) -> Self {
        self.flag("--account", account)
    }

    /// `SERVICE_PORT[:TARGET_PORT][/tcp|/udp]`
    pub fn port(self, port: &str) -> Self {
        self.flag("--port", port)
    }

    /// `KEY=VALUE`
    pub fn label(self, label: &str) -> Self {
        self.flag("--label", label)
    }

    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// The command line without starting it.
    pub fn command<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.lab.command(
            self.prefix
                .iter()
                .cloned()
                .chain([self.lab.weft_binary().display().to_string()]),
        );
        command
            .arg("run")
            .arg("--state-dir")
            .arg(self.lab.state())
            .args(["--service", &self.service]);
        command
            .args(&self.flags)
            .arg("--")
            .args(words.into_iter().map(Into::into));
        command
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn output<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        process::output(self.command(words), process::BOUND)
    }

    /// Starts a program beside the test and waits until the mesh knows it.
    ///
    /// # Errors
    /// It ends before: the text has what it said.
    pub fn start<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        let mut running = Running::start(self.command(words))?;
        // `weft run` registers, enters the workload's cgroup and becomes the command: the process number stays.
        let pid = running.pid();
        let entered = poll::until("the workload to enter its cgroup", || {
            if !running.is_running()? {
                return Ok(false);
            }
            if self.holds(pid) {
                Ok(true)
            } else {
                bail!("no cgroup of service {} has process {pid}", self.service)
            }
        })?;
        if !entered {
            let output = running.finish(process::BOUND)?;
            bail!(
                "`{}` ended with {} before it was meshed: {}{}",
                output.line,
                output.code,
                output.stdout,
                output.stderr
            );
        }
        Ok(running)
    }

    /// Whether a cgroup of this service has process `pid`.
    fn holds(&self, pid: i32) -> bool {
        let namespace = self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let Ok(instances) = fs::read_dir(self.lab.cgroup().join(namespace).join(&self.service)) else {
            return false;
        };
        let pid = pid.to_string();
        instances
            .flatten()
            .filter_map(|instance| fs::read_to_string(instance.path().join("cgroup.procs")).ok())
            .any(|processes| processes.lines().any(|line| line == pid))
    }
}
