//! Adapters that are WebAssembly, made for the runtime: read, compiled, tried and warmed before any request meets them.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Read,
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use weft_policy::{
    AdapterBackend, AdapterConfig, AdapterFailure, ObjectRef, WasmBackend, WasmGeneration, WasmInstances, WasmModule,
};

use super::{
    chain_of,
    generations::{
        Generation, GenerationMetrics, Generations, Ingredients, Made, Set,
        ledger::{Keep, Ledger},
    },
    name_of,
};
use crate::{
    error::AdapterError,
    upstreams::{NoUpstreams, Upstreams},
    wasm::{
        Capabilities, Digest, FailurePolicy, Instances, Limits, MAX_MODULE, MayCall, Module, PluginConfig, Services,
        WasmError,
    },
};

/// So many refused modules are remembered, the latest ones.
const MAX_REFUSED: usize = 32;

/// What may be called by the adapters of a namespace.
type UpstreamsOf = Box<dyn Fn(&str) -> Arc<dyn Upstreams> + Send + Sync>;

/// Modules that are compiled before they are wanted.
#[derive(Debug)]
#[must_use = "they are compiled again unless this is kept until they are wanted"]
pub struct Ahead(#[expect(dead_code, reason = "held so that they stay compiled")] Vec<Module>);

/// Compiles the modules of these adapters, so that [`AdapterRuntime::update`](super::AdapterRuntime::update), for which others
/// may wait, need not. Takes milliseconds to seconds. What cannot be read or compiled is left to it.
pub fn compile_ahead<'a>(adapters: impl IntoIterator<Item = &'a AdapterConfig>) -> Ahead {
    let modules = adapters.into_iter().flat_map(|config| match &config.backend {
        AdapterBackend::Wasm(wasm) => &*wasm.generations,
        _ => &[],
    });
    let compiled = modules.filter_map(|generation| {
        let (bytes, _) = read(&generation.module).ok()?;
        Module::compile(&bytes).ok()
    });
    Ahead(compiled.collect())
}

/// What WebAssembly adapters run in.
pub struct WasmHost {
    services: Services,
    upstreams: UpstreamsOf,
    workers: NonZeroUsize,
    /// Not tried again at each publication: a module may take long to fail.
    refused: VecDeque<(Ingredients, Arc<WasmError>)>,
    ledger: Arc<Ledger>,
    metrics: GenerationMetrics,
}

// === impl WasmHost ===

impl WasmHost {
    /// `upstreams` carries the calls of the adapters of a namespace; each of `workers` finds an instance ready.
    pub fn new(upstreams: impl Fn(&str) -> Arc<dyn Upstreams> + Send + Sync + 'static, workers: NonZeroUsize) -> Self {
        Self {
            services: Services::default(),
            upstreams: Box::new(upstreams),
            workers,
            refused: VecDeque::new(),
            ledger: Arc::new(Ledger::new(&[], Box::new(|_| {}))),
            metrics: GenerationMetrics::default(),
        }
    }

    /// Remembers which generations were rolled back: `kept` is what `keep` was given last, by an earlier process. `keep` may
    /// be called on any thread, and should be quick.
    #[must_use]
    pub fn keeping(mut self, kept: &[u8], keep: Keep) -> Self {
        self.ledger = Arc::new(Ledger::new(kept, keep));
        self
    }

    /// What the generations do, to be registered as a collector.
    pub fn metrics(&self) -> GenerationMetrics {
        self.metrics.clone()
    }

    /// Brings an adapter to what its object says. What `earlier` holds and did not change goes on. When this returns, no
    /// request waits for anything of it.
    ///
    /// # Errors
    /// None of the generations that are to get requests can be made; of those, the first problem.
    pub(super) fn make(
        &mut self,
        config: &AdapterConfig,
        backend: &WasmBackend,
        earlier: Option<&Generations>,
    ) -> Result<Generations, AdapterError> {
        let mut first = None;
        let mut all = Vec::with_capacity(backend.generations.len());
        for generation in &backend.generations {
            let made = self.generation(config, backend, generation, earlier, &all);
            let made = made.map_err(|error| {
                let problem = chain_of(&error);
                tracing::error!(
                    adapter = name_of(&config.object),
                    generation = generation.name,
                    problem,
                    "generation not in force"
                );
                if generation.weight > 0 {
                    first.get_or_insert(error);
                }
                problem
            });
            all.push(Generation {
                name: generation.name.clone(),
                weight: generation.weight,
                shadow: generation.shadow,
                made,
            });
        }
        if let Some(error) = first
            && !all
                .iter()
                .any(|generation| generation.weight > 0 && generation.made.is_ok())
        {
            return Err(error);
        }
        let set = Set::new(
            &name_of(&config.object),
            backend.protocols,
            config.failure_policy == AdapterFailure::Closed,
            backend.rollback,
            &self.ledger,
            all,
        );
        // Of those that are gone or changed nothing is remembered.
        set.record();
        let generations = Generations::start(set)?;
        self.metrics.add(generations.set());
        Ok(generations)
    }

    fn generation(
        &mut self,
        config: &AdapterConfig,
        backend: &WasmBackend,
        generation: &WasmGeneration,
        earlier: Option<&Generations>,
        others: &[Generation],
    ) -> Result<Arc<Made>, AdapterError> {
        let (bytes, module) = read(&generation.module)?;
        let ingredients = Ingredients {
            module,
            config: plugin_config(config, backend, generation.shadow),
        };
        // One of them out would be both out.
        let mut others = others.iter();
        if let Some(twin) = others.find(|other| other.made.as_ref().is_ok_and(|made| made.of == ingredients)) {
            return Err(AdapterError::SameModule {
                generation: twin.name.clone(),
            });
        }
        if let Some(made) = earlier.and_then(|earlier| earlier.set().made_of(&ingredients)) {
            return Ok(made);
        }
        let refused = self.refused.iter().find(|(of, _)| *of == ingredients);
        let why = match refused {
            Some((_, why)) => Arc::clone(why),
            None => match self.plugin(&bytes, &ingredients.config, &config.object) {
                Ok(plugin) => {
                    let out = self.ledger.get(&name_of(&config.object), &ingredients.key());
                    return Ok(Arc::new(Made::new(ingredients, plugin, out)));
                }
                Err(error) => {
                    let why = Arc::new(error);
                    self.refused.truncate(MAX_REFUSED - 1);
                    self.refused.push_front((ingredients, Arc::clone(&why)));
                    why
                }
            },
        };
        Err(AdapterError::Module {
            path: generation.module.path.clone(),
            source: why,
        })
    }

    /// The adapter is gone: should it come again, its modules are tried again.
    pub(super) fn forget(&mut self, name: &str) {
        let shadow = format!("{name} (shadow)");
        self.refused
            .retain(|(of, _)| *of.config.name != *name && *of.config.name != *shadow);
        self.ledger.set(name, BTreeMap::new(), true);
    }

    fn plugin(
        &self,
        bytes: &[u8],
        config: &PluginConfig,
        object: &ObjectRef,
    ) -> Result<crate::wasm::Plugin, WasmError> {
        let upstreams = (self.upstreams)(object.namespace.as_deref().unwrap_or_default());
        let plugin = Module::compile(bytes)?.plugin(config.clone(), &self.services, upstreams)?;
        // The first of them shows whether it would run.
        plugin.prepare(self.workers.get())?;
        Ok(plugin)
    }
}

impl Default for WasmHost {
    /// One worker, in a mesh in which nothing can be called.
    fn default() -> Self {
        Self::new(|_| Arc::new(NoUpstreams), NonZeroUsize::MIN)
    }
}

impl std::fmt::Debug for WasmHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmHost")
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

fn plugin_config(config: &AdapterConfig, backend: &WasmBackend, shadow: bool) -> PluginConfig {
    let (limits, vm) = (backend.limits, &backend.vm);
    let name = name_of(&config.object);
    let namespace = config.object.namespace.as_deref().unwrap_or_default();
    // What filters share is kept by name, and a shadow shares nothing with those in force.
    let kind = if shadow { "shadow" } else { "vm" };
    PluginConfig {
        name: if shadow { format!("{name} (shadow)") } else { name }.into(),
        // An adapter's name has a slash in its first word, and no text of a user comes before the mark.
        shares: (!vm.id.is_empty()).then(|| format!("{kind} {namespace} {}", vm.id).into()),
        root_id: backend.root.clone(),
        vm_id: vm.id.clone(),
        configuration: bytes_of(&config.params),
        vm_configuration: bytes_of(&vm.configuration),
        environment: vm.environment.clone().into_iter().collect(),
        instances: match backend.instances {
            WasmInstances::Worker => Instances::Worker,
            WasmInstances::Request => Instances::Stream,
        },
        limits: Limits {
            deadline: Duration::from_millis(limits.deadline_ms),
            start_deadline: Duration::from_millis(limits.start_ms),
            memory: usize::try_from(limits.memory_mib << 20).unwrap_or(usize::MAX),
        },
        capabilities: match &backend.capabilities {
            None => Capabilities::All,
            Some(names) => Capabilities::Only(names.clone()),
        },
        may_call: MayCall::Only(backend.upstreams.clone()),
        failure: match config.failure_policy {
            AdapterFailure::Open => FailurePolicy::Open,
            AdapterFailure::Closed => FailurePolicy::Closed,
        },
    }
}

/// A configuration as modules get it.
fn bytes_of(written: &serde_json::Value) -> Bytes {
    match written {
        serde_json::Value::Null => Bytes::new(),
        // As it is, for modules that want no JSON.
        serde_json::Value::String(text) => Bytes::from(text.clone()),
        json => Bytes::from(json.to_string()),
    }
}

/// A module's bytes: those that were asked for.
fn read(module: &WasmModule) -> Result<(Vec<u8>, Digest), AdapterError> {
    let bytes = read_file(&module.path)?;
    let found = Digest::of(&bytes);
    match module.sha256.map(Digest::from) {
        Some(expected) if expected != found => Err(AdapterError::Digest {
            path: module.path.clone(),
            expected,
            found,
        }),
        _ => Ok((bytes, found)),
    }
}

/// No more than a module may have, and one byte.
fn read_file(path: &Path) -> Result<Vec<u8>, AdapterError> {
    let failed = |source| AdapterError::ReadModule {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        // A pipe would never end.
        return Err(failed(std::io::Error::other("it is no regular file")));
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_MODULE).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
