//! Compiles what is there and puts it in force: kernel first, then the proxy and DNS.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ipnet::{Ipv4Net, Ipv6Net};
use prometheus_client::{metrics::counter::Counter, registry::Registry as MetricsRegistry};
use weft_adapters::{AdapterRuntime, AdapterState, Ahead, Chains, GenerationError, Preparer, native::Catalog};
use weft_dataplane::{Cgroup, Dataplane, Established};
use weft_policy::{
    AdapterConfig, Allocations, Captured, Class, ClassName, CompileInput, Compiled, Diagnostic, Identity, ObjectRef,
    ObjectState, Protocol, RuntimeWorkload, ServiceName, Snapshot, Store, Verdict, adapter_configs, captures, compile,
    patch,
};
use weft_proxy::SnapshotPublisher;

use super::{
    allocated::Saved,
    cuts::{Cut, Cuts},
    last_good::LastGood,
    names::Named,
    netns::{Pods, Sources},
    tables, unrecorded,
};
use crate::{admin::api::CutsView, config::DaemonConfig, registry::Registry};

/// What is in force, with what is only needed to name things in events.
#[derive(Debug, Default)]
pub struct InForce {
    pub snapshot: Arc<Snapshot>,
    /// The adapters of each service.
    pub chains: Arc<Chains>,
    /// What the compiler had to say about all objects together.
    pub diagnostics: Vec<Diagnostic>,
    /// Service port number -> service and index of the port.
    pub ports: Arc<HashMap<u32, (ServiceName, usize)>>,
    pub named: Named,
}

/// The one place where things come into force.
pub struct Engine {
    pub store: Arc<Mutex<Store>>,
    pub registry: Arc<Registry>,
    pub dataplane: Arc<Dataplane>,
    pub pods: Pods,
    pub full_tables: tables::Full,
    in_force: ArcSwap<InForce>,
    /// Also serialises publications.
    state: Mutex<State>,
    /// Held from reading who listens where until the registry has it: what was read last is what it is told last.
    pub listening: Mutex<()>,
    /// Version of the registry that the last publication saw.
    seen: AtomicU64,
    preparer: Preparer,
    /// The last publication met modules that nobody had made ready.
    awaits_modules: AtomicBool,
    unrecorded: Mutex<unrecorded::Told>,
    publications: Counter,
    vip4: Vec<Ipv4Net>,
    vip6: Vec<Ipv6Net>,
}

struct State {
    allocations: Allocations,
    saved: Saved,
    proxy: SnapshotPublisher,
    adapters: AdapterRuntime,
    last_good: LastGood,
    /// Why the last attempt did not come into force.
    problem: Option<String>,
    cuts: Cuts,
    /// What the snapshot in force was compiled from; `None`: it is to be published whatever it says.
    compiled_from: Option<CompiledFrom>,
    /// As the compiler gave it last, for the next one to be made from; `None`: all is to be compiled.
    compiled: Option<Compiled>,
}

/// All that a snapshot is compiled from, but for who listens where.
#[derive(PartialEq, Eq)]
struct CompiledFrom {
    /// Of the store.
    revision: u64,
    workloads: Vec<RuntimeWorkload>,
    captured: BTreeMap<String, Captured>,
}

// === impl Engine ===

impl Engine {
    /// Nothing is published yet.
    ///
    /// # Errors
    ///
    /// Allocations that cannot be read: virtual IPs would change under running programs, so the operator decides.
    pub fn new(
        config: &DaemonConfig,
        registry: Arc<Registry>,
        cgroup: Cgroup,
        dataplane: Arc<Dataplane>,
        proxy: SnapshotPublisher,
        adapters: AdapterRuntime,
    ) -> anyhow::Result<Self> {
        let (saved, allocations) = Saved::read(config.state.allocations())?;
        let mut last_good = LastGood::new(config.state.last_good(), config.state.last_good_file());
        let mut store = Store::with_adapters(&Catalog);
        last_good.load(&mut store);
        Ok(Self {
            store: Arc::new(Mutex::new(store)),
            registry,
            full_tables: tables::Full::default(),
            pods: Pods::new(cgroup, Arc::clone(&dataplane), Sources::new(config.state.namespaces())),
            dataplane,
            in_force: ArcSwap::default(),
            preparer: adapters.preparer(),
            awaits_modules: AtomicBool::new(false),
            state: Mutex::new(State {
                allocations,
                saved,
                proxy,
                adapters,
                last_good,
                problem: None,
                cuts: Cuts::default(),
                compiled_from: None,
                compiled: None,
            }),
            listening: Mutex::default(),
            seen: AtomicU64::new(0),
            unrecorded: Mutex::default(),
            publications: Counter::default(),
            vip4: config.vip4.clone(),
            vip6: config.vip6.clone(),
        })
    }

    /// Registers `weft_publications_total`.
    pub fn register(&self, registry: &mut MetricsRegistry) {
        registry.register(
            "weft_publications",
            "Times that resources and workloads were compiled to be put in force",
            self.publications.clone(),
        );
    }

    /// What is in force now.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Why the last publication failed; `None` if it did not.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// How long changes took to cut what they deny.
    pub fn cuts(&self) -> CutsView {
        self.state().cuts.view()
    }

    /// The adapters, in the order in which they look.
    pub fn adapters(&self) -> Vec<AdapterState> {
        self.state().adapters.states()
    }

    /// See [`AdapterRuntime::roll_back`].
    ///
    /// # Errors
    /// As there.
    pub fn roll_back(&self, adapter: &ObjectRef, generation: Option<&str>) -> Result<String, GenerationError> {
        self.state().adapters.roll_back(adapter, generation)
    }

    /// See [`AdapterRuntime::restore`].
    ///
    /// # Errors
    /// As there.
    pub fn restore(&self, adapter: &ObjectRef, generations: &[&str]) -> Result<(), GenerationError> {
        let state = self.state();
        state.adapters.restore(adapter, generations.iter().copied())?;
        // What they do beside requests begins again.
        state.proxy.tell_again();
        Ok(())
    }

    /// Whether the registry changed since the last publication.
    pub fn is_behind(&self) -> bool {
        *self.registry.changes().borrow() != self.seen.load(Ordering::Acquire)
    }

    /// Whether all resources are in force as they are now: nothing of them is to be published, and nothing to be tried again.
    /// What a path of a `capture` leads to is no matter of resources. Waits for a publication that is under way.
    pub fn is_current(&self) -> bool {
        let state = self.state();
        let compiled = state.compiled_from.as_ref().map(|from| from.revision);
        let revision = Some(self.store().revision());
        state.problem.is_none() && compiled == revision && !self.awaits_modules() && !self.is_behind()
    }

    /// Compiles and publishes. Blocks: files, system calls, and a grace period of the kernel, but no module. Adapters whose modules
    /// are not ready stay as they are until somebody has made them ready and publishes again.
    ///
    /// # Errors
    ///
    /// The kernel refused a table; what was in force stays in force, and [`Engine::problem`] keeps saying why.
    pub fn publish(&self) -> anyhow::Result<u64> {
        let mut state = self.state();
        // Whoever sees what it brings finds it counted.
        self.publications.inc();
        let result = self.try_publish(&mut state);
        let problem = result.as_ref().err().map(|error| format!("{error:#}"));
        // It is tried again and again: what is known is not said again.
        if let Some(error) = problem.as_ref().filter(|_| problem != state.problem) {
            tracing::error!(error, "not in force; the last good state stays");
        }
        state.problem = problem;
        result
    }

    /// The same, after all modules that come into force with it were made ready. That may take minutes, in which others publish.
    ///
    /// # Errors
    ///
    /// As [`Engine::publish`].
    pub fn prepare_and_publish(&self) -> anyhow::Result<u64> {
        let _ahead = self.prepare_stored();
        self.publish()
    }

    /// Makes all modules ready that come into force next, as [`Engine::prepare`] does.
    pub fn prepare_stored(&self) -> Ahead {
        let wanted = adapter_configs(&self.store());
        self.prepare(&wanted)
    }

    /// Makes the modules of these adapters ready: compiled and started. What comes back is to be kept until they are published.
    pub fn prepare(&self, adapters: &[Arc<AdapterConfig>]) -> Ahead {
        self.preparer.prepare(adapters.iter().map(|config| &**config))
    }

    /// Whether [`Engine::prepare_and_publish`] would take long.
    pub fn lacks_modules(&self) -> bool {
        let wanted = adapter_configs(&self.store());
        self.preparer.lacks(wanted.iter().map(|config| &**config))
    }

    /// Whether adapters stay as they were for modules that were not ready at the last publication.
    pub fn awaits_modules(&self) -> bool {
        self.awaits_modules.load(Ordering::Acquire)
    }

    /// Puts everything back in force that a successor which gave up may have replaced: programs, tables, files.
    ///
    /// # Errors
    ///
    /// As [`Engine::publish`], or the kernel did not take programs or settings back.
    pub fn reclaim(&self) -> anyhow::Result<u64> {
        let reclaimed = self.dataplane.reclaim().context("take the kernel side back");
        {
            let mut state = self.state();
            state.saved.look_again();
            state.compiled_from = None;
            state.compiled = None;
            state.last_good.look_again();
        }
        let published = self.publish();
        // Also under an older policy.
        self.pods.reclaim();
        reclaimed?;
        published
    }

    fn try_publish(&self, state: &mut State) -> anyhow::Result<u64> {
        let begun = Instant::now();
        self.seen.store(*self.registry.changes().borrow(), Ordering::Release);
        let workloads = self.registry.runtime();
        let wanted = captures(&self.store());
        let captured = self.pods.look(wanted, &workloads);
        let basis = state.compiled.take();
        let (compiled, from) = {
            let store = self.store();
            let from = CompiledFrom::new(store.revision(), &workloads, &captured);
            let input = CompileInput {
                store: &store,
                workloads: &workloads,
                captured: &captured,
                vip4: &self.vip4,
                vip6: &self.vip6,
                acceleration: self.dataplane.default_acceleration().acceleration,
                generation: self.dataplane.next_generation(),
            };
            let patched = basis.and_then(|basis| patch(&basis, &input));
            let compiled = patched.unwrap_or_else(|| compile(&input, &mut state.allocations));
            (compiled, from)
        };
        state.saved.save(&mut state.allocations)?;
        state.compiled = Some(compiled.clone());
        let mut snapshot = compiled.snapshot;
        // What the kernel has no room for nobody is to see, not for a moment: it is tried again and again.
        let plan = self.dataplane.plan(&snapshot).context("publish to the kernel")?;
        let chains = state.adapters.update(&snapshot);
        self.awaits_modules
            .store(state.adapters.awaits_modules(), Ordering::Release);
        tell_problems(&state.adapters.states(), &mut snapshot);
        // Only who listens where can have changed. Any program may listen and close as often as it likes, so this must not
        // have everything judged again: where no table says it, it is no other generation.
        let before = self.in_force();
        let unmoved = state.compiled_from.take().is_some_and(|before| before == from) && self.dataplane.holds(&plan);
        if unmoved {
            snapshot.generation = before.snapshot.generation;
        }
        let snapshot = Arc::new(snapshot);
        let ports = before.ports_of(&snapshot);
        // Names and proxy before the kernel: its first event under the new generation may name a rule that only this one
        // knows, and a connection that it hands over under the new one must not be judged under the old.
        let before = self.in_force.swap(Arc::new(InForce {
            snapshot: Arc::clone(&snapshot),
            chains: Arc::clone(&chains),
            diagnostics: compiled.diagnostics,
            ports,
            named: Named::default(),
        }));
        state.proxy.publish(Arc::clone(&snapshot), chains);
        if unmoved {
            self.dataplane.rest_on(&snapshot);
            state.compiled_from = Some(from);
            return Ok(snapshot.generation);
        }
        let published = match self.dataplane.publish(&snapshot, plan) {
            Ok(published) => published,
            Err(error) => {
                state
                    .proxy
                    .publish(Arc::clone(&before.snapshot), Arc::clone(&before.chains));
                self.in_force.store(before);
                return Err(anyhow::Error::new(error).context("publish to the kernel"));
            }
        };
        tracing::debug!(
            generation = published.generation,
            changed = published.changed,
            whole = published.whole,
            "in force"
        );
        state.compiled_from = Some(from);
        let in_force = begun.elapsed();
        self.pods.take_effect();
        self.pods.settle();
        self.unrecorded().enrolled(&before.snapshot, &snapshot);
        if published.rejudge {
            let connections = self.cut(&snapshot);
            if connections > 0 {
                let cut = Cut {
                    generation: published.generation,
                    connections,
                    in_force,
                    reset: begun.elapsed().saturating_sub(in_force),
                };
                tracing::info!(?cut, "connections reset that the new policy denies");
                state.cuts.note(cut);
            }
        }
        let changes = state.last_good.changes(&self.store());
        if let Err(error) = state.last_good.keep(&changes) {
            tracing::warn!(%error, "the last good version of resources is not kept for the next start");
        }
        Ok(published.generation)
    }

    /// The kernel has cut connections. Most of them the publication that denies them resets; one whose handshake outlasted that
    /// publication stands in the table only since then.
    pub fn cut_late(&self) {
        // After a publication that is under way.
        let _state = self.state();
        let connections = self.cut(&self.in_force().snapshot);
        if connections > 0 {
            tracing::info!(
                connections,
                "connections reset that were denied before they were established"
            );
        }
    }

    /// Resets the connections past the proxy that are denied now, and those whose requests must be looked at from now on. Of
    /// the denied ones the kernel drops packets from the first one under the new generation on; this tells their programs.
    /// Returns how many.
    fn cut(&self, snapshot: &Snapshot) -> usize {
        let now = Parties::of(snapshot);
        let denied = |connection: &Established| {
            let (source, destination) = (now.source(connection), now.destination(connection));
            let port = connection.to.port();
            let access = snapshot.authorize_connection(source.0, destination.0, Protocol::Tcp, port);
            let seen = snapshot.wants_requests(source.0, destination.0, port);
            let looked_at = snapshot.guard(destination.0, port).is_some();
            let network = snapshot.authorize_network(source.1, destination.1, Protocol::Tcp, port);
            match network.and(access).verdict {
                Verdict::Deny => true,
                Verdict::NeedsHttp => !connection.past_the_proxy,
                // As the kernel's table has it: what one rule allows and another wants to see is to be looked at.
                Verdict::Allow | Verdict::Audit => !connection.past_the_proxy && (seen || looked_at),
            }
        };
        let mut doomed = match self.dataplane.doomed(denied) {
            Ok(doomed) => doomed,
            Err(error) => {
                tracing::warn!(%error, "connections that are denied now are not reset; their packets are dropped");
                return 0;
            }
        };
        doomed.reset() + self.pods.reset(&mut doomed)
    }

    /// Says in the log, once, what workloads have open of which the kernel side knows nothing. Looks only after somebody was
    /// enrolled.
    pub fn tell_unrecorded(&self) {
        if self.unrecorded().is_stale() {
            let found = unrecorded::find(self);
            self.unrecorded().tell(found);
        }
    }

    fn unrecorded(&self) -> MutexGuard<'_, unrecorded::Told> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The objects; not to be held for long.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who the ends of a connection are now: labels change, ranges and workloads elsewhere come and go. As the kernel's
/// `verdict::again` has it: else it drops what nobody resets, and both ends wait for each other.
struct Parties<'a> {
    snapshot: &'a Snapshot,
    /// Workloads by their own addresses, as `weft_addrs` has them: of two with one address the first. Made for the first connection
    /// of which no record says who its ends are.
    by_address: OnceCell<HashMap<IpAddr, Identity>>,
}

// === impl Parties ===

impl<'a> Parties<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            by_address: OnceCell::new(),
        }
    }

    fn at(&self, address: IpAddr) -> Option<Identity> {
        let by_address = self.by_address.get_or_init(|| {
            let mut by_address = HashMap::new();
            for workload in &self.snapshot.workloads {
                for address in workload.addresses.iter().filter(|address| !address.is_loopback()) {
                    by_address.entry(address.to_canonical()).or_insert(workload.identity);
                }
            }
            by_address
        });
        by_address.get(&address.to_canonical()).copied()
    }

    fn source(&self, connection: &Established) -> (Identity, Class) {
        let noted = (Identity(connection.source), Class(connection.source_class));
        match connection.owner {
            Some(cgroup) => match self.snapshot.by_cgroup.get(&cgroup) {
                Some(workload) => (workload.identity, workload.class),
                None => noted,
            },
            None if noted.0 == Identity::UNKNOWN_LOCAL => noted,
            None => {
                let class = self.snapshot.class_of_address(connection.from);
                (self.at(connection.from).unwrap_or(Identity::UNKNOWN), class)
            }
        }
    }

    fn destination(&self, connection: &Established) -> (Identity, Class) {
        let (identity, noted) = (Identity(connection.destination), Class(connection.destination_class));
        let now = self
            .snapshot
            .class_of_destination(connection.to, Protocol::Tcp, identity);
        // Somebody outside, who is a workload elsewhere now.
        if identity == Identity::OUTSIDE
            && let Some(known) = self.at(connection.to.ip())
        {
            return (known, now);
        }
        // Whoever does not listen any more may still hold what it accepted.
        let classes = &self.snapshot.classes;
        let is_gone = identity >= Identity::FIRST && !matches!(classes.get(&now), Some(ClassName::Workloads { .. }));
        if is_gone || identity == Identity::UNKNOWN_LOCAL {
            (identity, noted)
        } else {
            (identity, now)
        }
    }
}

// === impl CompiledFrom ===

impl CompiledFrom {
    fn new(revision: u64, workloads: &[RuntimeWorkload], captured: &BTreeMap<String, Captured>) -> Self {
        let without = |workload: &RuntimeWorkload| RuntimeWorkload {
            listening: Vec::new(),
            ..workload.clone()
        };
        Self {
            revision,
            workloads: workloads.iter().map(without).collect(),
            captured: captured.clone(),
        }
    }
}

/// The status of an adapter that could not be made says so. Without such a one the snapshot goes on sharing its statuses.
fn tell_problems(states: &[AdapterState], snapshot: &mut Snapshot) {
    for adapter in states {
        let without = adapter.generations.iter().filter_map(|generation| {
            let why = generation.problem.as_ref().or(generation.rolled_back.as_ref())?;
            Some(format!("; without generation {}: {why}", generation.name))
        });
        let without: String = without.collect();
        if adapter.problem.is_none() && without.is_empty() {
            continue;
        }
        let found = snapshot.status_index(&adapter.object);
        let Some(status) = found.and_then(|index| snapshot.statuses.get_mut(index)) else {
            continue;
        };
        match &adapter.problem {
            Some(problem) if adapter.pending => {
                (status.state, status.reason) = (ObjectState::Pending, problem.clone().into())
            }
            Some(problem) if adapter.earlier => {
                status.state = ObjectState::Rejected;
                status.reason = format!("{problem}; its last good version stays in force").into();
            }
            Some(problem) => (status.state, status.reason) = (ObjectState::NotEnforced, problem.clone().into()),
            None => status.reason.to_mut().push_str(&without),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_an_address_is_found_by_it_of_two_the_first() {
        let mut store = Store::default();
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.1"), ("c", "192.0.2.2")] {
            let text = format!(
                "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
                 spec: {{address: {address}, serviceAccount: {name}}}\n"
            );
            store.apply_file(name, text.as_bytes());
        }
        let input = CompileInput::of(&store);
        let snapshot = compile(&input, &mut Allocations::default()).snapshot;
        let parties = Parties::of(&snapshot);
        let account = |address: &str| {
            let identity = parties.at(address.parse().expect("an address"))?;
            Some(snapshot.account(identity)?.name.clone())
        };
        for (address, expect) in [
            ("192.0.2.1", Some("a")),
            ("::ffff:192.0.2.1", Some("a")),
            ("192.0.2.2", Some("c")),
            ("192.0.2.3", None),
        ] {
            assert_eq!(account(address).as_deref(), expect, "{address}");
        }
    }
}
