//! Workloads with `capture`: whose processes they are, and the network namespaces that we are in for their sake. The one
//! place where namespaces are added and removed.
//!
//! ```text
//! Workload {cgroup, netns} --> look ----> Captured {cgroup id, namespace cookie} --> compile, publish: enrolled
//!    (paths, as written)                           |
//!                                               settle: listeners 15001, 15006, 15053 opened inside, sk_lookup attached;
//!                                                       closed and detached where no Workload names the namespace any more
//! ```
//!
//! Paths come and go without a word, hence [`follow`]. What is open in a namespace keeps it alive; so once its file is gone
//! we leave, and it ends with its last process. The cgroup stays enrolled as long as it exists: verdicts hold.

mod inside;
mod paths;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use weft_dataplane::{Cgroup, Dataplane, Doomed};
use weft_policy::{Capture, CaptureField, CaptureProblem, Captured, RuntimeWorkload};
use weft_proxy::{Netns, WorkersHandle, dns::DnsServer};

use super::{
    engine::Engine,
    hand_over::{Gate, HandedOver, Sockets},
    keepers::goes_on,
};
use inside::Inside;
use paths::{Paths, cgroup_id};
pub use sources::Sources;

/// How often paths are looked at: what appears is captured, and what is gone is left, after at most so long.
const LOOK: Duration = Duration::from_millis(500);
/// Every so many looks, addresses inside are read again, and what failed is tried again, also a publication.
const SETTLE_EVERY: u64 = 10;
/// What connections that have their client's address get to finish in a namespace that we left.
const PARTING: Duration = Duration::from_secs(30);

/// See the module's words.
pub struct Pods {
    cgroup: Cgroup,
    dataplane: Arc<Dataplane>,
    sources: Sources,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the Workloads in force say, and what became of each when last looked.
    wanted: BTreeMap<String, Capture>,
    found: BTreeMap<String, Captured>,
    /// What the policy in force was made of.
    in_force: BTreeMap<String, Captured>,
    paths: Paths,
    /// Namespaces that we are in, by cookie.
    inside: BTreeMap<u64, Inside>,
    /// Why we are not in one.
    failed: BTreeMap<u64, String>,
    /// Left, when, and what connections with clients' addresses need is still there.
    parting: Vec<(Arc<Netns>, Instant)>,
    /// `None`: not yet, or not any more.
    serving: Option<Serving>,
}

/// What is needed to be in a namespace.
pub struct Serving {
    pub workers: WorkersHandle,
    pub dns: Arc<DnsServer>,
    /// What an earlier daemon passed.
    pub inherited: Sockets,
}

// === impl Pods ===

impl Pods {
    pub fn new(cgroup: Cgroup, dataplane: Arc<Dataplane>, sources: Sources) -> Self {
        Self {
            cgroup,
            dataplane,
            sources,
            state: Mutex::default(),
        }
    }

    /// What the paths lead to now, by workload. `running` are those of `weft run`, whose cgroups are theirs.
    pub fn look(&self, wanted: BTreeMap<String, Capture>, running: &[RuntimeWorkload]) -> BTreeMap<String, Captured> {
        let mut state = self.state();
        state.wanted = wanted;
        state.found = self.found(&mut state, running);
        state.found.clone()
    }

    /// Whether the paths lead elsewhere than when last looked; without any, this costs nothing.
    fn differs(&self, running: impl FnOnce() -> Vec<RuntimeWorkload>) -> bool {
        let mut state = self.state();
        if state.wanted.is_empty() {
            return false;
        }
        self.found(&mut state, &running()) != state.found
    }

    fn found(&self, state: &mut State, running: &[RuntimeWorkload]) -> BTreeMap<String, Captured> {
        let State {
            wanted, paths, failed, ..
        } = state;
        let mut holders: BTreeMap<u64, &str> = running
            .iter()
            .map(|workload| (workload.cgroup, workload.name.as_str()))
            .collect();
        let home = self.dataplane.home();
        let mut found = BTreeMap::new();
        paths.keep(wanted.values().filter_map(|capture| capture.netns.as_deref()));
        for (name, capture) in &*wanted {
            let cgroup = match cgroup_id(&self.cgroup, &capture.cgroup) {
                Ok(id) => match holders.get(&id) {
                    Some(holder) => Err(format!("it is the cgroup of workload {holder}")),
                    None => {
                        holders.insert(id, name);
                        Ok(id)
                    }
                },
                Err(reason) => Err(reason),
            };
            let netns = match &capture.netns {
                Some(path) => paths.namespace(path).map(Some),
                None => Ok(None),
            };
            let problem = |field, reason: &String| {
                let reason = reason.clone();
                Some(CaptureProblem { field, reason })
            };
            let captured = match (cgroup, netns) {
                // A namespace that nobody is captured in is not entered.
                (Err(reason), _) => Captured {
                    problem: problem(CaptureField::Cgroup, &reason),
                    ..Captured::default()
                },
                (Ok(id), Err(reason)) => Captured {
                    cgroup: Some(id),
                    netns: None,
                    problem: problem(CaptureField::Netns, &reason),
                },
                (Ok(id), Ok(netns)) => {
                    let netns = netns.map(|netns| netns.cookie()).filter(|cookie| *cookie != home);
                    let failed = netns.and_then(|cookie| failed.get(&cookie));
                    Captured {
                        cgroup: Some(id),
                        netns,
                        problem: failed.and_then(|reason| problem(CaptureField::Netns, reason)),
                    }
                }
            };
            found.insert(name.clone(), captured);
        }
        found
    }

    /// From now on namespaces are entered. Those that an earlier daemon was in and nobody wants any more are left.
    pub fn serve(&self, serving: Serving) {
        let mut state = self.state();
        state.serving = Some(serving);
        self.settle_with(&mut state);
        for cookie in self.dataplane.entered_netns() {
            if !state.inside.contains_key(&cookie) {
                inside::forget(&self.dataplane, cookie);
            }
        }
    }

    /// Once no earlier daemon can take its place back: takes back what it put into namespaces that we are not in.
    pub fn clean(&self) {
        let state = self.state();
        if let Err(error) = self.sources.clean(|cookie| state.inside.contains_key(&cookie)) {
            tracing::warn!(
                error = format!("{error:#}"),
                "an earlier daemon's rule and route stay in a pod"
            );
        }
    }

    /// What of an earlier daemon's sockets nobody took.
    pub fn unused(&self) -> Sockets {
        let mut state = self.state();
        let serving = state.serving.as_mut();
        serving
            .map(|serving| std::mem::take(&mut serving.inherited))
            .unwrap_or_default()
    }

    /// Closes what we hold open; the kernel side, and what a successor was given, stay. Returns the namespaces that are left by
    /// that, for [`Pods::part`].
    pub fn close(&self) -> Vec<Arc<Netns>> {
        let mut state = self.state();
        state.serving = None;
        let parting = std::mem::take(&mut state.parting).into_iter().map(|(netns, _)| netns);
        let inside = std::mem::take(&mut state.inside)
            .into_values()
            .map(|inside| inside.netns);
        parting.chain(inside).collect()
    }

    /// When no connection is left and no successor took over: takes back what clients' addresses need in namespaces.
    pub fn part(&self, left: Vec<Arc<Netns>>) {
        for netns in left {
            self.sources.take_back(&netns);
        }
    }

    /// Whether our servers are in that namespace, so that what is captured there is served.
    pub fn is_inside(&self, cookie: u64) -> bool {
        self.state().inside.contains_key(&cookie)
    }

    /// Namespaces, by the paths of their Workloads, in which servers do not see their clients' addresses, and why.
    pub fn unseen(&self) -> Vec<(String, String)> {
        let state = self.state();
        let why = |inside: &Inside| {
            let lost = inside.netns.source_lost().map(str::to_owned);
            inside.unseen.clone().or(lost)
        };
        let unseen = state.inside.iter().filter_map(|(cookie, inside)| {
            let (path, _) = state.paths.by_cookie(*cookie)?;
            Some((path.to_owned(), why(inside)?))
        });
        unseen.collect()
    }

    /// Copies of all our listeners in namespaces.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn sockets(&self) -> std::io::Result<Sockets> {
        let mut copies = Sockets::default();
        for inside in self.state().inside.values() {
            copies.extend_copies(&inside.sockets)?;
        }
        Ok(copies)
    }

    /// What was found when last looked is in force now.
    pub fn take_effect(&self) {
        let mut state = self.state();
        state.in_force = state.found.clone();
    }

    /// Enters and leaves namespaces as the policy in force wants it.
    pub fn settle(&self) {
        self.settle_with(&mut self.state());
    }

    /// Tries again to show clients' addresses where that failed. It may take seconds, so nobody waits for it.
    fn show_sources(&self) {
        let unseen: Vec<(String, Arc<Netns>)> = {
            let state = self.state();
            let unseen = state.inside.iter().filter(|(_, inside)| inside.unseen.is_some());
            let found = unseen.filter_map(|(cookie, _)| state.paths.by_cookie(*cookie));
            found
                .map(|(path, netns)| (path.to_owned(), Arc::clone(netns)))
                .collect()
        };
        for (path, netns) in unseen {
            let put = self.sources.put(&netns, &path);
            match self.state().inside.get_mut(&netns.cookie()) {
                Some(inside) => inside.are_seen(put.unseen),
                // It was left meanwhile.
                None => self.sources.undo(&netns, put),
            }
        }
    }

    fn settle_with(&self, state: &mut State) {
        let Some(serving) = &mut state.serving else { return };
        let wanted: BTreeSet<u64> = state.in_force.values().filter_map(|captured| captured.netns).collect();
        state.failed.retain(|cookie, _| wanted.contains(cookie));
        for cookie in &wanted {
            let result = match (state.inside.get_mut(cookie), state.paths.by_cookie(*cookie)) {
                (Some(inside), _) => {
                    if inside.unseen.is_none() {
                        inside.are_seen(self.sources.put_again(&inside.netns));
                    }
                    inside.refresh(&self.dataplane)
                }
                (None, Some(found)) => Inside::enter(&self.dataplane, serving, &self.sources, found).map(|inside| {
                    tracing::info!(netns = cookie, "listening in a network namespace");
                    state.parting.retain(|(netns, _)| netns.cookie() != *cookie);
                    state.inside.insert(*cookie, inside);
                }),
                // It went while we looked; the next look says so.
                (None, None) => Ok(()),
            };
            match result {
                Ok(()) => _ = state.failed.remove(cookie),
                Err(error) => {
                    let reason = format!("{error:#}");
                    if state.failed.get(cookie) != Some(&reason) {
                        tracing::warn!(
                            netns = cookie,
                            error = reason,
                            "not all is in place in a network namespace"
                        );
                        state.failed.insert(*cookie, reason);
                    }
                }
            }
        }
        let gone: Vec<u64> = state
            .inside
            .keys()
            .filter(|cookie| !wanted.contains(cookie))
            .copied()
            .collect();
        for cookie in gone {
            if let Some(inside) = state.inside.remove(&cookie) {
                state.parting.push((Arc::clone(&inside.netns), Instant::now()));
                inside.leave(&self.dataplane, serving);
                tracing::info!(netns = cookie, "left a network namespace");
            }
        }
        state.parting.retain(|(netns, since)| {
            let stays = netns.keeps_sources() && since.elapsed() < PARTING;
            if !stays {
                self.sources.take_back(netns);
            }
            stays
        });
    }

    /// The directory of a cgroup that a `capture` names; `None`: it cannot be one.
    pub fn cgroup_of(&self, written: &str) -> Option<PathBuf> {
        self.cgroup.of_workload(Path::new(written)).ok()
    }

    /// What is seen in each namespace that we are in, by cookie.
    pub fn visit<T: Send>(&self, look: impl Fn() -> std::io::Result<T> + Sync) -> Vec<(u64, std::io::Result<T>)> {
        let state = self.state();
        let inside = state.inside.iter();
        inside
            .map(|(cookie, inside)| (*cookie, inside.netns.visit(&look).flatten()))
            .collect()
    }

    /// Resets connections in the namespaces that we are in; how many.
    pub fn reset(&self, doomed: &mut Doomed) -> usize {
        let mut cut = 0;
        for (cookie, inside) in &self.state().inside {
            if doomed.is_empty() {
                break;
            }
            match inside.netns.visit(|| doomed.reset()) {
                Ok(more) => cut += more,
                Err(error) => tracing::warn!(netns = cookie, %error, "connections of a pod are not reset"),
            }
        }
        cut
    }

    /// Puts back what a successor that gave up may have changed in the kernel.
    pub fn reclaim(&self) {
        for (cookie, inside) in &self.state().inside {
            if let Err(error) = inside.tell_kernel(&self.dataplane) {
                let error = format!("{error:#}");
                tracing::error!(netns = cookie, error, "a network namespace is not taken back in full");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at paths, publishes what has changed, until it is dropped.
pub async fn follow(engine: Arc<Engine>, gate: Arc<Gate>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1_u64.. {
        ticks.tick().await;
        let (engine, gate) = (Arc::clone(&engine), Arc::clone(&gate));
        let looked = tokio::task::spawn_blocking(move || {
            let _pass = gate.enter()?;
            let again = tick.is_multiple_of(SETTLE_EVERY);
            if engine.pods.differs(|| engine.registry.runtime()) || (again && engine.problem().is_some()) {
                // A failure is logged and kept for `weft status`.
                let _ = engine.publish();
            }
            engine.tell_unrecorded();
            if again {
                engine.pods.settle();
                engine.pods.show_sources();
            }
            Ok::<_, HandedOver>(())
        });
        if !goes_on(looked.await) {
            return;
        }
    }
}
