//! The adapters in force: what kind `Adapter` declares, made, kept, counted and taken away again.
//!
//! ```text
//! Snapshot::adapters --update--> Live (one an object, kept while its config is equal) --+--> Chains, for the proxy
//!                       ^                                                               +--> ReporterControl
//!     Preparer::prepare +  (modules, made ready ahead)
//! ```
//! [`AdapterRuntime::update`] runs where snapshots are published, never on a request's path. An adapter that cannot be made
//! leaves the last one of that name in force; where there is none (or a reporter, and it shall judge), requests get what its
//! failure policy says. One whose modules are not ready yet leaves all as it was: nobody waits for it, and who got through before
//! still does. Only what comes with it, as everything does at the start, is not open before it is guarded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};

use weft_policy::{
    Adapter, AdapterBackend, AdapterConfig, AdapterFailure, AdapterRole, AdapterTarget, ObjectRef, ServiceName,
    Snapshot,
};

use self::{
    generations::{Generation, Generations, Watched},
    guard::{Broken, Guarded},
    made::MadeChains,
    target::{Audience, Panicked, Targeted},
};
pub use self::{
    generations::{GenerationMetrics, GenerationState, GenerationWaits},
    prepare::{Ahead, Preparer},
    wasm::WasmHost,
};
use crate::{
    builtin,
    chain::{Chain, Chains},
    error::AdapterError,
    metrics::{AdapterMetrics, CheckCounters, CheckMetrics, ReportMetrics},
    native::{Context, Part},
    pipeline::Check,
    reporter::{Report, ReporterControl, ReporterId},
    stream::FilterFactory,
};

mod generations;
mod guard;
mod made;
mod prepare;
mod target;
#[cfg(test)]
mod tests;
mod wasm;

/// See the module's words.
#[derive(Debug)]
pub struct AdapterRuntime {
    reporters: ReporterControl,
    metrics: RuntimeMetrics,
    wasm: WasmHost,
    live: BTreeMap<ObjectRef, Live>,
    /// In the order in which they look.
    order: Vec<ObjectRef>,
    /// Services that there are since the last update, or longer.
    services: BTreeSet<ServiceName>,
    /// Of the last update; `None`: there were no adapters.
    made: Option<MadeChains>,
}

/// What adapters count with.
#[derive(Debug, Clone, Default)]
pub struct RuntimeMetrics {
    pub adapters: AdapterMetrics,
    pub checks: CheckMetrics,
    pub reports: ReportMetrics,
}

/// What is known of one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterState {
    pub object: ObjectRef,
    pub role: AdapterRole,
    pub backend: AdapterBackend,
    pub failure_policy: AdapterFailure,
    /// Services it looks at, or is told about.
    pub services: usize,
    /// Why the newest version is not in force (any more).
    pub problem: Option<String>,
    /// Whether an earlier version is in force instead.
    pub earlier: bool,
    /// That is all: its modules are not ready yet, and a later publication puts it in force.
    pub pending: bool,
    pub counts: AdapterCounts,
    /// Of an adapter as WebAssembly, in the order of the object.
    pub generations: Vec<GenerationState>,
}

/// What one adapter did since it came into force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdapterCounts {
    pub allowed: u64,
    pub denied: u64,
    /// It gave no verdict, panicked, or could not be made: the failure policy decided.
    pub failed: u64,
    /// All it took, waiting included.
    pub took: Duration,
    /// Records that it was told, and that it lost.
    pub sent: u64,
    pub dropped: u64,
}

/// Why nothing can be done with a generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("no WebAssembly adapter `{object}` is in force")]
    Unknown { object: ObjectRef },
    #[error("adapter {adapter} has no generation `{name}`, but {}", there.join(", "))]
    NoGeneration {
        adapter: String,
        name: String,
        there: Vec<String>,
    },
    #[error("{object}: no other generation could take the requests; load one, or remove the adapter")]
    Alone { object: ObjectRef },
}

#[derive(Debug)]
struct Live {
    adapter: Arc<Adapter>,
    /// What `part` was made of; `None`: nothing could be made yet.
    made_of: Option<Arc<AdapterConfig>>,
    part: LivePart,
    problem: Option<String>,
    /// The problem is that its modules are not ready.
    pending: bool,
    /// Services that it guards as soon as they are: until then requests get there, as they did before.
    spared: BTreeSet<ServiceName>,
    counters: CheckCounters,
}

enum LivePart {
    Check(Arc<dyn Check>),
    Filter(Arc<dyn FilterFactory>),
    Wasm(Watched),
    /// Ended when it is dropped.
    Report(Told),
    /// It could not be made, and nothing stands in its way.
    Nothing,
}

/// A report adapter that the reporter's thread has.
#[derive(Debug)]
struct Told {
    id: ReporterId,
    audience: Audience,
    panicked: Panicked,
    reporters: ReporterControl,
}

/// The problem of a report adapter that was taken out.
const PANICKED: &str = "it panicked, and is told nothing any more until it is changed";

// === impl AdapterRuntime ===

impl AdapterRuntime {
    /// No adapters yet.
    pub fn new(reporters: ReporterControl, metrics: RuntimeMetrics, wasm: WasmHost) -> Self {
        Self {
            reporters,
            metrics,
            wasm,
            live: BTreeMap::new(),
            order: Vec::new(),
            services: BTreeSet::new(),
            made: None,
        }
    }

    /// Makes modules ready for [`AdapterRuntime::update`], under no lock.
    pub fn preparer(&self) -> Preparer {
        self.wasm.preparer().clone()
    }

    /// Whether some adapter is to come into force as soon as its modules are ready.
    pub fn awaits_modules(&self) -> bool {
        self.live.values().any(|live| live.pending)
    }

    /// Brings the adapters to what the snapshot says and gives the chains to publish with it. Those whose config did not
    /// change go on as they are, with their counts and all they remember. May block for as long as it takes to read files, but
    /// not for modules: who publishes a new one has [prepared](Preparer::prepare) it.
    pub fn update(&mut self, snapshot: &Snapshot) -> Arc<Chains> {
        let wanted: BTreeSet<&ObjectRef> = snapshot.adapters.iter().map(|adapter| &adapter.config.object).collect();
        self.forget_unguarded(snapshot);
        let (metrics, wasm) = (&self.metrics, &mut self.wasm);
        self.live.retain(|object, _| {
            let stays = wanted.contains(object);
            if !stays {
                metrics.forget(&name_of(object));
                wasm.forget(&name_of(object));
            }
            stays
        });
        let mut all_go_on = true;
        for adapter in &snapshot.adapters {
            all_go_on &= self.bring(adapter);
        }
        let running = self.live.values().filter_map(|live| {
            let generations = live.part.generations()?;
            Some((live.made_of.as_ref()?, generations.set()))
        });
        self.wasm.preparer().set_live(running);
        self.order = snapshot.adapters.iter().map(|a| a.config.object.clone()).collect();
        // Most changes leave all services there.
        if !self.services.iter().eq(snapshot.services.keys()) {
            self.services = snapshot.services.keys().cloned().collect();
        }
        let made = self.made.take().filter(|made| all_go_on && made.fit(snapshot));
        let chains = made.map_or_else(|| Arc::new(self.chains(snapshot)), |made| made.chains);
        if !snapshot.adapters.is_empty() {
            self.made = Some(MadeChains::of(snapshot, Arc::clone(&chains)));
        }
        chains
    }

    /// What loses a closed guard with this snapshot was not open before: another that takes its place, under another name maybe,
    /// does not open it while its modules start.
    fn forget_unguarded(&mut self, snapshot: &Snapshot) {
        for (object, live) in &self.live {
            let earlier = &live.adapter;
            if !earlier.config.role.sees_requests() || earlier.config.failure_policy == AdapterFailure::Open {
                continue;
            }
            let mut adapters = snapshot.adapters.iter();
            let now = adapters.find(|adapter| adapter.config.object == *object);
            for service in &earlier.target.services {
                let guards = |adapter: &Arc<Adapter>| adapter.target.services.contains(service);
                if !live.spared.contains(service) && !now.is_some_and(guards) {
                    self.services.remove(service);
                }
            }
        }
    }

    /// All adapters, in the order in which they look.
    pub fn states(&self) -> Vec<AdapterState> {
        self.order
            .iter()
            .filter_map(|object| self.live.get(object))
            .map(|live| live.state(&self.metrics.reports))
            .collect()
    }

    /// Takes a generation out by hand, at once; the newest that gets requests, unless one is named. Gives its name.
    ///
    /// # Errors
    /// There is none such, or nothing that could take its requests.
    pub fn roll_back(&self, object: &ObjectRef, named: Option<&str>) -> Result<String, GenerationError> {
        let set = self.generations(object)?.set();
        let newest = || set.all.iter().rposition(Generation::gets_requests);
        let at = match named {
            Some(name) => Some(set.position(name).ok_or_else(|| set.no_generation(name))?),
            None => newest(),
        };
        let others = |at: usize| {
            let mut others = set.all.iter().enumerate().filter(|(other, _)| *other != at);
            others.any(|(_, other)| other.gets_requests())
        };
        match at.filter(|at| set.all[*at].shadow || others(*at)) {
            Some(at) => {
                set.roll_back(at, "by hand".to_owned());
                set.record();
                Ok(set.all[at].name.clone())
            }
            None => Err(GenerationError::Alone { object: object.clone() }),
        }
    }

    /// Gives requests again to those of the named generations that were rolled back.
    ///
    /// # Errors
    /// There is none such.
    pub fn restore<'n>(&self, object: &ObjectRef, names: impl Iterator<Item = &'n str>) -> Result<(), GenerationError> {
        let set = self.generations(object)?.set();
        for name in names {
            let at = set.position(name).ok_or_else(|| set.no_generation(name))?;
            if let Ok(made) = &set.all[at].made {
                made.set_in();
            }
        }
        set.record();
        Ok(())
    }

    fn generations(&self, object: &ObjectRef) -> Result<&Generations, GenerationError> {
        let found = self.live.get(object).and_then(|live| live.part.generations());
        found.ok_or_else(|| GenerationError::Unknown { object: object.clone() })
    }

    /// Whether what was made of it before goes on.
    fn bring(&mut self, adapter: &Arc<Adapter>) -> bool {
        let config = &adapter.config;
        let name = name_of(&config.object);
        let live = self.live.entry(config.object.clone()).or_insert_with(|| Live {
            adapter: Arc::clone(adapter),
            made_of: None,
            part: LivePart::Nothing,
            problem: None,
            pending: false,
            spared: BTreeSet::new(),
            counters: self.metrics.adapters.of(&name),
        });
        let before = mem::replace(&mut live.adapter, Arc::clone(adapter));
        let spared = mem::take(&mut live.spared);
        live.pending = false;
        let goes_on = live.made_of.as_ref() == Some(config);
        if goes_on {
            // Maybe again, after one that could not be made.
            live.problem = None;
        } else {
            match make(config, live.part.generations(), &name, &self.metrics, &mut self.wasm) {
                Ok(made) => {
                    live.part = match made {
                        Made::Wasm(watched) => LivePart::Wasm(watched),
                        Made::Native(Part::Check(check)) => {
                            LivePart::Check(Arc::new(Guarded::new(check, config, live.counters.clone())))
                        }
                        Made::Native(Part::Filter(filter)) => LivePart::Filter(filter),
                        Made::Native(Part::Report(report)) => {
                            LivePart::Report(Told::new(report, &adapter.target, &self.reporters, live.part.told()))
                        }
                    };
                    live.made_of = Some(Arc::clone(config));
                    live.problem = None;
                }
                Err(error @ AdapterError::NotReady) => {
                    live.problem = Some(error.to_string());
                    live.pending = true;
                    if !live.stands_in(config) {
                        let refuses = live.refuses();
                        let refused = |service: &ServiceName| {
                            refuses && before.target.services.contains(service) && !spared.contains(service)
                        };
                        let targets = adapter.target.services.iter();
                        let open = targets.filter(|service| self.services.contains(*service) && !refused(service));
                        live.spared = open.cloned().collect();
                        live.set_broken(config);
                    }
                }
                Err(error) => {
                    let problem = chain_of(&error);
                    if live.problem.as_ref() != Some(&problem) {
                        tracing::error!(adapter = name, problem, "adapter not in force");
                    }
                    if !live.stands_in(config) {
                        live.set_broken(config);
                    }
                    live.problem = Some(problem);
                }
            }
        }
        if live.problem.is_none() {
            self.wasm.settled(&name);
        }
        if let LivePart::Report(told) = &live.part
            && !Arc::ptr_eq(&before, adapter)
        {
            told.audience.set(&adapter.target);
        }
        goes_on
    }

    /// Services that the same adapters look at share a chain.
    fn chains(&self, snapshot: &Snapshot) -> Chains {
        let mut looked: HashMap<&ServiceName, BTreeSet<usize>> = HashMap::new();
        for (index, adapter) in snapshot.adapters.iter().enumerate() {
            if adapter.config.role.sees_requests() {
                let live = self.live.get(&adapter.config.object);
                let is_spared = |service: &ServiceName| live.is_some_and(|live| live.spared.contains(service));
                for service in adapter.target.services.iter().filter(|service| !is_spared(service)) {
                    looked.entry(service).or_default().insert(index);
                }
            }
        }
        let mut chains = Chains::default();
        if looked.is_empty() {
            return chains;
        }
        let mut made: HashMap<BTreeSet<usize>, Arc<Chain>> = HashMap::new();
        let mut chain_of = |indices: &BTreeSet<usize>| match made.get(indices) {
            Some(chain) => Arc::clone(chain),
            None => {
                let chain = Arc::new(self.chain(snapshot, indices));
                made.insert(indices.clone(), Arc::clone(&chain));
                chain
            }
        };
        for (service, indices) in &looked {
            chains.insert((*service).clone(), chain_of(indices));
        }
        let nobody = BTreeSet::new();
        for service in snapshot.services.values() {
            let splits = service.ports.iter().filter_map(|port| port.split.as_ref());
            let leaves: BTreeSet<&ServiceName> = splits
                .flat_map(|split| split.backends.iter().map(|backend| &backend.service))
                .filter(|leaf| **leaf != service.name)
                .collect();
            for leaf in leaves {
                let of = |name| looked.get(name).unwrap_or(&nobody);
                let both: BTreeSet<usize> = of(&service.name).union(of(leaf)).copied().collect();
                if !both.is_empty() {
                    chains.insert_split(service.name.clone(), leaf.clone(), chain_of(&both));
                }
            }
        }
        chains
    }

    fn chain(&self, snapshot: &Snapshot, indices: &BTreeSet<usize>) -> Chain {
        let mut chain = Chain::default();
        let live = indices.iter().filter_map(|index| {
            let config = &snapshot.adapters.get(*index)?.config;
            Some((config.role, self.live.get(&config.object)?))
        });
        for (role, live) in live {
            match &live.part {
                LivePart::Check(check) if role == AdapterRole::Quota => chain.quotas.checks.push(Arc::clone(check)),
                LivePart::Check(check) => chain.pipeline.checks.push(Arc::clone(check)),
                LivePart::Filter(filter) => chain.filters.push(Arc::clone(filter)),
                LivePart::Wasm(watched) => chain.filters.push(Arc::clone(&watched.generations) as _),
                LivePart::Report(_) | LivePart::Nothing => {}
            }
        }
        chain
    }
}

// === impl RuntimeMetrics ===

impl RuntimeMetrics {
    /// The adapter `name` is gone, and its series with it.
    fn forget(&self, name: &str) {
        self.adapters.forget(name);
        self.checks.forget(name);
        self.reports.forget(name);
    }
}

// === impl Live ===

impl Live {
    /// Whether what was made last may stay for what cannot be made now: one that is told of requests does not judge them.
    fn stands_in(&self, config: &AdapterConfig) -> bool {
        let earlier = self.made_of.as_ref();
        earlier.is_some_and(|earlier| earlier.role.sees_requests() == config.role.sees_requests())
    }

    /// Nothing could be made, and requests are refused for it.
    fn refuses(&self) -> bool {
        self.made_of.is_none() && matches!(self.part, LivePart::Check(_))
    }

    /// Nothing could be made.
    fn set_broken(&mut self, config: &AdapterConfig) {
        self.made_of = None;
        self.part = Broken::part(config, &self.counters);
    }

    fn state(&self, reports: &ReportMetrics) -> AdapterState {
        let config = &self.adapter.config;
        let label = [("adapter", name_of(&config.object))];
        let panicked = matches!(&self.part, LivePart::Report(told) if told.panicked.get());
        AdapterState {
            object: config.object.clone(),
            role: config.role,
            backend: config.backend.clone(),
            failure_policy: config.failure_policy,
            services: self.adapter.target.services.len(),
            problem: self.problem.clone().or_else(|| panicked.then(|| PANICKED.to_owned())),
            earlier: self.problem.is_some() && self.made_of.is_some() && !panicked,
            pending: self.pending,
            generations: self.part.generations().map_or(Vec::new(), |found| found.set().states()),
            counts: AdapterCounts {
                allowed: self.counters.allowed.get(),
                denied: self.counters.denied.get(),
                failed: self.counters.failed.get(),
                took: Duration::from_secs_f64(self.counters.seconds.get()),
                sent: reports.sent.get(&label).map_or(0, |counter| counter.get()),
                dropped: reports.dropped.get(&label).map_or(0, |counter| counter.get()),
            },
        }
    }
}

// === impl LivePart ===

impl LivePart {
    fn generations(&self) -> Option<&Generations> {
        match self {
            Self::Wasm(watched) => Some(&watched.generations),
            _ => None,
        }
    }

    fn told(&self) -> Option<&Told> {
        match self {
            Self::Report(told) => Some(told),
            _ => None,
        }
    }
}

impl std::fmt::Debug for LivePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Check(_) => "Check",
            Self::Filter(_) => "Filter",
            Self::Wasm(_) => "Wasm",
            Self::Report(_) => "Report",
            Self::Nothing => "Nothing",
        })
    }
}

// === impl Told ===

impl Told {
    /// In the place of an earlier one, if there is one.
    fn new(
        report: Box<dyn Report>,
        target: &AdapterTarget,
        reporters: &ReporterControl,
        earlier: Option<&Self>,
    ) -> Self {
        let (audience, panicked) = (Audience::new(target), Panicked::default());
        let report = Box::new(Targeted::new(report, audience.clone(), panicked.clone()));
        Self {
            id: match earlier {
                Some(earlier) => reporters.replace(earlier.id, report),
                None => reporters.add(report),
            },
            audience,
            panicked,
            reporters: reporters.clone(),
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.reporters.remove(self.id);
    }
}

enum Made {
    Native(Part),
    Wasm(Watched),
}

fn make(
    config: &AdapterConfig,
    earlier: Option<&Generations>,
    name: &str,
    metrics: &RuntimeMetrics,
    wasm: &mut WasmHost,
) -> Result<Made, AdapterError> {
    let (native, params) = match &config.backend {
        AdapterBackend::Native { name } => (name, &config.params),
        AdapterBackend::Remote(remote) => (&remote.protocol, &remote.settings),
        AdapterBackend::Wasm(backend) => return wasm.make(config, backend, earlier).map(Made::Wasm),
    };
    let entry = builtin::find(native).ok_or_else(|| AdapterError::Unknown { name: native.clone() })?;
    let context = Context {
        name,
        object: &config.object,
        checks: &metrics.checks,
        reports: &metrics.reports,
    };
    entry.make(params, &context).map(Made::Native)
}

/// `NAMESPACE/NAME`: what an adapter is called in denials, logs and metrics.
fn name_of(object: &ObjectRef) -> String {
    match &object.namespace {
        Some(namespace) => format!("{namespace}/{}", object.name),
        None => object.name.clone(),
    }
}

fn chain_of(error: &AdapterError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
