//! Plugins made before they come into force, beside the lock of publications: others wait for that one.
//!
//! ```text
//! Preparer::prepare (seconds)  --Ahead-->  AdapterRuntime::update (looks up what came of it)
//! ```
//! A module is read, compiled and started, once a worker, in `prepare`. A publication reads no module and starts none: it knows
//! the file by its identity, and what was refused stays refused until the file or its configuration changes. What nobody
//! puts in force is thrown away with the [`Ahead`] that holds it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    num::NonZeroUsize,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use weft_policy::{AdapterBackend, AdapterConfig, ObjectRef, WasmModule};

use super::{
    generations::{Ingredients, Set},
    wasm::plugin_config,
};
use crate::{
    error::AdapterError,
    upstreams::Upstreams,
    wasm::{Digest, MAX_MODULE, Module, Plugin, PluginConfig, Services, WasmError},
};

/// A file that was written this shortly before may be written again under the same times: file systems count in ticks of the
/// kernel, up to 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// What may be called by the adapters of a namespace.
pub(super) type UpstreamsOf = Box<dyn Fn(&str) -> Arc<dyn Upstreams> + Send + Sync>;

/// Makes the plugins of adapters that are WebAssembly. Clones share what is known.
#[derive(Clone)]
pub struct Preparer(Arc<Inner>);

struct Inner {
    services: Services,
    upstreams: UpstreamsOf,
    /// Each finds an instance ready.
    workers: NonZeroUsize,
    /// Held while a plugin is made: a module may take a processor for a minute, and its memory. Whoever makes none never waits
    /// for it.
    making: Mutex<()>,
    known: Mutex<Known>,
}

/// What somebody holds still.
#[derive(Default)]
struct Known {
    files: Vec<Weak<Seen>>,
    tried: Vec<Weak<Tried>>,
    live: BTreeMap<ObjectRef, Live>,
}

/// What is in force of an adapter, and what it was made of.
struct Live {
    config: Arc<AdapterConfig>,
    set: Weak<Set>,
}

/// What is known of modules, and plugins that are ready, for whoever puts them in force.
#[derive(Debug, Default)]
#[must_use = "what was made is thrown away with it"]
pub struct Ahead {
    files: Vec<Arc<Seen>>,
    tried: Vec<Arc<Tried>>,
}

/// A module's file as it was when it was read.
#[derive(Debug)]
struct Seen {
    path: PathBuf,
    identity: Identity,
    found: io::Result<Digest>,
}

/// Another one after every write. Times are seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What came of making a plugin.
#[derive(Debug)]
struct Tried {
    of: Ingredients,
    result: Result<Arc<Plugin>, Arc<WasmError>>,
}

/// A generation that an object asks for.
struct Wanted<'a> {
    object: &'a ObjectRef,
    module: &'a WasmModule,
    config: PluginConfig,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Preparer ===

impl Preparer {
    pub(super) fn new(upstreams: UpstreamsOf, workers: NonZeroUsize) -> Self {
        Self(Arc::new(Inner {
            services: Services::default(),
            upstreams,
            workers,
            making: Mutex::default(),
            known: Mutex::default(),
        }))
    }

    /// Makes what these adapters need and is not there yet: up to seconds for each module, so under no lock that others wait
    /// for. Why one cannot be made, the adapter's state says once the object is to come into force.
    pub fn prepare<'a>(&self, adapters: impl IntoIterator<Item = &'a AdapterConfig>) -> Ahead {
        let mut ahead = Ahead::default();
        for wanted in self.wanted(adapters) {
            self.bring(wanted, &mut ahead);
        }
        ahead
    }

    /// Whether [`Preparer::prepare`] would have a module to read. Costs a look at each file.
    pub fn lacks<'a>(&self, adapters: impl IntoIterator<Item = &'a AdapterConfig>) -> bool {
        let mut ahead = Ahead::default();
        self.wanted(adapters).any(|wanted| !self.knows(&wanted, &mut ahead))
    }

    /// Digest of a module, as its file is known or its object says; `None`: the file has to be read.
    pub(super) fn digest(&self, module: &WasmModule, keep: &mut Ahead) -> Result<Option<Digest>, AdapterError> {
        let identity = Identity::of(&module.path).map_err(|source| unreadable(module, source))?;
        match lock(&self.0.known).file(&module.path, identity) {
            Some(seen) => {
                let digest = seen.digest(module);
                keep.files.push(seen);
                digest.map(Some)
            }
            // A plugin that was made for this digest was made of bytes that had it.
            None => Ok(module.sha256.map(Digest::from)),
        }
    }

    /// What came of making a plugin of these; `None`: nobody did.
    pub(super) fn plugin(&self, of: &Ingredients, keep: &mut Ahead) -> Option<Result<Arc<Plugin>, Arc<WasmError>>> {
        let tried = lock(&self.0.known).tried(of)?;
        let result = tried.result.clone();
        keep.tried.push(tried);
        Some(result)
    }

    /// These are in force now, and no others; each with what it was made of.
    pub(super) fn set_live<'a>(&self, all: impl Iterator<Item = (&'a Arc<AdapterConfig>, &'a Arc<Set>)>) {
        let live = all.map(|(config, set)| {
            let (config, set) = (Arc::clone(config), Arc::downgrade(set));
            (config.object.clone(), Live { config, set })
        });
        let live = live.collect();
        lock(&self.0.known).live = live;
    }

    /// The generations of those that are WebAssembly, and not in force as they are.
    fn wanted<'a>(&self, adapters: impl IntoIterator<Item = &'a AdapterConfig>) -> impl Iterator<Item = Wanted<'a>> {
        let new = adapters.into_iter().filter(move |config| !self.runs(config));
        let backends = new.filter_map(|config| match &config.backend {
            AdapterBackend::Wasm(backend) => Some((config, backend)),
            AdapterBackend::Native { .. } | AdapterBackend::Remote(_) => None,
        });
        backends.flat_map(|(config, backend)| {
            backend.generations.iter().map(move |generation| Wanted {
                object: &config.object,
                module: &generation.module,
                config: plugin_config(config, backend, generation.shadow),
            })
        })
    }

    /// Whether it is in force. Then it goes on, whatever has become of its files.
    fn runs(&self, config: &AdapterConfig) -> bool {
        let known = lock(&self.0.known);
        let live = known.live.get(&config.object);
        live.is_some_and(|live| *live.config == *config)
    }

    fn bring(&self, wanted: Wanted<'_>, ahead: &mut Ahead) {
        if self.knows(&wanted, ahead) {
            return;
        }
        let _one = lock(&self.0.making);
        // Somebody else may have made it meanwhile.
        if self.knows(&wanted, ahead) {
            return;
        }
        // Before its bytes: after a change in between nobody takes it for what is there then.
        let Ok(identity) = Identity::settled(&wanted.module.path) else {
            return;
        };
        let (bytes, found) = match read(&wanted.module.path) {
            Ok(bytes) => {
                let digest = Digest::of(&bytes);
                (bytes, Ok(digest))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        let seen = Arc::new(Seen {
            path: wanted.module.path.clone(),
            identity,
            found,
        });
        remember(&mut lock(&self.0.known).files, &seen);
        let digest = seen.digest(wanted.module);
        ahead.files.push(seen);
        let Ok(module) = digest else { return };
        let of = Ingredients {
            module,
            config: wanted.config,
        };
        if !self.has(wanted.object, &of, ahead) {
            let result = self.make(&bytes, &of.config, wanted.object);
            let tried = Arc::new(Tried {
                of,
                result: result.map(Arc::new).map_err(Arc::new),
            });
            remember(&mut lock(&self.0.known).tried, &tried);
            ahead.tried.push(tried);
        }
    }

    /// Whether there is nothing to make; what there is stays until `ahead` goes.
    fn knows(&self, wanted: &Wanted<'_>, ahead: &mut Ahead) -> bool {
        match self.digest(wanted.module, ahead) {
            Ok(Some(module)) => {
                let config = wanted.config.clone();
                self.has(wanted.object, &Ingredients { module, config }, ahead)
            }
            Ok(None) => false,
            // Whoever puts it in force is told the same.
            Err(_) => true,
        }
    }

    /// Whether a plugin of these runs, is ready, or was refused.
    fn has(&self, object: &ObjectRef, of: &Ingredients, ahead: &mut Ahead) -> bool {
        let live = lock(&self.0.known).live.get(object).and_then(|live| live.set.upgrade());
        live.is_some_and(|set| set.made_of(of).is_some()) || self.plugin(of, ahead).is_some()
    }

    fn make(&self, bytes: &[u8], config: &PluginConfig, object: &ObjectRef) -> Result<Plugin, WasmError> {
        let upstreams = (self.0.upstreams)(object.namespace.as_deref().unwrap_or_default());
        let plugin = Module::compile(bytes)?.plugin(config.clone(), &self.0.services, upstreams)?;
        // The first of them shows whether it would run.
        plugin.prepare(self.0.workers.get())?;
        Ok(plugin)
    }
}

impl std::fmt::Debug for Preparer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preparer")
            .field("workers", &self.0.workers)
            .finish_non_exhaustive()
    }
}

// === impl Known ===

impl Known {
    fn file(&self, path: &Path, identity: Identity) -> Option<Arc<Seen>> {
        let mut files = self.files.iter().filter_map(Weak::upgrade);
        files.find(|seen| seen.identity == identity && seen.path == *path)
    }

    fn tried(&self, of: &Ingredients) -> Option<Arc<Tried>> {
        let mut tried = self.tried.iter().filter_map(Weak::upgrade);
        tried.find(|tried| tried.of == *of)
    }
}

/// Forgets those that nobody holds.
fn remember<T>(all: &mut Vec<Weak<T>>, new: &Arc<T>) {
    all.retain(|other| other.strong_count() > 0);
    all.push(Arc::downgrade(new));
}

// === impl Ahead ===

impl Ahead {
    /// Keeps what was read and refused, so that it is not again, and leaves the plugins to whoever runs them.
    pub(super) fn let_go(&mut self) {
        self.tried.retain(|tried| tried.result.is_err());
    }
}

// === impl Seen ===

impl Seen {
    /// Its digest, if it is the one that was asked for.
    fn digest(&self, module: &WasmModule) -> Result<Digest, AdapterError> {
        let found = match &self.found {
            Ok(found) => *found,
            Err(error) => return Err(unreadable(module, io::Error::new(error.kind(), error.to_string()))),
        };
        match module.sha256.map(Digest::from) {
            Some(expected) if expected != found => Err(AdapterError::Digest {
                path: module.path.clone(),
                expected,
                found,
            }),
            _ => Ok(found),
        }
    }
}

// === impl Identity ===

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        if !found.is_file() {
            // A pipe would never end.
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Waits until a write from now on makes it another one: at most a [`TICK`].
    fn settled(path: &Path) -> io::Result<Self> {
        if let Some(rest) = Self::of(path)?.age().and_then(|age| TICK.checked_sub(age)) {
            thread::sleep(rest);
        }
        Self::of(path)
    }

    /// Since the last write; `None`: it is of the future, or of before 1970.
    fn age(&self) -> Option<Duration> {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
        SystemTime::now().duration_since(UNIX_EPOCH.checked_add(changed)?).ok()
    }
}

fn unreadable(module: &WasmModule, source: io::Error) -> AdapterError {
    AdapterError::ReadModule {
        path: module.path.clone(),
        source,
    }
}

/// No more than a module may have, and one byte.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_MODULE).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
