//! Adapters that are WebAssembly, put in force: of plugins that were made ahead, so that no request meets one that is not ready.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::Bytes;
use weft_policy::{AdapterConfig, AdapterFailure, WasmBackend, WasmGeneration, WasmInstances};

use super::{
    chain_of,
    generations::{
        Generation, GenerationMetrics, Generations, Ingredients, Made, Set, Watched,
        ledger::{Keep, Ledger},
    },
    name_of,
    prepare::{Ahead, Preparer},
};
use crate::{
    error::AdapterError,
    upstreams::{NoUpstreams, Upstreams},
    wasm::{Capabilities, FailurePolicy, Instances, Limits, MayCall, PluginConfig},
};

/// What WebAssembly adapters run in.
pub struct WasmHost {
    preparer: Preparer,
    /// By adapter, what its latest version met: no file that did not change is read again, nothing that was refused is tried
    /// again, and what is ready stays so while the rest is not.
    kept: BTreeMap<String, Ahead>,
    ledger: Arc<Ledger>,
    metrics: GenerationMetrics,
}

// === impl WasmHost ===

impl WasmHost {
    /// `upstreams` carries the calls of the adapters of a namespace; each of `workers` finds an instance ready.
    pub fn new(upstreams: impl Fn(&str) -> Arc<dyn Upstreams> + Send + Sync + 'static, workers: NonZeroUsize) -> Self {
        Self {
            preparer: Preparer::new(Box::new(upstreams), workers),
            kept: BTreeMap::new(),
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

    /// Makes plugins, to be put in force here.
    pub(super) fn preparer(&self) -> &Preparer {
        &self.preparer
    }

    /// Brings an adapter to what its object says. What `earlier` holds and did not change goes on, what else it needs was made
    /// ahead: nothing is read or started here.
    ///
    /// # Errors
    /// Some of it was not made ahead; or none of the generations that are to get requests can be made: of those, the first
    /// problem.
    pub(super) fn make(
        &mut self,
        config: &AdapterConfig,
        backend: &WasmBackend,
        earlier: Option<&Generations>,
    ) -> Result<Watched, AdapterError> {
        let mut kept = Ahead::default();
        let made = self.generations(config, backend, earlier, &mut kept);
        self.kept.insert(name_of(&config.object), kept);
        made
    }

    fn generations(
        &self,
        config: &AdapterConfig,
        backend: &WasmBackend,
        earlier: Option<&Generations>,
        kept: &mut Ahead,
    ) -> Result<Watched, AdapterError> {
        let mut first = None;
        let mut ready = true;
        let mut all = Vec::with_capacity(backend.generations.len());
        for generation in &backend.generations {
            let made = self.generation(config, backend, generation, earlier, &all, kept);
            if matches!(made, Err(AdapterError::NotReady)) {
                ready = false;
                continue;
            }
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
        if !ready {
            return Err(AdapterError::NotReady);
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
        let watched = Watched::start(set)?;
        self.metrics.add(watched.generations.set());
        Ok(watched)
    }

    fn generation(
        &self,
        config: &AdapterConfig,
        backend: &WasmBackend,
        generation: &WasmGeneration,
        earlier: Option<&Generations>,
        others: &[Generation],
        kept: &mut Ahead,
    ) -> Result<Arc<Made>, AdapterError> {
        let module = self.preparer.digest(&generation.module, kept)?;
        let ingredients = Ingredients {
            module: module.ok_or(AdapterError::NotReady)?,
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
        match self.preparer.plugin(&ingredients, kept) {
            Some(Ok(plugin)) => {
                let out = self.ledger.get(&name_of(&config.object), &ingredients.key());
                Ok(Arc::new(Made::new(ingredients, plugin, out)))
            }
            Some(Err(source)) => Err(AdapterError::Module {
                path: generation.module.path.clone(),
                source,
            }),
            None => Err(AdapterError::NotReady),
        }
    }

    /// The adapter is what its object says.
    pub(super) fn settled(&mut self, name: &str) {
        if let Some(kept) = self.kept.get_mut(name) {
            kept.let_go();
        }
    }

    /// The adapter is gone: should it come again, its modules are tried again.
    pub(super) fn forget(&mut self, name: &str) {
        self.kept.remove(name);
        self.ledger.forget(name);
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
            .field("preparer", &self.preparer)
            .finish_non_exhaustive()
    }
}

pub(super) fn plugin_config(config: &AdapterConfig, backend: &WasmBackend, shadow: bool) -> PluginConfig {
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
