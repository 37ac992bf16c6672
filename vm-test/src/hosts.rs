//! Several hosts: labs joined by virtual Ethernet, each with addresses of its own, and no daemon unless a test starts one.
//!
//! ```text
//!   host a (a lab)        host b (a lab)
//!   eth0 10.77.1.1/24     eth0 10.77.1.2/24        each a network namespace
//!        fd77::1/64            fd77::2/64
//!        |                     |
//!      to-a ------- br0 ---- to-b                  the switch, a network namespace as well
//! ```
//!
//! Every device is made inside these namespaces and goes with them: none is ever in the machine's own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    path::Path,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Lab, lab,
    netns::{NetNs, ip},
    resources,
};

/// Hosts on one switch. They are dropped before it.
pub struct Hosts {
    hosts: Vec<Host>,
    switch: NetNs,
}

/// A lab that others reach over the network; everything a [`Lab`] can do, it can.
pub struct Host {
    lab: Lab,
    name: char,
    number: u8,
}

/// A TCP service on a host, as other hosts know it: by resources, since no registry tells them.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    pub service: &'a str,
    /// Port of the service.
    pub port: u16,
    /// Where its workload listens.
    pub target_port: u16,
    /// The account it runs as, in namespace `default`.
    pub account: &'a str,
    /// appProtocol of the port (`http`, `tcp`).
    pub app: &'a str,
}

/// Most hosts a switch has: a letter each.
const MAX: u8 = 26;

/// Congestion control of every host. The machine's default may pace (bbr), which makes a virtual wire as slow as a real
/// one; this one is in every kernel and allowed in every namespace.
const CONGESTION_CONTROL: &str = "reno";

// === impl Hosts ===

impl Hosts {
    /// Makes `count` hosts: `a`, `b`, and so on.
    ///
    /// # Errors
    /// As [`Lab::new`]; or the kernel has no virtual Ethernet or no bridge.
    pub fn new(name: &str, count: u8) -> Result<Self> {
        Self::with_binary(name, count, &lab::find_weft()?)
    }

    /// The same with this `weft` under test.
    ///
    /// # Errors
    /// As [`Hosts::new`].
    pub fn with_binary(name: &str, count: u8, weft: &Path) -> Result<Self> {
        ensure!(
            (1..=MAX).contains(&count),
            "{count} hosts: a switch has 1 to {MAX} of them"
        );
        let switch = NetNs::new(&lab::next_id())?;
        let bridge = ["type", "bridge", "forward_delay", "0", "stp_state", "0"];
        ip(&[&["-n", switch.name(), "link", "add", "br0"], &bridge[..]].concat()).context("make a bridge")?;
        ip(&["-n", switch.name(), "link", "set", "br0", "up"])?;
        let hosts = (1..=count).map(|number| Host::new(name, number, &switch, weft));
        Ok(Self {
            hosts: hosts.collect::<Result<_>>()?,
            switch,
        })
    }

    /// The namespace that joins them. Nothing runs there.
    pub fn switch(&self) -> &NetNs {
        &self.switch
    }

    /// The host of this number, from 0.
    ///
    /// # Panics
    /// There are not so many.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// Removes the device of a host and makes it again, as another one of the same name and addresses.
    ///
    /// # Errors
    /// `ip` refuses it.
    pub fn plug_again(&self, host: &Host) -> Result<()> {
        ip(&["-n", self.switch.name(), "link", "del", &host.port()])?;
        host.plug(&self.switch)
    }

    /// All of them as an array, to be taken apart by name: `let [a, b] = hosts.all();`
    ///
    /// # Panics
    /// There are more or fewer.
    pub fn all<const N: usize>(&self) -> [&Host; N] {
        assert_eq!(self.hosts.len(), N, "hosts");
        std::array::from_fn(|index| self.host(index))
    }
}

// === impl Host ===

impl Host {
    fn new(name: &str, number: u8, switch: &NetNs, weft: &Path) -> Result<Self> {
        let letter = char::from(b'a' + number - 1);
        let host = Self {
            lab: Lab::with_binary(&format!("{name}-{letter}"), weft.to_path_buf())?,
            name: letter,
            number,
        };
        host.plug(switch)?;
        let set = format!("echo {CONGESTION_CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control");
        host.outside(["sh", "-c", &set])?.ok()?;
        Ok(host)
    }

    /// Makes its device, with its addresses, and the switch's end of it.
    fn plug(&self, switch: &NetNs) -> Result<()> {
        let (inside, port) = (self.netns().name(), self.port());
        ip(&[
            "-n",
            switch.name(),
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            // Its own for good: neighbours need not learn another one when it is made again.
            "address",
            &format!("02:00:00:4d:01:{:02x}", self.number),
            "netns",
            inside,
        ])
        .context("make a pair of virtual Ethernet devices")?;
        ip(&["-n", switch.name(), "link", "set", &port, "master", "br0", "up"])?;
        let (v4, v6) = (format!("{}/24", self.v4()), format!("{}/64", self.v6()));
        ip(&["-n", inside, "addr", "add", &v4, "dev", "eth0"])?;
        // Nobody else has it: without a second of duplicate address detection.
        ip(&["-n", inside, "addr", "add", &v6, "dev", "eth0", "nodad"])?;
        ip(&["-n", inside, "link", "set", "eth0", "up"])?;
        Ok(())
    }

    /// The switch's end of its device.
    fn port(&self) -> String {
        format!("to-{}", self.name)
    }

    /// `a`, `b`, ...
    pub fn name(&self) -> char {
        self.name
    }

    /// Its address on the switch, `10.77.1.N`.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 1, self.number)
    }

    /// Its address on the switch, `fd77::N`.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Both, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// Tells this host of a service on another one: its Service with a selector, and its Workload.
    ///
    /// # Errors
    /// The resources folder is gone or full.
    pub fn knows(&self, remote: &Remote<'_>, there: &Host) -> Result<()> {
        let name = format!("{}-on-{}", remote.service, there.name);
        let service = resources::selecting_service(remote.service, (remote.port, remote.target_port), remote.app);
        let workload = resources::workload(&name, remote.service, remote.account, &there.addresses());
        self.resource(&format!("{name}.yaml"), &format!("{service}{workload}"))
    }
}

impl Deref for Host {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}
