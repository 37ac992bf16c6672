//! Pods without Kubernetes: network namespaces as a CNI makes them, joined by a bridge that stands in the lab's own.
//!
//! ```text
//!   lab's network namespace (the daemon's): br0 10.88.0.1/24, fd88::1/64
//!        |                     |
//!      veth2                 veth3
//!        |                     |
//!   eth0 10.88.0.2, fd88::2   eth0 10.88.0.3, fd88::3       each a network namespace: the pod's
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::Result;

use crate::{
    Lab,
    netns::{NetNs, ip},
};

/// Pods of a lab are made here, and reach each other and the lab's namespace.
pub struct Pods<'lab> {
    lab: &'lab Lab,
}

/// A pod's network namespace.
pub struct Pod {
    netns: NetNs,
    number: u8,
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
    pub fn pod(&self, number: u8) -> Result<Pod> {
        let netns = NetNs::new(&format!("{}-p{number}", self.lab.netns().name()))?;
        let pod = Pod { netns, number };
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

impl Pod {
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

    fn veth(&self) -> String {
        format!("veth{}", self.number)
    }
}
