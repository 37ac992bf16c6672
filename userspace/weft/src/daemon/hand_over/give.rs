//! The running daemon's side.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{task::JoinSet, time::Instant};
use weft_abi::LAYOUT;
use weft_dataplane::AFTER_A_CHANGED_LAYOUT;
use weft_proxy::NetnsListeners;

use super::{Ask, Channel, Gate, Offer, Sockets, State, Tell, channel::MAX_DESCRIPTORS, names};
use crate::{
    config::DaemonConfig,
    daemon::{engine::Engine, inbound, keepers::Keepers, notify},
    flows::{FlowQuery, FlowStore, Followed, Follower},
    state_dir::StateLock,
};

/// What runs when the gate closes (a publication, mostly) gets so long to end.
const CLOSING: Duration = Duration::from_secs(10);
/// The successor gets so long to load, publish and serve. Requests that would change something wait meanwhile, so longer
/// holds up `weft run` behind a successor that hangs; shorter fails upgrades on busy machines.
const SERVING: Duration = Duration::from_secs(60);
/// A successor that failed, or is late, gets so long to end.
const LEAVING: Duration = Duration::from_secs(10);
/// One message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Flow records in a message.
const FLOWS_PER_MESSAGE: usize = 500;

/// What a running daemon hands over, and what must rest meanwhile.
pub struct Giver {
    pub engine: Arc<Engine>,
    pub gate: Arc<Gate>,
    pub keepers: Keepers,
    pub flows: Arc<FlowStore>,
    /// Copies of all that listens.
    pub sockets: Sockets,
    pub lock: StateLock,
    pub config: DaemonConfig,
    pub bpffs: PathBuf,
    pub cgroup: PathBuf,
    pub netns: u64,
}

/// The channel after the hand-over: the successor is told of flows as long as this process lives.
pub struct Given {
    channel: Channel,
    follower: Follower,
}

// === impl Giver ===

impl Giver {
    /// Hands over, or puts everything back as it was and says why. `keepers` are the running tasks; they run again after a
    /// failure.
    ///
    /// # Errors
    ///
    /// It did not come about; this daemon is in charge as before.
    pub async fn give(&mut self, mut channel: Channel, keepers: &mut JoinSet<()>) -> anyhow::Result<Given> {
        let offer = match channel.receive(PATIENCE).await.context("read the offer")? {
            Some(Ask::Offer(offer)) => offer,
            _ => bail!("the successor made no offer"),
        };
        if let Some(reason) = self.objection(&offer) {
            let refused = Tell::Refused { reason: reason.clone() };
            channel.send(&refused, &[], PATIENCE).await.context("refuse")?;
            bail!("{reason}");
        }
        tracing::info!(pid = offer.pid, version = offer.version, "handing over");
        let began = Instant::now();
        self.rest(keepers).await?;
        match self.offered(&mut channel).await {
            Ok(follower) => {
                tracing::info!(pid = offer.pid, took_ms = began.elapsed().as_millis(), "handed over");
                Ok(Given { channel, follower })
            }
            Err(error) => {
                // It must be gone before anything is written again.
                channel.hang_up(LEAVING).await;
                self.wake(keepers).await;
                Err(error)
            }
        }
    }

    /// Why this successor cannot take over; nothing has happened yet.
    fn objection(&self, offer: &Offer) -> Option<String> {
        if offer.layout != LAYOUT {
            return Some(format!(
                "the kernel's tables have layout {LAYOUT}, the new daemon ({}) has {}: stop this one, then run \
                 {AFTER_A_CHANGED_LAYOUT}",
                offer.version, offer.layout
            ));
        }
        let differs = |what: &str, ours: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug| {
            Some(format!(
                "the running daemon has {what} {ours:?}, the new one {theirs:?}"
            ))
        };
        if offer.bpffs != self.bpffs {
            return differs("--bpffs", &self.bpffs, &offer.bpffs);
        }
        if offer.cgroup != self.cgroup {
            return differs("--cgroup", &self.cgroup, &offer.cgroup);
        }
        if offer.netns != self.netns {
            return differs("network namespace", &self.netns, &offer.netns);
        }
        None
    }

    /// Closes the copies of all that listens. What is left is the lock, which others wait for.
    pub fn close(self) -> StateLock {
        self.lock
    }

    async fn rest(&self, keepers: &mut JoinSet<()>) -> anyhow::Result<()> {
        let gate = Arc::clone(&self.gate);
        let closed = tokio::task::spawn_blocking(move || gate.close(CLOSING)).await?;
        if !closed {
            bail!("something is being changed for more than {CLOSING:?}");
        }
        keepers.shutdown().await;
        Ok(())
    }

    async fn wake(&self, keepers: &mut JoinSet<()>) {
        if let Err(error) = self.recapture() {
            tracing::error!(
                error = format!("{error:#}"),
                "the accepting side is not taken back in full"
            );
        }
        let engine = Arc::clone(&self.engine);
        let reclaimed = tokio::task::spawn_blocking(move || engine.reclaim()).await;
        match reclaimed {
            Ok(Ok(generation)) => tracing::info!(generation, "taken back"),
            Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "taken back, not in full"),
            Err(error) => tracing::error!(%error, "take back"),
        }
        notify::ready();
        self.gate.open();
        *keepers = self.keepers.start();
    }

    /// Our programs on the namespace and devices that we were told, whatever the successor was told.
    fn recapture(&self) -> anyhow::Result<()> {
        let inbound = NetnsListeners::of_sockets(self.sockets.copies(names::INBOUND)?, 1)?;
        inbound::capture(
            &self.config,
            &self.engine.dataplane,
            self.config.inbound.then_some(&inbound),
        )?;
        Ok(())
    }

    /// Everything up to the point of no return.
    async fn offered(&self, channel: &mut Channel) -> anyhow::Result<Follower> {
        let mut locks = Sockets::default();
        locks.add_copy(names::STATE_LOCK, &self.lock)?;
        let (bpffs, cgroup) = self.engine.dataplane.locks()?.context("the locks were let go")?;
        locks.add(names::BPFFS_LOCK, bpffs);
        locks.add(names::CGROUP_LOCK, cgroup);
        let in_pods = self.engine.pods.sockets()?;
        for sockets in [&locks, &self.sockets, &in_pods] {
            for (names, descriptors) in sockets.parts(MAX_DESCRIPTORS) {
                channel
                    .send(&Tell::Descriptors(names), &descriptors, PATIENCE)
                    .await
                    .context("send descriptors")?;
            }
        }
        let state = State {
            pid: std::process::id(),
            namespaces: self.engine.dataplane.namespaces().names(),
        };
        channel
            .send(&Tell::State(state), &[], PATIENCE)
            .await
            .context("send the state")?;
        match channel
            .receive(SERVING)
            .await
            .context("wait for the successor to serve")?
        {
            Some(Ask::Serving) => {}
            _ => bail!("the successor gave up; its log says why"),
        }
        let (past, follower) = self.flows.follow(FlowQuery::default());
        for flows in past.chunks(FLOWS_PER_MESSAGE) {
            let flows = flows.iter().map(|flow| (**flow).clone()).collect();
            channel
                .send(&Tell::Flows(flows), &[], PATIENCE)
                .await
                .context("send flows")?;
        }
        // Said by us, before we can end: systemd takes the end of its main process for the end of the unit.
        if let Some(pid) = channel.peer_pid() {
            notify::successor(pid);
        }
        channel.send(&Tell::Yours, &[], PATIENCE).await.context("hand over")?;
        self.gate.give_away();
        self.engine.dataplane.let_go();
        Ok(follower)
    }
}

// === impl Given ===

impl Given {
    /// Passes on what is seen of the connections that still drain; ends with the store of flows.
    pub async fn tell_flows(mut self) {
        while let Some(followed) = self.follower.next().await {
            let Followed::Flow(flow) = followed else { continue };
            let flows = Tell::Flows(vec![(*flow).clone()]);
            if let Err(error) = self.channel.send(&flows, &[], PATIENCE).await {
                tracing::debug!(%error, "the successor hears no more of flows");
                return;
            }
        }
    }
}
