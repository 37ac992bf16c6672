//! One instance of a module: its store, its callbacks, the plugin's context in it.

use std::{sync::Arc, time::Instant};

use wasmtime::{Store, TypedFunc, WasmParams, WasmResults};

use super::{
    callout::Event,
    clock::Ticking,
    engine::{CLOCK, engine, on_tick},
    error::{Stop, WasmError},
    exports::{Exports, Finder, HeadersCallback},
    host::{Answer, Deadline, Host, MemoryLimit, ROOT},
    inbox::Inbox,
    plugin::Inner,
};

/// An instance. Belongs to one thread at a time.
pub(super) struct Vm {
    pub store: Store<Host>,
    pub exports: Exports,
    _ticking: Ticking,
}

/// Lengths as the ABI has them.
pub(super) fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

// === impl Vm ===

impl Vm {
    /// Makes an instance, and starts and configures the plugin in it: microseconds for small modules, tens of milliseconds
    /// for those that bring a runtime.
    ///
    /// # Errors
    /// It traps, takes too long, asks for more memory than it may have, or says no.
    pub fn start(plugin: &Arc<Inner>) -> Result<Self, WasmError> {
        let config = &plugin.config;
        let counters = plugin.counters.instance();
        let host = Host {
            counters: counters.clone(),
            inbox: Arc::new(Inbox::default()),
            memory: None,
            allocate: None,
            deadline: Deadline {
                limit: config.limits.start_deadline,
                first_tick: None,
            },
            calling_since: None,
            limiter: MemoryLimit {
                bytes: config.limits.memory,
                counters,
            },
            effective: ROOT,
            streams: Default::default(),
            closing: Default::default(),
            answer: Answer::default(),
            metrics: Vec::new(),
            tick: None,
            tick_changed: false,
            outbox: Vec::new(),
            kept: Default::default(),
            calls: Default::default(),
            cancelled: Vec::new(),
            done: Vec::new(),
            root_done: None,
            last_token: 0,
            words: None,
            scratch: Vec::new(),
            plugin: plugin.clone(),
        };
        let engine = engine()?;
        let ticking = CLOCK.hold().map_err(|source| WasmError::Engine {
            reason: format!("a thread for its clock: {source}"),
        })?;
        let mut store = Store::new(engine, host);
        store.limiter(|host| &mut host.limiter);
        store.epoch_deadline_callback(on_tick);
        store.set_epoch_deadline(1);
        let instantiated = instantiate(&mut store, plugin);
        store.data_mut().count_time();
        let exports = match instantiated {
            Ok(exports) => exports,
            Err(Failed::Refused(error)) => return Err(error),
            Err(Failed::Ended(stage, error)) => {
                count(&store, &error);
                let reason = reason(&error);
                let said = store.data_mut().words.take();
                return Err(WasmError::Start { stage, reason, said });
            }
        };
        let host = store.data_mut();
        host.deadline.limit = plugin.config.limits.deadline;
        host.words = None;
        Ok(Self {
            store,
            exports,
            _ticking: ticking,
        })
    }

    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Headers came. 0: go on.
    pub fn on_headers(&mut self, request: bool, context: u32, count: usize, end: bool) -> wasmtime::Result<u32> {
        let (count, end) = (length(count), u32::from(end));
        let callback = if request {
            &self.exports.request_headers
        } else {
            &self.exports.response_headers
        };
        match callback {
            HeadersCallback::None => Ok(0),
            HeadersCallback::Two(callback) => run(&mut self.store, callback, context, (context, count)),
            HeadersCallback::Three(callback) => run(&mut self.store, callback, context, (context, count, end)),
        }
    }

    /// A new context below the plugin's.
    pub fn create_context(&mut self, context: u32) -> wasmtime::Result<()> {
        optional(&mut self.store, &self.exports.context_create, context, (context, ROOT)).map(drop)
    }

    /// Whether the context may be deleted now.
    pub fn on_done(&mut self, context: u32) -> wasmtime::Result<bool> {
        let done = optional(&mut self.store, &self.exports.done, context, context)?;
        Ok(done.is_none_or(|done| done != 0))
    }

    /// The last callbacks of a context.
    fn delete_context(&mut self, context: u32) -> wasmtime::Result<()> {
        optional(&mut self.store, &self.exports.log, context, context)?;
        optional(&mut self.store, &self.exports.delete, context, context)?;
        Ok(())
    }

    /// The same, and the host forgets it.
    pub fn end_context(&mut self, context: u32) -> wasmtime::Result<()> {
        self.delete_context(context)?;
        self.host().remove_stream(context);
        Ok(())
    }

    /// Asks the plugin's own context whether it may be deleted; it may say so later.
    pub fn ask_root(&mut self) -> wasmtime::Result<()> {
        self.host().root_done = Some(false);
        if self.on_done(ROOT)? {
            self.host().root_done = Some(true);
        }
        Ok(())
    }

    /// The last callbacks of all contexts that there are. As in Envoy, the plugin's own is not logged: there are SDKs that end the
    /// module at that.
    pub fn end(&mut self) -> wasmtime::Result<()> {
        while let Some(context) = self.host().waiting() {
            self.end_context(context)?;
        }
        optional(&mut self.store, &self.exports.delete, ROOT, ROOT).map(drop)
    }

    pub fn on_tick(&mut self) -> wasmtime::Result<()> {
        optional(&mut self.store, &self.exports.tick, ROOT, ROOT).map(drop)
    }

    pub fn on_queue_ready(&mut self, queue: u32) -> wasmtime::Result<()> {
        optional(&mut self.store, &self.exports.queue_ready, ROOT, (ROOT, queue)).map(drop)
    }

    /// Tells `context` of an answer.
    pub fn deliver(&mut self, context: u32, event: Event) -> wasmtime::Result<()> {
        let (store, exports) = (&mut self.store, &self.exports);
        let host = store.data_mut();
        let told = match event {
            Event::Http { token, answer } => {
                host.answer = Answer::http(answer);
                let answer = &host.answer;
                let headers = answer.head.as_ref().map_or(0, |head| head.headers.len() + 1);
                let (bytes, trailers) = (answer.body.len(), answer.trailers.len());
                let about = (context, token, length(headers), length(bytes), length(trailers));
                optional(store, &exports.http_call_response, context, about)
            }
            Event::GrpcInitial { token, metadata } => {
                let about = (context, token, length(metadata.len()));
                host.answer.grpc_initial = metadata;
                optional(store, &exports.grpc_initial, context, about)
            }
            Event::GrpcMessage { token, message, .. } => {
                let about = (context, token, length(message.len()));
                host.answer.grpc_message = message;
                optional(store, &exports.grpc_message, context, about)
            }
            Event::GrpcTrailing { token, metadata } => {
                let about = (context, token, length(metadata.len()));
                host.answer.grpc_trailing = metadata;
                optional(store, &exports.grpc_trailing, context, about)
            }
            Event::GrpcClose { token, status, text } => {
                (host.answer.grpc_status, host.answer.grpc_text) = (status, text);
                optional(store, &exports.grpc_close, context, (context, token, status))
            }
        };
        self.store.data_mut().answer = Answer::default();
        told.map(drop)
    }
}

/// Calls a callback, if the module has it.
pub(super) fn optional<P: WasmParams, R: WasmResults>(
    store: &mut Store<Host>,
    callback: &Option<TypedFunc<P, R>>,
    context: u32,
    parameters: P,
) -> wasmtime::Result<Option<R>> {
    match callback {
        Some(callback) => run(store, callback, context, parameters).map(Some),
        None => Ok(None),
    }
}

/// Calls a callback about `context`. After an error nothing more may run in this store. The time is for whoever entered the instance
/// to count ([`Host::count_time`]).
pub(super) fn run<P: WasmParams, R: WasmResults>(
    store: &mut Store<Host>,
    callback: &TypedFunc<P, R>,
    context: u32,
    parameters: P,
) -> wasmtime::Result<R> {
    let host = store.data_mut();
    host.effective = context;
    host.deadline.first_tick = None;
    host.calling_since.get_or_insert_with(Instant::now);
    host.counters.callbacks.add(1);
    store.set_epoch_deadline(1);
    CLOCK.called();
    let result = callback.call(&mut *store, parameters);
    if let Err(error) = &result {
        count(store, error);
    }
    result
}

fn count(store: &Store<Host>, error: &wasmtime::Error) {
    let counters = &store.data().counters;
    counters.traps.add(1);
    if matches!(error.downcast_ref(), Some(Stop::Deadline { .. })) {
        counters.deadlines.add(1);
    }
}

/// Why a callback ended, in one line: the host's reason, else the trap.
pub(super) fn reason(error: &wasmtime::Error) -> String {
    match (error.downcast_ref::<Stop>(), error.downcast_ref::<wasmtime::Trap>()) {
        (Some(stop), _) => stop.to_string(),
        (_, Some(trap)) => trap.to_string(),
        _ => error.root_cause().to_string(),
    }
}

/// Why an instance does not start.
enum Failed {
    Refused(WasmError),
    Ended(&'static str, wasmtime::Error),
}

impl From<WasmError> for Failed {
    fn from(error: WasmError) -> Self {
        Self::Refused(error)
    }
}

fn instantiate(store: &mut Store<Host>, plugin: &Inner) -> Result<Exports, Failed> {
    let instance = plugin.pre.instantiate(&mut *store);
    let instance = instance.map_err(|error| Failed::Ended("instantiate", error))?;
    let mut find = Finder {
        instance: &instance,
        store: &mut *store,
    };
    let allocate = match find.callback("proxy_on_memory_allocate")? {
        Some(allocate) => Some(allocate),
        None => find.callback("malloc")?,
    };
    let initialize = find.callback::<(), ()>("_initialize")?;
    let start = find.callback::<(), ()>("_start")?;
    // As the reference host does; only after `_initialize`, for `_start` calls it.
    let main = find.callback::<(u32, u32), u32>("main").ok().flatten();
    let main = main.filter(|_| initialize.is_some());
    let memory = instance.get_memory(&mut *store, "memory");
    let host = store.data_mut();
    (host.memory, host.allocate) = (memory, allocate.map(Arc::new));
    let exports = Exports::of(&instance, store, plugin.module.abi())?;
    for (stage, function) in [("_initialize", initialize), ("_start", start)] {
        let Some(function) = function else { continue };
        match function.call(&mut *store, ()) {
            // A command ends so, and stays usable.
            Err(error) if matches!(error.downcast_ref(), Some(Stop::Exit { code: 0 })) => {}
            result => result.map_err(|error| Failed::Ended(stage, error))?,
        }
        break;
    }
    if let Some(main) = main {
        main.call(&mut *store, (0, 0))
            .map_err(|error| Failed::Ended("main", error))?;
    }
    let config = &plugin.config;
    let (vm_length, length) = (
        length(config.vm_configuration.len()),
        length(config.configuration.len()),
    );
    let created = optional(store, &exports.context_create, ROOT, (ROOT, 0));
    created.map_err(|error| Failed::Ended("proxy_on_context_create", error))?;
    for (stage, callback, size) in [
        ("proxy_on_vm_start", &exports.vm_start, vm_length),
        ("proxy_on_configure", &exports.configure, length),
    ] {
        let said = optional(store, callback, ROOT, (ROOT, size)).map_err(|error| Failed::Ended(stage, error))?;
        if said == Some(0) {
            let said = store.data_mut().words.take();
            return Err(WasmError::Refused { stage, said }.into());
        }
    }
    Ok(exports)
}
