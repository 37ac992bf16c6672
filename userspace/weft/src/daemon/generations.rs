//! `weft adapter load|weight|rollback`: changes of an Adapter that was stored with `weft apply`.
//!
//! The object stays the truth: a change edits what is stored and publishes it, so that a restart finds it. Modules that were
//! loaded are kept by digest in the state dir, for the file that they came from may change. What cannot run is refused, and
//! nothing has changed then.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use anyhow::Context as _;
use weft_adapters::{GenerationError, wasm::Module};
use weft_policy::ObjectRef;

use super::control::{DaemonControl, Text};
use crate::{
    admin::{
        ControlError,
        api::{AdapterChange, AdapterChanged, AdapterVerb, AdapterView, ApplyRequest, GenerationWeight, Share},
    },
    generations::{Manifest, ManifestError},
    state_dir::write_atomically,
};

/// Of a loaded module; the daemon reads it whole.
const MAX_MODULE: u64 = weft_adapters::wasm::MAX_MODULE as u64;

impl DaemonControl {
    pub(super) fn change(&self, asked: AdapterChange) -> Result<AdapterChanged, ControlError> {
        let object = ObjectRef {
            kind: "Adapter".into(),
            namespace: Some(asked.namespace.into()),
            name: asked.name,
        };
        let generation = match asked.verb {
            AdapterVerb::Load {
                module,
                generation,
                share,
            } => self.load(&object, &module, generation.as_deref(), share)?,
            AdapterVerb::Weigh { weights } => self.weigh(&object, &weights)?,
            AdapterVerb::RollBack { generation } => {
                let _one = self.one_change();
                self.engine
                    .roll_back(&object, generation.as_deref())
                    .map_err(|error| of_generation(&error))?
            }
        };
        let adapter = self.adapter(&object).ok_or_else(|| ControlError::NotFound {
            what: object.to_string(),
        })?;
        Ok(AdapterChanged { generation, adapter })
    }

    /// Of the objects that were applied: two at once would lose one of them.
    pub(super) fn one_change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(
        &self,
        object: &ObjectRef,
        module: &Path,
        named: Option<&str>,
        share: Share,
    ) -> Result<String, ControlError> {
        let loaded = |kept: &Path, hex: &str| {
            let (before, mut manifest) = self.manifest(object)?;
            manifest.settle(&self.out(object));
            let loaded = manifest.load(named, kept, hex, share);
            let generation = loaded.map_err(|error| of_manifest(object, &error))?;
            Ok::<_, ControlError>((before, manifest.text(), generation))
        };
        self.manifest(object)?;
        let bytes = read(module)?;
        // Long, so while nobody waits; what is in use is compiled once.
        let compiled = Module::compile(&bytes).map_err(|error| invalid(format!("{}: {error}", module.display())))?;
        let digest = compiled.digest().to_string();
        let hex = digest.trim_start_matches("sha256:");
        let kept = self.modules.join(format!("{hex}.wasm"));
        let (_, text, _) = loaded(&kept, hex)?;
        {
            let _one = self.one_change();
            self.keep(&kept, &bytes)?;
        }
        let _ahead = self.prepare(&of_object(object, text));
        let _one = self.one_change();
        // What was true before may be so no more, and the module may have been swept away.
        let (before, text, generation) = loaded(&kept, hex).inspect_err(|_| self.sweep())?;
        if !kept.exists() {
            self.keep(&kept, &bytes)?;
        }
        self.try_store(object, before, text, &[&generation])?;
        // It may have been rolled back earlier: loaded again, it is to be tried again.
        self.engine
            .restore(object, &[&generation])
            .map_err(|error| of_generation(&error))?;
        drop(compiled);
        self.sweep();
        Ok(generation)
    }

    /// While no other change sweeps.
    fn keep(&self, kept: &Path, bytes: &[u8]) -> Result<(), ControlError> {
        fs::create_dir_all(&self.modules)
            .with_context(|| format!("make {}", self.modules.display()))
            .and_then(|()| write_atomically(kept, bytes).with_context(|| format!("write {}", kept.display())))
            .map_err(|source| ControlError::Failed {
                doing: "keep the module",
                source,
            })
    }

    /// Gives the names of all that were weighed.
    fn weigh(&self, object: &ObjectRef, weights: &[GenerationWeight]) -> Result<String, ControlError> {
        let _one = self.one_change();
        let (before, mut manifest) = self.manifest(object)?;
        manifest.weigh(weights).map_err(|error| of_manifest(object, &error))?;
        let wanted: Vec<&str> = weights
            .iter()
            .filter(|weight| weight.weight > 0)
            .map(|weight| &*weight.generation)
            .collect();
        self.try_store(object, before, manifest.text(), &wanted)?;
        self.engine
            .restore(object, &wanted)
            .map_err(|error| of_generation(&error))?;
        let names: Vec<&str> = weights.iter().map(|weight| &*weight.generation).collect();
        Ok(names.join(", "))
    }

    /// The stored object: its text, and what it lists.
    fn manifest(&self, object: &ObjectRef) -> Result<(String, Manifest), ControlError> {
        let stored = self.applied().get(object).map_err(|source| ControlError::Failed {
            doing: "read the object",
            source: source.into(),
        })?;
        let Some(stored) = stored else {
            let owner = self.engine.store().object(object).map(|found| found.location.clone());
            return Err(match owner {
                Some(owner) => ControlError::Conflict {
                    reason: format!(
                        "{object} is defined by {}:{}: change its `wasm.generations` there",
                        owner.file, owner.line
                    ),
                },
                None => ControlError::NotFound {
                    what: object.to_string(),
                },
            });
        };
        let text = String::from_utf8_lossy(&stored).into_owned();
        let manifest = Manifest::read(&text).map_err(|error| of_manifest(object, &error))?;
        Ok((text, manifest))
    }

    /// Puts the object's text in force, or `before` again where that fails or one of `wanted` does not run then.
    fn try_store(&self, object: &ObjectRef, before: String, text: String, wanted: &[&str]) -> Result<(), ControlError> {
        let stored = self.store(object, text).and_then(|()| {
            let mut problems = wanted.iter().filter_map(|name| self.problem_of(object, name));
            match problems.next() {
                Some(problem) => Err(invalid(format!("{object}: {problem}; nothing has changed"))),
                None => Ok(()),
            }
        });
        stored.inspect_err(|_| {
            if let Err(error) = self.store(object, before) {
                tracing::error!(%object, %error, "the version before a refused change is not stored again");
            }
            self.sweep();
        })
    }

    /// Puts the object's text in force.
    fn store(&self, object: &ObjectRef, yaml: String) -> Result<(), ControlError> {
        let text = of_object(object, yaml);
        // Others wait meanwhile; but what is new was made ready before, if nothing has changed in between.
        let _ahead = self.prepare(&text);
        let outcome = self.put_in_force(text)?;
        if outcome.has_refusals() {
            let details = outcome.diagnostics.iter().map(ToString::to_string).collect();
            return Err(ControlError::Invalid {
                reason: format!("{object} would not be valid"),
                details,
            });
        }
        Ok(())
    }

    fn adapter(&self, object: &ObjectRef) -> Option<AdapterView> {
        let states = self.engine.adapters();
        states.into_iter().find(|state| state.object == *object).map(Into::into)
    }

    /// Generations that get no requests, whatever their weights are.
    fn out(&self, object: &ObjectRef) -> HashSet<String> {
        let states = self.engine.adapters().into_iter();
        states
            .filter(|state| state.object == *object)
            .flat_map(|state| state.generations)
            .filter(|generation| generation.rolled_back.is_some() || generation.problem.is_some())
            .map(|generation| generation.name)
            .collect()
    }

    /// Why this generation is not in force.
    fn problem_of(&self, object: &ObjectRef, generation: &str) -> Option<String> {
        let states = self.engine.adapters();
        let state = states.into_iter().find(|state| state.object == *object)?;
        if state.problem.is_some() {
            // The generations are those of the version before it.
            return state.problem;
        }
        let found = state.generations.into_iter().find(|found| found.name == generation);
        found.map_or_else(|| Some("it is not in force".to_owned()), |found| found.problem)
    }

    /// Removes the modules that no stored object names any more; none, where one of these cannot be read.
    pub(super) fn sweep(&self) {
        let Some(named) = self.named() else { return };
        let Ok(entries) = fs::read_dir(&self.modules) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !named.contains(&path)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(%error, path = %path.display(), "a module that nobody names stays");
            }
        }
    }

    /// The modules that stored objects name.
    fn named(&self) -> Option<HashSet<PathBuf>> {
        let applied = self.applied();
        let mut named = HashSet::new();
        for stored in applied.list().ok()? {
            if stored.object.kind != "Adapter" {
                continue;
            }
            match Manifest::read(&String::from_utf8_lossy(&applied.get(&stored.object).ok()??)) {
                Ok(manifest) => named.extend(manifest.modules().map(Path::to_path_buf)),
                Err(ManifestError::NotWasm) => {}
                Err(_) => return None,
            }
        }
        drop(applied);
        // Those of resource files too, should one name a copy of ours.
        let store = self.engine.store();
        let adapters = store.objects().filter(|object| object.id.kind == "Adapter");
        let manifests = adapters.filter_map(|object| Manifest::read(&object.text).ok());
        named.extend(manifests.flat_map(|manifest| manifest.modules().map(Path::to_path_buf).collect::<Vec<_>>()));
        Some(named)
    }
}

/// The object with this text.
fn of_object(object: &ObjectRef, yaml: String) -> Text {
    let file = object.to_string();
    Text::read(&ApplyRequest { file, yaml })
}

fn read(module: &Path) -> Result<Vec<u8>, ControlError> {
    let failed = |error: String| invalid(format!("read module {}: {error}", module.display()));
    let found = fs::metadata(module).map_err(|error| failed(error.to_string()))?;
    if !found.is_file() || found.len() > MAX_MODULE {
        return Err(failed(format!("no regular file of at most {MAX_MODULE} bytes")));
    }
    fs::read(module).map_err(|error| failed(error.to_string()))
}

fn invalid(reason: String) -> ControlError {
    ControlError::Invalid {
        reason,
        details: Vec::new(),
    }
}

fn of_manifest(object: &ObjectRef, error: &ManifestError) -> ControlError {
    invalid(format!("{object}: {error}"))
}

fn of_generation(error: &GenerationError) -> ControlError {
    match error {
        GenerationError::Unknown { object } => ControlError::NotFound {
            what: format!("{object} of backend wasm"),
        },
        GenerationError::NoGeneration { .. } => invalid(error.to_string()),
        GenerationError::Alone { .. } => ControlError::Conflict {
            reason: error.to_string(),
        },
    }
}
