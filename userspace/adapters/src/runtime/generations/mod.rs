//! Generations of one WebAssembly adapter, and which of them a request meets.
//!
//! A request draws its generation by weight when its filter is made, and keeps it to its end; but one that fails at the
//! request's head, before anything of it has passed, is followed by another generation, as if it had never been. A generation
//! that does worse than those before it in the object's list is rolled back ([`rollback`]): it gets no further request, and those
//! that it has end in it.

mod defined;
mod drawn;
pub(super) mod ledger;
mod metrics;
mod rollback;
mod shadow;
mod tcp;
mod waits;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use weft_policy::{WasmProtocols, WasmRollback};

pub use self::metrics::GenerationMetrics;
use self::{
    drawn::Drawn,
    ledger::{Ledger, Writer},
    shadow::Shadowed,
    waits::Waits,
};
use super::GenerationError;
use crate::{
    background::Task,
    error::AdapterError,
    stream::{FilterFactory, StreamFilter, StreamInfo, TcpFilter},
    wasm::{Digest, Metrics, Plugin, PluginConfig, Stats},
};

/// All generations of an adapter, for those who make filters of them.
pub(super) struct Generations {
    set: Arc<Set>,
}

/// Generations in force. Connections that began under them may keep them much longer than they are.
pub(super) struct Watched {
    pub generations: Arc<Generations>,
    /// Rolls back those that do worse.
    _watcher: Option<Task>,
}

/// What the requests share.
pub(super) struct Set {
    pub name: String,
    protocols: WasmProtocols,
    /// It refuses what it cannot look at.
    closed: bool,
    rollback: Option<WasmRollback>,
    pub all: Vec<Generation>,
    ledger: Arc<Ledger>,
    writer: Writer,
    /// Of a generation that is out.
    news: Arc<Notify>,
}

/// One of them, in the list that an object gives.
pub(super) struct Generation {
    pub name: String,
    pub weight: u32,
    /// It sees copies of requests.
    pub shadow: bool,
    /// Or why it does not run.
    pub made: Result<Arc<Made>, String>,
}

/// A plugin and what it was made of. Equal ones are the same generation still, whatever its name and weight are.
pub(super) struct Made {
    pub of: Ingredients,
    pub plugin: Arc<Plugin>,
    out: AtomicBool,
    /// Why it is out.
    why: Mutex<Option<String>>,
    /// Requests and connections that it failed on since the last look.
    failures: AtomicU64,
    /// How long it keeps requests waiting, as one of several.
    waits: Waits,
    /// Requests that it, a shadow, would have answered (connections that it would have ended) and the others did not, or the
    /// other way round.
    disagreed: AtomicU64,
}

/// What a plugin is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ingredients {
    pub module: Digest,
    pub config: PluginConfig,
}

/// One generation of a WebAssembly adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationState {
    pub name: String,
    /// Of the module; `None`: it does not run.
    pub digest: Option<Digest>,
    /// Its share of the requests, relative to those of the others.
    pub weight: u32,
    /// It sees copies of requests and changes nothing.
    pub shadow: bool,
    /// Why it does not run.
    pub problem: Option<String>,
    /// Why it gets no requests any more, though it runs.
    pub rolled_back: Option<String>,
    /// Of a shadow: requests and connections over which it was of another mind than the generation in force.
    pub disagreed: u64,
    /// How long requests wait for it; `None`: that is not measured, for it is the only one, or a shadow.
    pub waiting: Option<GenerationWaits>,
    pub stats: Stats,
}

/// How long requests and connections wait for a generation, as one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationWaits {
    /// Those that have passed with their head, or wait; so many are measured.
    pub requests: u64,
    /// Of these, those that it holds now.
    pub held: u64,
    /// What all of them have waited by now.
    pub time: Duration,
}

// === impl Watched ===

impl Watched {
    /// From here on those that do worse are rolled back.
    ///
    /// # Errors
    /// The watcher cannot be started.
    pub fn start(set: Set) -> Result<Self, AdapterError> {
        let set = Arc::new(set);
        let watcher = rollback::watch(&set)?;
        Ok(Self {
            generations: Arc::new(Generations { set }),
            _watcher: watcher,
        })
    }
}

// === impl Generations ===

impl Generations {
    pub fn set(&self) -> &Arc<Set> {
        &self.set
    }
}

impl FilterFactory for Generations {
    fn name(&self) -> &str {
        &self.set.name
    }

    fn requires_http(&self) -> bool {
        self.set.closed && !self.set.protocols.tcp
    }

    /// Spares of weight zero and shadows too, not those that are out.
    fn warm(&self) {
        let running = self.set.all.iter().filter(|generation| generation.runs());
        let made = running.filter_map(|generation| generation.made.as_ref().ok());
        made.for_each(|made| made.plugin.warm());
    }

    fn stream(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        let set = &self.set;
        if !set.protocols.http {
            return None;
        }
        let shadows = Shadowed::shadows(set, info);
        if let ([only], true) = (&*set.all, shadows.is_empty()) {
            return only.made.as_ref().ok()?.plugin.stream(info);
        }
        let drawn = Drawn::new(set, info);
        match shadows.is_empty() {
            true => Some(Box::new(drawn?)),
            false => Some(Box::new(Shadowed::new(drawn, shadows))),
        }
    }

    fn tcp(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
        if !self.set.protocols.tcp {
            return None;
        }
        match &*self.set.all {
            [only] if !only.shadow => only.made.as_ref().ok()?.plugin.tcp(info),
            _ => Some(Box::new(tcp::Shadowed::new(&self.set, info)?)),
        }
    }
}

// === impl Set ===

impl Set {
    pub fn new(
        name: &str,
        protocols: WasmProtocols,
        closed: bool,
        rollback: Option<WasmRollback>,
        ledger: &Arc<Ledger>,
        all: Vec<Generation>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            protocols,
            closed,
            rollback,
            all,
            ledger: Arc::clone(ledger),
            writer: ledger.writer(name),
            news: Arc::default(),
        }
    }

    /// What was made of these ingredients already.
    pub fn made_of(&self, ingredients: &Ingredients) -> Option<Arc<Made>> {
        let mut made = self.all.iter().filter_map(|generation| generation.made.as_ref().ok());
        made.find(|made| made.of == *ingredients).cloned()
    }

    pub fn states(&self) -> Vec<GenerationState> {
        let measures = self.all.len() > 1;
        self.all.iter().map(|generation| generation.state(measures)).collect()
    }

    pub fn position(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|generation| generation.name == name)
    }

    pub fn no_generation(&self, name: &str) -> GenerationError {
        GenerationError::NoGeneration {
            adapter: self.name.clone(),
            name: name.to_owned(),
            there: self.all.iter().map(|generation| generation.name.clone()).collect(),
        }
    }

    /// What its modules count with, a set for each name under which they do: the adapter's, and that of its shadows.
    fn metrics(&self) -> Vec<(Arc<str>, Arc<Metrics>)> {
        let mut metrics: Vec<(Arc<str>, Arc<Metrics>)> = Vec::new();
        for made in self.all.iter().filter_map(|generation| generation.made.as_ref().ok()) {
            let (name, of) = (&made.of.config.name, made.plugin.metrics());
            if !metrics.iter().any(|(_, known)| Arc::ptr_eq(known, of)) {
                metrics.push((Arc::clone(name), Arc::clone(of)));
            }
        }
        metrics
    }

    fn made(&self, at: usize) -> Option<&Arc<Made>> {
        self.all.get(at)?.made.as_ref().ok()
    }

    /// Those that see copies, and their places.
    fn shadows(&self) -> impl Iterator<Item = (usize, &Arc<Made>)> {
        let all = self.all.iter().enumerate();
        let shadows = all.filter(|(_, generation)| generation.shadow && generation.runs());
        shadows.filter_map(|(at, generation)| Some((at, generation.made.as_ref().ok()?)))
    }

    /// Which one the request `id` draws, by weight, of those that run and are not in the bits of `without`. Where none of
    /// these has a weight, the first; where all are out, the first that could be made: better than nobody who looks.
    fn draw(&self, id: u64, without: u32) -> Option<usize> {
        let may = |at: usize| without & (1 << at) == 0 && self.all[at].gets_requests();
        let weight = |at: usize| if may(at) { self.all[at].weight } else { 0 };
        let made = |generation: &Generation| !generation.shadow && generation.made.is_ok();
        draw((0..self.all.len()).map(weight), id)
            .or_else(|| (0..self.all.len()).find(|at| may(*at)))
            .or_else(|| self.all.iter().position(made).filter(|_| without == 0))
    }

    /// A request met a failure of this one.
    fn failed(&self, at: usize) {
        let Some(made) = self.made(at) else { return };
        let failures = made.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(rollback) = &self.rollback
            && failures >= rollback.failures
            && self.has_predecessor(at)
        {
            self.roll_back(
                at,
                format!("failed on {failures} requests within {:?}", rollback::WATCH),
            );
        }
    }

    /// Whether another one can take its requests: one before it, that has proved itself.
    fn has_predecessor(&self, at: usize) -> bool {
        self.all[..at].iter().any(Generation::gets_requests)
    }

    /// It gets no further request.
    pub fn roll_back(&self, at: usize, why: String) {
        let Some(made) = self.made(at) else { return };
        if made.set_out(&why) {
            let generation = &self.all[at].name;
            tracing::error!(adapter = self.name, generation, why, "rolled back");
            self.news.notify_one();
        }
    }

    /// Writes into the ledger who is out, unless another set has taken its place.
    pub fn record(&self) {
        let made = self.all.iter().filter_map(|generation| generation.made.as_ref().ok());
        let known = || made.map(|made| (made.of.key(), made.why())).collect();
        // What could not be read now may have been rolled back earlier, and come again.
        let all = self.all.iter().all(|generation| generation.made.is_ok());
        self.ledger.set(&self.name, self.writer, known, all);
    }
}

// === impl Generation ===

impl Generation {
    /// Whether requests may be given to it.
    pub fn gets_requests(&self) -> bool {
        !self.shadow && self.runs()
    }

    /// It could be made and is not out.
    fn runs(&self) -> bool {
        self.made.as_ref().is_ok_and(|made| !made.is_out())
    }

    /// `measures`: what waits for it, if it is no shadow.
    fn state(&self, measures: bool) -> GenerationState {
        let made = self.made.as_ref();
        let waits = made.ok().filter(|_| measures && !self.shadow);
        GenerationState {
            name: self.name.clone(),
            digest: made.ok().map(|made| made.of.module),
            weight: self.weight,
            shadow: self.shadow,
            problem: made.err().cloned(),
            rolled_back: made.ok().and_then(|made| made.why()),
            disagreed: made.map_or(0, |made| made.disagreed.load(Ordering::Relaxed)),
            waiting: waits.map(|made| made.waits.state()),
            stats: made.map_or(Stats::default(), |made| made.plugin.stats()),
        }
    }
}

// === impl Made ===

impl Made {
    /// `out`: why it was rolled back earlier.
    pub fn new(of: Ingredients, plugin: Arc<Plugin>, out: Option<String>) -> Self {
        Self {
            of,
            plugin,
            out: AtomicBool::new(out.is_some()),
            why: Mutex::new(out),
            failures: AtomicU64::new(0),
            waits: Waits::default(),
            disagreed: AtomicU64::new(0),
        }
    }

    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    /// It gets requests again.
    pub fn set_in(&self) {
        let mut why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        *why = None;
        self.failures.store(0, Ordering::Relaxed);
        self.out.store(false, Ordering::Relaxed);
    }

    /// Whether it was in.
    fn set_out(&self, because: &str) -> bool {
        let mut why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if why.is_some() {
            return false;
        }
        *why = Some(because.to_owned());
        self.out.store(true, Ordering::Relaxed);
        true
    }

    /// Why it is out.
    fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Ingredients ===

impl Ingredients {
    /// The same for the same ingredients, also in another process of this version.
    pub fn key(&self) -> String {
        Digest::of(format!("{self:?}").as_bytes()).to_string()
    }
}

/// Which of these weights the number `id` draws; `None`: all are zero.
fn draw(weights: impl Iterator<Item = u32> + Clone, id: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut drawn = scatter(id).checked_rem(total)?;
    weights.map(u64::from).position(|weight| {
        let here = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        here
    })
}

/// Numbers of streams are given out in turns; what draws by them must not see turns (the finish of splitmix64).
fn scatter(id: u64) -> u64 {
    let mixed = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_drawn_by_weight() {
        let drawn = |weights: &[u32]| {
            let mut counts = vec![0_u32; weights.len()];
            for id in 0..10_000 {
                counts[draw(weights.iter().copied(), id).unwrap()] += 1;
            }
            counts
        };
        assert_eq!(drawn(&[0, 1]), [0, 10_000]);
        let counts = drawn(&[90, 10]);
        // Six standard deviations of the binomial distribution are 180.
        assert!((820..=1180).contains(&counts[1]), "{counts:?}");
        assert_eq!(draw([0, 0].into_iter(), 7), None);
        assert!(draw([u32::MAX, u32::MAX].into_iter(), 7).is_some());
    }
}
