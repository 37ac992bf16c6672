//! The successor's side.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use weft_abi::LAYOUT;
use weft_dataplane::Inherited;

use super::{Ask, Channel, Offer, Sockets, State, Tell, names};
use crate::{
    admin::{Client, ClientError},
    config::DaemonConfig,
    flows::FlowStore,
    registry::own_netns,
    state_dir::StateLock,
};

/// The running daemon may have to wait for what it is changing.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a running daemon has passed; it still serves.
pub struct Taken {
    channel: Channel,
    /// What listens there.
    pub sockets: Sockets,
    state: State,
}

// === impl Taken ===

impl Taken {
    /// Asks the daemon of the state directory to hand over. `None`: there is none, which makes this an ordinary start.
    ///
    /// # Errors
    ///
    /// It refuses, in its words, or is of a version that cannot.
    pub async fn ask(config: &DaemonConfig, cgroup: &Path) -> anyhow::Result<Option<Self>> {
        let stream = match Client::new(&config.state).hand_over().await {
            Ok(stream) => stream,
            Err(ClientError::NoDaemon { .. }) => {
                tracing::info!("no daemon runs that could be taken over");
                return Ok(None);
            }
            Err(error) => return Err(anyhow::Error::new(error).context("ask the running daemon to hand over")),
        };
        let mut channel = Channel::new(stream);
        let offer = Offer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            layout: LAYOUT,
            bpffs: absolute(&config.bpffs),
            cgroup: cgroup.to_path_buf(),
            netns: own_netns()?,
        };
        channel
            .send(&Ask::Offer(offer), &[], PATIENCE)
            .await
            .context("make an offer")?;
        let mut sockets = Sockets::default();
        loop {
            let told = channel
                .receive(PATIENCE)
                .await
                .context("take over from the running daemon")?;
            match told.ok_or_else(|| anyhow!("the running daemon did not hand over; its log says why"))? {
                Tell::Refused { reason } => bail!("the running daemon refuses to hand over: {reason}"),
                Tell::Descriptors(names) => {
                    let descriptors = channel.descriptors(names.len())?;
                    for (name, descriptor) in names.iter().zip(descriptors) {
                        sockets.add(name, descriptor);
                    }
                }
                Tell::State(state) => {
                    tracing::info!(pid = state.pid, "taking over");
                    return Ok(Some(Self {
                        channel,
                        sockets,
                        state,
                    }));
                }
                Tell::Flows(_) | Tell::Yours => bail!("the running daemon speaks out of turn"),
            }
        }
    }

    /// The lock of the state directory.
    ///
    /// # Errors
    ///
    /// It was not passed, or is of another directory.
    pub fn state_lock(&mut self, config: &DaemonConfig) -> anyhow::Result<StateLock> {
        let lock = self.sockets.take_one(names::STATE_LOCK).context("no lock was passed")?;
        Ok(config.state.handed_over(lock)?)
    }

    /// What the kernel side needs.
    ///
    /// # Errors
    ///
    /// It was not passed.
    pub fn inherited(&mut self) -> anyhow::Result<Inherited> {
        let mut lock = |name| self.sockets.take_one(name).context("no lock was passed");
        Ok(Inherited {
            bpffs_lock: lock(names::BPFFS_LOCK)?,
            cgroup_lock: lock(names::CGROUP_LOCK)?,
            namespaces: self.state.namespaces.clone(),
        })
    }

    /// Says that everything is served, and returns when the earlier daemon has let go: from then on this one is in charge.
    /// The flows that it kept are in `flows`. `unused` is what nobody took of [`Taken::sockets`].
    ///
    /// # Errors
    ///
    /// The earlier daemon has not let go, so this one must not go on: two would write the same tables.
    pub async fn serving(mut self, unused: Sockets, flows: &Arc<FlowStore>) -> anyhow::Result<Drained> {
        let left = unused.left();
        if !left.is_empty() {
            tracing::warn!(
                ?left,
                "sockets of the earlier daemon that this one has no use for are closed"
            );
        }
        self.channel
            .send(&Ask::Serving, &[], PATIENCE)
            .await
            .context("say that this daemon serves")?;
        loop {
            let told = self
                .channel
                .receive(PATIENCE)
                .await
                .context("wait for the earlier daemon to let go")?;
            match told.ok_or_else(|| anyhow!("the earlier daemon has not let go; its log says why"))? {
                Tell::Flows(past) => past.into_iter().for_each(|flow| flows.push(Arc::new(flow))),
                Tell::Yours => return Ok(Drained(self.channel)),
                _ => bail!("the earlier daemon speaks out of turn"),
            }
        }
    }
}

/// The earlier daemon, while it drains.
pub struct Drained(Channel);

// === impl Drained ===

impl Drained {
    /// Keeps the flows it still sees. Ends when it does.
    pub async fn keep_flows(mut self, flows: Arc<FlowStore>) {
        loop {
            match self.0.next().await {
                Ok(Some(Tell::Flows(more))) => more.into_iter().for_each(|flow| flows.push(Arc::new(flow))),
                Ok(Some(_)) => {}
                Ok(None) => {
                    tracing::info!("the earlier daemon is gone");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the earlier daemon's last flows are lost");
                    return;
                }
            }
        }
    }
}

/// The path by which both daemons call it.
pub fn absolute(path: &Path) -> std::path::PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
