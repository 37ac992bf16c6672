//! A plugin: a module with its configuration, and its instances on all workers.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use tracing::warn;
use wasmtime::InstancePre;

use super::{
    budget::Budget,
    calls,
    config::{FailurePolicy, Instances, PluginConfig},
    counters::{AllCounters, Stats},
    error::WasmError,
    failed::Failed,
    host::Host,
    http_stream::HttpStream,
    inbox::Inbox,
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

/// Makes the filters of one module with one configuration. Dropped, it makes no more, and its instances end with the last
/// streams in them.
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
    pub upstreams: Arc<dyn Upstreams>,
    pub counters: AllCounters,
    failed_streams: AtomicU64,
    /// Instances that wait for a worker to take them: the oldest first, for that is told of queues.
    stock: Mutex<VecDeque<Vm>>,
    /// A thread is making one more.
    restocking: AtomicBool,
    /// The last stream that was to have its own instance got none.
    cannot_start: AtomicBool,
    /// The [`Plugin`] was dropped.
    gone: AtomicBool,
    /// Of instances that have a task: told when the plugin goes.
    inboxes: Mutex<Vec<Weak<Inbox>>>,
}

thread_local! {
    /// Instances of this worker, by plugin.
    static PLACES: RefCell<HashMap<u64, Place>> = RefCell::default();
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
            shared: services.of(&config.name),
            module,
            pre,
            config,
            upstreams,
            counters: AllCounters::default(),
            failed_streams: AtomicU64::new(0),
            stock: Mutex::default(),
            restocking: AtomicBool::new(false),
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
        Vm::start(&self.inner).map(drop)
    }

    /// Makes instances until there are `workers` for workers to take, so that no request waits for a start; where each stream
    /// has its own, one that is thrown away. Not on a worker.
    ///
    /// # Errors
    /// One does not start.
    pub fn prepare(&self, workers: usize) -> Result<(), WasmError> {
        if self.inner.config.instances == Instances::Stream {
            return self.canary();
        }
        while lock(&self.inner.stock).len() < workers {
            let vm = Vm::start(&self.inner)?;
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
            ..self.inner.counters.sum()
        }
    }

    /// Data, queues and metrics of the adapter.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

impl FilterFactory for Plugin {
    fn name(&self) -> &str {
        &self.inner.config.name
    }

    fn stream(&self, info: &Rc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        match self.inner.take().and_then(|worker| HttpStream::begin(worker, info)) {
            Some(stream) => Some(Box::new(stream)),
            None => self.inner.failed().map(|failed| Box::new(failed) as _),
        }
    }

    fn tcp(&self, info: &Rc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
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

    /// Puts an instance into this thread's place.
    fn replace(self: &Arc<Self>) -> Option<Rc<Worker>> {
        let now = Instant::now();
        let may = PLACES.with_borrow_mut(|places| {
            places.retain(|_, place| {
                place
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
        if stocked.is_some() {
            self.restock();
        }
        let made = stocked.map_or_else(|| Vm::start(self), Ok);
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

    /// Makes one instance more on a thread of its own, for the one that was taken.
    fn restock(self: &Arc<Self>) {
        if self.restocking.swap(true, Ordering::AcqRel) {
            return;
        }
        let plugin = Arc::downgrade(self);
        let started = thread::Builder::new().name("weft-wasm-warm".into()).spawn(move || {
            let Some(plugin) = plugin.upgrade() else { return };
            if let Ok(vm) = Vm::start(&plugin) {
                lock(&plugin.stock).push_back(vm);
                if plugin.gone.load(Ordering::Acquire) {
                    plugin.empty_stock();
                }
            }
            plugin.restocking.store(false, Ordering::Release);
        });
        if started.is_err() {
            self.restocking.store(false, Ordering::Release);
        }
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
