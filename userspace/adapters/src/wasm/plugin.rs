//! A plugin: a module with its configuration, and its instances on all workers.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt,
    hash::BuildHasherDefault,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::warn;
use wasmtime::InstancePre;

use super::{
    budget::Budget,
    calls,
    config::{FailurePolicy, Instances, PluginConfig},
    counters::{AllCounters, Stats},
    engine::thread_time,
    error::WasmError,
    failed::Failed,
    host::{Host, SerialHasher},
    http_stream::HttpStream,
    inbox::Inbox,
    metric::Metrics,
    module::Module,
    services::{Services, Shared},
    tcp_stream::TcpStream,
    vm::Vm,
    worker::Worker,
};
use crate::{
    stream::{FilterFactory, StreamFilter, StreamInfo, TcpFilter},
    upstreams::Upstreams,
};

/// Where a start takes more CPU time, none is made on a worker: all that it serves would wait.
const SLOW_START: Duration = Duration::from_millis(1);

/// Makes the filters of one module with one configuration. Dropped, it makes no more, and its instances end after the last
/// streams in them, when they have flushed what they have to.
pub struct Plugin {
    inner: Arc<Inner>,
}

/// What instances share.
pub(super) struct Inner {
    /// Unique in this process.
    id: u64,
    pub module: Module,
    pub pre: InstancePre<Host>,
    pub config: PluginConfig,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    pub upstreams: Arc<dyn Upstreams>,
    pub counters: AllCounters,
    failed_streams: AtomicU64,
    pub failed_beside: AtomicU64,
    /// Instances that wait for a worker to take them: the oldest first, for that is told of queues.
    stock: Mutex<VecDeque<Vm>>,
    /// How many of them there should be.
    wanted: AtomicUsize,
    /// A thread is making more.
    restocking: AtomicBool,
    /// What that may take.
    restock_budget: Mutex<Budget>,
    /// CPU time of the last start, nanoseconds; 0: there was none.
    start_cost: AtomicU64,
    /// The last stream that was to have its own instance got none.
    cannot_start: AtomicBool,
    /// The [`Plugin`] was dropped.
    gone: AtomicBool,
    /// Of instances that have a task: told when the plugin goes.
    inboxes: Mutex<Vec<Weak<Inbox>>>,
}

thread_local! {
    /// Instances of this worker, by plugin.
    static PLACES: RefCell<HashMap<u64, Place, BuildHasherDefault<SerialHasher>>> = RefCell::default();
}

/// Where a worker keeps its instance of one plugin.
struct Place {
    plugin: Weak<Inner>,
    worker: Option<Rc<Worker>>,
    budget: Budget,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Plugin ===

impl Plugin {
    pub(super) fn new(
        module: Module,
        config: PluginConfig,
        services: &Services,
        upstreams: Arc<dyn Upstreams>,
    ) -> Result<Self, WasmError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let linker = calls::linker(module.compiled(), module.abi(), &config.capabilities)?;
        let pre = linker.instantiate_pre(module.compiled()).map_err(calls::link_error)?;
        let inner = Inner {
            id: LAST.fetch_add(1, Ordering::Relaxed),
            shared: services.shared(config.shares.as_ref().unwrap_or(&config.name)),
            metrics: services.metrics(&config.name),
            module,
            pre,
            config,
            upstreams,
            counters: AllCounters::default(),
            failed_streams: AtomicU64::new(0),
            failed_beside: AtomicU64::new(0),
            stock: Mutex::default(),
            wanted: AtomicUsize::new(1),
            restocking: AtomicBool::new(false),
            restock_budget: Mutex::new(Budget::new(Instant::now())),
            start_cost: AtomicU64::new(0),
            cannot_start: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            inboxes: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes an instance, starts and configures the plugin in it, and throws it away: shows whether it would run. Not on
    /// a worker, for a start may take long.
    ///
    /// # Errors
    /// It does not start; what the module said about it is in the error.
    pub fn canary(&self) -> Result<(), WasmError> {
        self.inner.start().map(drop)
    }

    /// Makes instances until there are `workers` for workers to take, so that no request waits for a start. The first of them
    /// shows whether it would run: an instance that was started and no more is as good as new. Where each stream has its own,
    /// one that is thrown away. Not on a worker.
    ///
    /// # Errors
    /// One does not start.
    pub fn prepare(&self, workers: usize) -> Result<(), WasmError> {
        if self.inner.config.instances == Instances::Stream {
            return self.canary();
        }
        self.inner.wanted.fetch_max(workers, Ordering::Relaxed);
        while lock(&self.inner.stock).len() < workers {
            let vm = self.inner.start()?;
            lock(&self.inner.stock).push_back(vm);
        }
        Ok(())
    }

    pub fn module(&self) -> &Module {
        &self.inner.module
    }

    pub fn config(&self) -> &PluginConfig {
        &self.inner.config
    }

    /// What it cost and what went wrong, up to now.
    pub fn stats(&self) -> Stats {
        Stats {
            failed_streams: self.inner.failed_streams.load(Ordering::Relaxed),
            failed_beside: self.inner.failed_beside.load(Ordering::Relaxed),
            ..self.inner.counters.sum()
        }
    }

    /// Metrics that the adapter's modules defined.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }
}

impl FilterFactory for Plugin {
    fn name(&self) -> &str {
        &self.inner.config.name
    }

    fn warm(&self) {
        if self.inner.config.instances == Instances::Worker {
            self.inner.worker();
        }
    }

    fn stream(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        match self.inner.take().and_then(|worker| HttpStream::begin(worker, info)) {
            Some(stream) => Some(Box::new(stream)),
            None => self.inner.failed().map(|failed| Box::new(failed) as _),
        }
    }

    fn tcp(&self, info: &Arc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
        match self.inner.take().and_then(|worker| TcpStream::begin(worker, info)) {
            Some(stream) => Some(Box::new(stream)),
            None => self.inner.failed().map(|failed| Box::new(failed) as _),
        }
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("config", &self.inner.config)
            .field("module", &self.inner.module)
            .finish_non_exhaustive()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.inner.gone.store(true, Ordering::Release);
        self.inner.empty_stock();
        let inboxes = lock(&self.inner.inboxes);
        inboxes.iter().filter_map(Weak::upgrade).for_each(|inbox| inbox.close());
    }
}

// === impl Inner ===

impl Inner {
    /// The instance for a new stream; `None`: none can be had now.
    fn take(self: &Arc<Self>) -> Option<Rc<Worker>> {
        match self.config.instances {
            Instances::Worker => self.worker(),
            Instances::Stream => match Vm::start(self) {
                Ok(vm) => {
                    if self.cannot_start.load(Ordering::Relaxed) {
                        self.cannot_start.store(false, Ordering::Relaxed);
                    }
                    Some(Worker::alone(self.clone(), vm))
                }
                Err(error) => {
                    // Not for each of the streams that meet it.
                    if !self.cannot_start.swap(true, Ordering::Relaxed) {
                        warn!(plugin = &*self.config.name, "no instance: {error}");
                    }
                    None
                }
            },
        }
    }

    /// This thread's instance, made if there is none that runs; `None`: none can be had now.
    fn worker(self: &Arc<Self>) -> Option<Rc<Worker>> {
        let found = PLACES.with_borrow(|places| {
            let worker = places.get(&self.id)?.worker.as_ref()?;
            worker.runs().then(|| worker.clone())
        });
        found.or_else(|| self.replace())
    }

    fn start(self: &Arc<Self>) -> Result<Vm, WasmError> {
        let began = thread_time();
        let made = Vm::start(self);
        let cost = thread_time().saturating_sub(began).as_nanos();
        self.start_cost
            .store(u64::try_from(cost).unwrap_or(u64::MAX), Ordering::Relaxed);
        made
    }

    fn starts_slowly(&self) -> bool {
        Duration::from_nanos(self.start_cost.load(Ordering::Relaxed)) > SLOW_START
    }

    /// Puts an instance into this thread's place.
    fn replace(self: &Arc<Self>) -> Option<Rc<Worker>> {
        let now = Instant::now();
        let may = PLACES.with_borrow_mut(|places| {
            places.retain(|_, place| {
                let tended = place.worker.as_ref().is_some_and(|worker| worker.is_tended());
                tended
                    || place
                        .plugin
                        .upgrade()
                        .is_some_and(|plugin| !plugin.gone.load(Ordering::Acquire))
            });
            let place = places.entry(self.id).or_insert_with(|| Place {
                plugin: Arc::downgrade(self),
                worker: None,
                budget: Budget::new(now),
            });
            place.worker = None;
            place.budget.may_start(now)
        });
        if !may {
            return None;
        }
        let stocked = lock(&self.stock).pop_front();
        let made = match stocked {
            Some(vm) => {
                self.restock();
                Ok(vm)
            }
            None if self.starts_slowly() => {
                self.restock();
                return None;
            }
            None => self.start(),
        };
        let worker = match made {
            Ok(vm) => Some(Worker::new(self.clone(), vm)),
            Err(error) => {
                warn!(plugin = &*self.config.name, "no instance: {error}");
                None
            }
        };
        PLACES.with_borrow_mut(|places| {
            if let Some(place) = places.get_mut(&self.id) {
                place.budget.started(now.elapsed());
                place.worker.clone_from(&worker);
            }
        });
        worker
    }

    /// Fills the stock on a thread of its own, as far as it may take the time.
    fn restock(self: &Arc<Self>) {
        if !self.wants_more() || self.restocking.swap(true, Ordering::AcqRel) {
            return;
        }
        let plugin = Arc::downgrade(self);
        let started = thread::Builder::new().name("weft-wasm-warm".into()).spawn(move || {
            while let Some(plugin) = plugin.upgrade() {
                if !plugin.stock_one() {
                    plugin.restocking.store(false, Ordering::Release);
                    return;
                }
            }
        });
        if started.is_err() {
            self.restocking.store(false, Ordering::Release);
        }
    }

    /// Puts one more into the stock; `false`: there are enough, or none can be had now.
    fn stock_one(self: &Arc<Self>) -> bool {
        if !self.wants_more() {
            return false;
        }
        let began = Instant::now();
        let made = self.start();
        lock(&self.restock_budget).started(began.elapsed());
        match made {
            Ok(vm) => lock(&self.stock).push_back(vm),
            Err(error) => {
                warn!(plugin = &*self.config.name, "no instance: {error}");
                return false;
            }
        }
        if self.gone.load(Ordering::Acquire) {
            self.empty_stock();
        }
        true
    }

    /// Whether the stock is to be filled now.
    fn wants_more(&self) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        !self.gone.load(Ordering::Acquire)
            && lock(&self.stock).len() < wanted
            && lock(&self.restock_budget).may_start(Instant::now())
    }

    /// Instances know the plugin: in stock they would keep it for ever.
    fn empty_stock(&self) {
        let stock = std::mem::take(&mut *lock(&self.stock));
        drop(stock);
    }

    /// An instance's task listens there until the plugin goes.
    pub fn tell_when_gone(&self, inbox: &Arc<Inbox>) {
        let mut inboxes = lock(&self.inboxes);
        inboxes.retain(|other| other.strong_count() > 0);
        inboxes.push(Arc::downgrade(inbox));
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// What stands in for a filter that cannot run; `None`: nothing, the stream goes on.
    pub fn failed(&self) -> Option<Failed> {
        self.failed_streams.fetch_add(1, Ordering::Relaxed);
        match self.config.failure {
            FailurePolicy::Open => None,
            FailurePolicy::Closed => Some(Failed::new(&self.config.name)),
        }
    }
}

/// Takes the instances of gone plugins off this thread.
pub(super) fn forget(id: u64) {
    let place = PLACES.with_borrow_mut(|places| places.remove(&id));
    // Outside the borrow: the last stream's end may run the module.
    drop(place);
}
