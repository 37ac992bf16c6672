//! Being in one network namespace.

use std::sync::Arc;

use anyhow::Context as _;
use weft_dataplane::{Dataplane, local_addresses};
use weft_proxy::{
    DEFAULT_PORT, Netns, NetnsListeners, default_addresses,
    dns::{self, DnsSockets},
};

use super::{Serving, sources::Sources};
use crate::daemon::{
    hand_over::{Sockets, names},
    inbound,
};

/// Our listeners are open in it, and the kernel knows.
pub struct Inside {
    pub netns: Arc<Netns>,
    /// Copies of all that listens there, for the next daemon.
    pub sockets: Sockets,
    /// Why servers in it do not see their clients' addresses; `None`: they do.
    pub unseen: Option<String>,
}

/// Takes out of the kernel what an earlier daemon said of a namespace.
pub fn forget(dataplane: &Dataplane, cookie: u64) {
    dataplane.leave_netns(cookie);
    if let Err(error) = dataplane.release_netns(&pin(cookie)) {
        tracing::warn!(netns = cookie, %error, "a program stays attached to a network namespace");
    }
}

/// Name of the namespace's link.
fn pin(cookie: u64) -> String {
    format!("pod-{cookie}")
}

// === impl Inside ===

impl Inside {
    /// Opens what no earlier daemon passed, serves it, tells the kernel; the namespace was opened at `path`.
    ///
    /// # Errors
    ///
    /// Something else has a port there, or the kernel refuses; nothing stays open or attached.
    pub fn enter(
        dataplane: &Dataplane,
        serving: &mut Serving,
        sources: &Sources,
        (path, netns): (&str, &Arc<Netns>),
    ) -> anyhow::Result<Self> {
        let entered = Self::try_enter(dataplane, serving, netns).map(|mut inside| {
            inside.are_seen(sources.put(netns, path).unseen);
            inside
        });
        if entered.is_err() {
            give_up(dataplane, serving, netns);
        }
        entered
    }

    fn try_enter(dataplane: &Dataplane, serving: &mut Serving, netns: &Arc<Netns>) -> anyhow::Result<Self> {
        let workers = serving.workers.worker_count();
        let mut sockets = Sockets::default();
        let mut listeners = |name, open: &(dyn Fn() -> anyhow::Result<NetnsListeners> + Sync)| {
            let open = || Ok(netns.visit(open)??.into_sockets());
            let opened = serving
                .inherited
                .or_open(&names::at(name, netns.cookie()), &mut sockets, open)?;
            anyhow::Ok(NetnsListeners::of_sockets(opened, workers)?)
        };
        let outbound = listeners(names::OUTBOUND, &|| {
            Ok(NetnsListeners::open(&default_addresses(DEFAULT_PORT), workers)?)
        })?;
        let inbound = listeners(names::INBOUND, &|| Ok(inbound::listen(workers)?))?;
        let dns = dns(&mut serving.inherited, &mut sockets, netns)?;
        serving.dns.enter(netns, dns)?;
        serving.workers.enter(netns, vec![outbound, inbound]);
        let inside = Self {
            netns: Arc::clone(netns),
            sockets,
            unseen: None,
        };
        inside.tell_kernel(dataplane)?;
        Ok(inside)
    }

    /// Whether servers see their clients' addresses now, as [`Sources`] says it. What is new is logged.
    pub fn are_seen(&mut self, unseen: Option<String>) {
        let cookie = self.netns.cookie();
        match (&self.unseen, &unseen) {
            (Some(_), None) => tracing::info!(netns = cookie, "servers in a pod see their clients' addresses again"),
            (before, Some(error)) if before.as_ref() != Some(error) => tracing::warn!(
                netns = cookie,
                error,
                "servers in a pod do not see their clients' addresses"
            ),
            _ => {}
        }
        self.unseen = unseen;
    }

    /// Where our listeners are, and whose what arrives is to be judged. From then on the kernel sends connections there.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn tell_kernel(&self, dataplane: &Dataplane) -> anyhow::Result<()> {
        let cookie = self.netns.cookie();
        let inbound = self.sockets.copies(&names::at(names::INBOUND, cookie))?;
        let inbound = NetnsListeners::of_sockets(inbound, 1)?;
        for (address, listener) in inbound.first() {
            dataplane.listen_inbound(cookie, address.is_ipv6(), listener)?;
        }
        dataplane.capture_netns(&pin(cookie), self.netns.descriptor(), cookie)?;
        self.refresh(dataplane)
    }

    /// Reads the namespace's addresses again.
    ///
    /// # Errors
    ///
    /// They cannot be read, or the kernel has no room for them.
    pub fn refresh(&self, dataplane: &Dataplane) -> anyhow::Result<()> {
        let addresses = self.netns.visit(local_addresses).context("enter the namespace")??;
        Ok(dataplane.enter_netns(self.netns.cookie(), addresses)?)
    }

    /// Closes the listeners; the kernel is told before.
    pub fn leave(self, dataplane: &Dataplane, serving: &Serving) {
        give_up(dataplane, serving, &self.netns);
    }
}

fn give_up(dataplane: &Dataplane, serving: &Serving, netns: &Arc<Netns>) {
    forget(dataplane, netns.cookie());
    serving.workers.leave(netns);
    serving.dns.leave(netns);
}

/// DNS sockets of the namespace; copies go to `ours`.
fn dns(inherited: &mut Sockets, ours: &mut Sockets, netns: &Arc<Netns>) -> anyhow::Result<DnsSockets> {
    let name = |kind| names::at(kind, netns.cookie());
    let (tcp, udp) = (name(names::DNS_TCP), name(names::DNS_UDP));
    let mut sockets = DnsSockets {
        tcp: inherited.take(&tcp),
        udp: inherited.take(&udp),
    };
    if sockets.tcp.is_empty() {
        sockets = netns.visit(|| DnsSockets::open(dns::DEFAULT_PORT))??;
    }
    for listener in &sockets.tcp {
        ours.add_copy(&tcp, listener)?;
    }
    for socket in &sockets.udp {
        ours.add_copy(&udp, socket)?;
    }
    Ok(sockets)
}
