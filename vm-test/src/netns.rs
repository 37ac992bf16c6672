//! A network namespace of the lab's own, with nothing but a loopback device.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process::{self, Running};

/// Where a server in such a namespace is reached that listens on 0.0.0.0 and [::]: all of loopback, and every interface's address.
pub const EVERY_ADDRESS: [&str; 8] = [
    "127.0.0.1",
    "127.0.0.2",
    "0.0.0.0",
    "10.77.0.5",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.77.0.5]",
];

/// A named network namespace, removed when this is dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
}

// === impl NetNs ===

impl NetNs {
    /// Makes the namespace `name` and brings its loopback device up.
    ///
    /// # Errors
    /// `ip` is not there, or no permission.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        // An address beyond loopback, as every real machine has.
        ip(&["-n", name, "addr", "add", "10.77.0.5/32", "dev", "lo"])?;
        Ok(namespace)
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside.
    ///
    /// Not `ip netns exec`: that mounts a new /sys, which hides the cgroup file system.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--");
        command
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("remove network namespace {} by hand: {error:#}", self.name);
        }
    }
}

/// Runs `ip`, interrupted or not: it takes milliseconds, and half a namespace helps nobody.
pub(crate) fn ip(words: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words);
    let output = Running::start(command)?.finish_regardless(process::BOUND)?;
    output.ok().context("set up or remove a network namespace")?;
    Ok(())
}
