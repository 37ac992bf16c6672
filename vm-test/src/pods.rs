//! Pods without Kubernetes: network namespaces as a CNI makes them, joined by a bridge that stands in the lab's own.
//!
//! ```text
//!   lab's network namespace (the daemon's): br0 10.88.0.1/24, fd88::1/64
//!        |                     |
//!      veth2                 veth3
//!        |                     |
//!   eth0 10.88.0.2, fd88::2   eth0 10.88.0.3, fd88::3       each a network namespace: the pod's
//! ```
//!
//! A pod's processes live in the cgroup `CGROUP/pods/pN/app`; its Workload names `pods/pN`, one above.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    Lab,
    curl::{self, Answer},
    netns::{NetNs, ip},
    nginx::{Nginx, Server},
    process::{self, Output, Running},
};

/// Pods of a lab are made here, and reach each other and the lab's namespace.
pub struct Pods<'lab> {
    lab: &'lab Lab,
}

/// A pod: its network namespace, which goes when this is dropped, and its cgroup, which goes with the lab.
pub struct Pod<'lab> {
    lab: &'lab Lab,
    netns: NetNs,
    number: u8,
    /// Of its processes.
    cgroup: PathBuf,
}

// === impl Pods ===

impl<'lab> Pods<'lab> {
    /// Makes the bridge, which goes with the lab's namespace.
    ///
    /// # Errors
    /// The kernel has none, or the lab has one already.
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let host = lab.netns().name();
        let bridge = ["type", "bridge", "forward_delay", "0", "stp_state", "0"];
        ip(&[&["-n", host, "link", "add", "br0"], &bridge[..]].concat())?;
        ip(&["-n", host, "addr", "add", "10.88.0.1/24", "dev", "br0"])?;
        ip(&["-n", host, "addr", "add", "fd88::1/64", "dev", "br0", "nodad"])?;
        ip(&["-n", host, "link", "set", "br0", "up"])?;
        Ok(Self { lab })
    }

    /// Makes a namespace and joins it to the bridge. `number` (2 to 254) is the last part of its addresses.
    ///
    /// # Errors
    /// There is one of this number, or the kernel has no virtual Ethernet.
    pub fn pod(&self, number: u8) -> Result<Pod<'lab>> {
        let netns = NetNs::new(&format!("{}-p{number}", self.lab.netns().name()))?;
        let cgroup = self.lab.cgroup().join(format!("pods/p{number}/app"));
        fs::create_dir_all(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        let pod = Pod {
            lab: self.lab,
            netns,
            number,
            cgroup,
        };
        let (host, inside, veth) = (self.lab.netns().name(), pod.netns.name(), pod.veth());
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", inside];
        ip(&[&["-n", host, "link", "add", &veth], &peer[..]].concat())?;
        ip(&["-n", host, "link", "set", &veth, "master", "br0", "up"])?;
        ip(&["-n", inside, "addr", "add", &format!("{}/24", pod.v4()), "dev", "eth0"])?;
        ip(&[
            "-n",
            inside,
            "addr",
            "add",
            &format!("{}/64", pod.v6()),
            "dev",
            "eth0",
            "nodad",
        ])?;
        ip(&["-n", inside, "link", "set", "eth0", "up"])?;
        Ok(pod)
    }
}

// === impl Pod ===

impl Pod<'_> {
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, 0, self.number)
    }

    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Both, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// The file that stands for its namespace.
    pub fn path(&self) -> PathBuf {
        self.netns.path()
    }

    /// Words before a command that shall run in its namespace.
    pub fn enter(&self) -> [String; 3] {
        [
            "nsenter".to_owned(),
            format!("--net={}", self.path().display()),
            "--".to_owned(),
        ]
    }

    /// A Workload that captures it: label `app: APP`, account `ACCOUNT`.
    pub fn workload(&self, app: &str, account: &str) -> String {
        let declared = self.declared(app, account);
        let (number, netns) = (self.number, self.path());
        format!(
            "{declared}  capture: {{cgroup: pods/p{number}, netns: {}}}\n",
            netns.display()
        )
    }

    /// The same without `capture`: as if it were on another machine.
    pub fn declared(&self, app: &str, account: &str) -> String {
        crate::resources::workload(&format!("p{}", self.number), app, account, &self.addresses())
    }

    /// A command in the pod: in its cgroup and its namespace.
    pub fn command<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("sh");
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        command.args(["-c", script]).arg(&self.cgroup).args(self.enter());
        command
            .args(words.into_iter().map(Into::into))
            .current_dir(self.lab.work());
        command
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn output<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        process::output(self.command(words), process::BOUND)
    }

    /// Starts a program beside the test.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        Running::start(self.command(words))
    }

    /// `curl -sv FLAGS URL`.
    ///
    /// # Errors
    /// curl does not end. A request that fails is an [`Answer`].
    pub fn curl(&self, flags: &[&str], url: &str) -> Result<Answer> {
        Answer::of(self.output(curl::words(flags, url))?)
    }

    /// An nginx, started and listening.
    ///
    /// # Errors
    /// nginx does not start.
    pub fn nginx(&self, nginx: &Nginx) -> Result<Server> {
        nginx.start_by(self.lab, |words| self.start(words))
    }

    /// Whether the lab's end of its cable is still there: it goes with the namespace, when nothing keeps that alive.
    ///
    /// # Errors
    /// The lab's own namespace cannot be looked at.
    pub fn is_plugged_in(lab: &Lab, number: u8) -> Result<bool> {
        let links = lab.outside(["ip", "-br", "link"])?.ok()?.stdout;
        Ok(links.lines().any(|line| line.starts_with(&format!("veth{number}@"))))
    }

    fn veth(&self) -> String {
        format!("veth{}", self.number)
    }
}
