//! The admin API's answers.

use std::{path::PathBuf, sync::Arc, time::Instant};

use tokio::{net::UnixStream, sync::mpsc};
use tokio_util::sync::CancellationToken;
use weft_adapters::{Ahead, native::Catalog};
use weft_control::{AppliedObjects, FilesSource, Source as _};
use weft_dataplane::{Cgroup, ShortCircuit};
use weft_policy::{
    Acceleration, Diagnostic, Explanation, ObjectRef, ObjectState, Severity, Snapshot, Store, adapter_configs,
    resource::Object,
};

use super::{doctor, engine::Engine, hand_over::Gate, tables, unrecorded};
use crate::{
    admin::{
        Control, ControlError,
        api::{
            AdapterChange, AdapterChanged, AdapterView, AppliedObject, ApplyAction, ApplyOutcome, ApplyRequest,
            Degraded, DeleteOutcome, DoctorReport, EdgesView, ExplainRequest, FeatureView, ObjectQuery, ObjectView,
            RegisterRequest, RegisterResponse, Status, WorkloadView,
        },
    },
    edges::EdgeStore,
    explain,
    flows::FlowStore,
    status,
};

/// The running daemon as the admin API sees it.
pub struct DaemonControl {
    pub short_circuit: ShortCircuit,
    pub engine: Arc<Engine>,
    pub applied: std::sync::Mutex<AppliedObjects>,
    /// Modules that `weft adapter load` brought.
    pub modules: PathBuf,
    /// Held while an applied adapter is changed.
    pub changing: std::sync::Mutex<()>,
    pub files: Option<FilesSource>,
    pub flows: Arc<FlowStore>,
    pub edges: Arc<EdgeStore>,
    pub cgroup: Cgroup,
    pub bpffs: PathBuf,
    pub state_dir: PathBuf,
    pub netns: u64,
    pub started: Instant,
    pub started_text: String,
    pub stop: CancellationToken,
    pub gate: Arc<Gate>,
    /// Daemons that want to take over; one at a time.
    pub successors: mpsc::Sender<UnixStream>,
}

// === impl DaemonControl ===

impl DaemonControl {
    fn publish(&self) -> Result<u64, ControlError> {
        self.engine.publish().map_err(|source| ControlError::Failed {
            doing: "put it in force",
            source,
        })
    }

    /// Resources ask for short-circuits that are not made, or are made although the self-test warns.
    fn unaccelerated(&self, snapshot: &Snapshot) -> Option<Degraded> {
        let asked = snapshot
            .services
            .values()
            .any(|service| service.acceleration != Acceleration::Off);
        let unfit = self.engine.dataplane.unfit_for_short_circuit().filter(|_| asked)?;
        let instead = match self.short_circuit {
            ShortCircuit::Auto => "bytes go through TCP; `weft daemon --short-circuit force` does it all the same",
            ShortCircuit::Force => "it is done all the same (--short-circuit force): only for programs that never ask",
            ShortCircuit::Off => return None,
        };
        Some(Degraded {
            what: "acceleration".to_owned(),
            why: unfit.to_owned(),
            instead: instead.to_owned(),
        })
    }

    pub(super) fn applied(&self) -> std::sync::MutexGuard<'_, AppliedObjects> {
        self.applied.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// State and reason of an object, from the snapshot.
    fn state_of(&self, object: &ObjectRef) -> Option<(ObjectState, String)> {
        let in_force = self.engine.in_force();
        let found = in_force.status(object)?;
        Some((found.state, found.reason.to_string()))
    }

    /// Stores one object of an applied text, if nothing else owns it. Returns what was stored of it before, if it changed.
    fn apply_one(&self, new: &Object, outcome: &mut ApplyOutcome) -> Result<Option<Before>, ControlError> {
        let (object, text) = (&*new.id, &*new.text);
        let applied = self.applied();
        let path = applied.path(object).map_err(|error| ControlError::Invalid {
            reason: error.to_string(),
            details: Vec::new(),
        })?;
        let mine = path.to_string_lossy().into_owned();
        let owner = self.engine.store().object(object).map(|found| found.location.clone());
        if let Some(owner) = owner
            && *owner.file != *mine
        {
            let reason = format!("it is defined by {}:{} already", owner.file, owner.line);
            outcome.diagnostics.push(Diagnostic {
                severity: Severity::Error,
                file: new.location.file.to_string(),
                line: new.location.line,
                column: new.location.column,
                object: Some(object.clone()),
                field: String::new(),
                reason: reason.clone(),
                instead: Some("change it there, or remove it there first".to_owned()),
            });
            outcome.objects.push(AppliedObject {
                key: object.clone(),
                action: ApplyAction::Refused,
                state: None,
                reason,
            });
            return Ok(None);
        }
        let failed = |source: weft_control::SourceError| ControlError::Failed {
            doing: "store the object",
            source: source.into(),
        };
        let before = applied.get(object).map_err(failed)?;
        let action = match &before {
            None => ApplyAction::Created,
            Some(bytes) if bytes == text.as_bytes() => ApplyAction::Unchanged,
            Some(_) => ApplyAction::Configured,
        };
        if action != ApplyAction::Unchanged {
            applied.put(object, text.as_bytes()).map_err(failed)?;
            self.engine.store().apply_file(&mine, text.as_bytes());
        }
        outcome.objects.push(AppliedObject {
            key: object.clone(),
            action,
            state: None,
            reason: String::new(),
        });
        let changed = action != ApplyAction::Unchanged;
        Ok(changed.then(|| (object.clone(), before)))
    }

    /// Stores again what there was: what cannot be published now would keep everything else from it, and the next daemon
    /// from starting.
    fn put_back(&self, changed: Vec<Before>) {
        let applied = self.applied();
        for (object, before) in changed {
            let stored = match &before {
                Some(text) => applied.put(&object, text).map(Some),
                None => applied.delete(&object),
            };
            let path = stored.and_then(|_| applied.path(&object));
            match path {
                Ok(path) => {
                    let (path, mut store) = (path.to_string_lossy(), self.engine.store());
                    match &before {
                        Some(text) => drop(store.apply_file(&path, text)),
                        None => store.remove_file(&path),
                    }
                }
                Err(error) => {
                    tracing::error!(%object, %error, "the version before a refused change is not stored again")
                }
            }
        }
    }

    /// Makes the modules of a text ready, for [`DaemonControl::put_in_force`]. Long, so while nobody waits.
    pub(super) fn prepare(&self, text: &Text) -> Ahead {
        self.engine.prepare(&adapter_configs(&text.store))
    }

    /// Stores and publishes what is good of a text.
    pub(super) fn put_in_force(&self, text: Text) -> Result<ApplyOutcome, ControlError> {
        let Text { store, mut outcome } = text;
        let good: Vec<_> = store.objects().cloned().collect();
        let mut changed = Vec::new();
        let stored = good.iter().try_for_each(|object| {
            changed.extend(self.apply_one(object, &mut outcome)?);
            Ok(())
        });
        let published = stored.and_then(|()| match changed.is_empty() {
            true => Ok(self.engine.in_force().snapshot.generation),
            false => self.publish(),
        });
        outcome.generation = match published {
            Ok(generation) => generation,
            Err(error) => {
                self.put_back(changed);
                // What there was before is in force still, but for adapters that had changed already; else this only ends the
                // problem.
                let _ = self.engine.prepare_and_publish();
                return Err(error);
            }
        };
        for object in &mut outcome.objects {
            if object.action != ApplyAction::Refused
                && let Some((state, reason)) = self.state_of(&object.key)
            {
                (object.state, object.reason) = (Some(state), reason);
            }
        }
        Ok(outcome)
    }
}

/// An object, and its text before a change; `None`: there was none.
type Before = (ObjectRef, Option<Vec<u8>>);

/// What somebody applies.
pub(super) struct Text {
    /// Of its own: it tells which of the objects are good.
    store: Store,
    /// Says which are not.
    outcome: ApplyOutcome,
}

// === impl Text ===

impl Text {
    pub(super) fn read(request: &ApplyRequest) -> Self {
        let mut store = Store::with_adapters(&Catalog);
        let diagnostics = store.apply_file(&request.file, request.yaml.as_bytes());
        let refused = store.refusals().map(|refusal| AppliedObject {
            key: (*refusal.object).clone(),
            action: ApplyAction::Refused,
            state: None,
            reason: refusal.reason,
        });
        let outcome = ApplyOutcome {
            diagnostics,
            objects: refused.collect(),
            ..ApplyOutcome::default()
        };
        Self { store, outcome }
    }
}

impl Control for DaemonControl {
    fn register_workload(&self, request: RegisterRequest) -> Result<RegisterResponse, ControlError> {
        let _pass = self.gate.enter()?;
        let record = self.engine.registry.register(request)?;
        if let Err(error) = self.publish() {
            // Not in force: the command must not start as if it were.
            let _ = self.engine.registry.deregister(&record.name());
            return Err(error);
        }
        Ok(RegisterResponse {
            name: record.name(),
            instance: record.instance.clone(),
            cgroup: record.cgroup.clone(),
            netns: self.netns,
            daemon_pid: std::process::id(),
        })
    }

    fn deregister_workload(&self, name: &str) -> Result<(), ControlError> {
        let _pass = self.gate.enter()?;
        self.engine.registry.deregister(name)?;
        self.publish().map(drop)
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        let inside = |cookie| self.engine.pods.is_inside(cookie);
        status::workloads(&self.engine.in_force().snapshot, self.engine.registry.views(), inside)
    }

    fn status(&self) -> Status {
        let in_force = self.engine.in_force();
        let snapshot = &in_force.snapshot;
        let mut diagnostics: Vec<Diagnostic> = self.engine.store().diagnostics().collect();
        diagnostics.extend(in_force.diagnostics.iter().cloned());
        let mut degraded = Vec::new();
        if let Some(why) = self.engine.problem() {
            degraded.push(Degraded {
                what: "publication".to_owned(),
                why,
                instead: "the last good state is in force; a daemon that starts anew fails by this".to_owned(),
            });
        }
        degraded.extend(self.unaccelerated(snapshot));
        degraded.extend(self.engine.pods.unseen().into_iter().map(doctor::unseen));
        degraded.extend(unrecorded::degraded(&self.engine));
        degraded.extend(tables::kept(&self.engine.dataplane));
        let files = self.files.as_ref().map(FilesSource::status).unwrap_or_default();
        diagnostics.extend(files.unread);
        if let Some(why) = files.problem {
            degraded.push(Degraded {
                what: "resources folder".to_owned(),
                why,
                instead: "what it had stays in force until it is as it should be again".to_owned(),
            });
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started_text.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: snapshot.generation,
            state_dir: self.state_dir.clone(),
            cgroup: self.cgroup.path().to_path_buf(),
            bpffs: self.bpffs.clone(),
            netns: self.netns,
            resources: status::resource_counts(snapshot),
            diagnostics,
            workloads: self.workloads(),
            services: status::services(snapshot),
            degraded,
            flows: self.flows.counts(),
        }
    }

    fn edges(&self) -> EdgesView {
        EdgesView {
            events_dropped: self.flows.counts().dropped,
            ..self.edges.view()
        }
    }

    fn adapters(&self) -> Vec<AdapterView> {
        self.engine.adapters().into_iter().map(AdapterView::from).collect()
    }

    fn change_adapter(&self, change: AdapterChange) -> Result<AdapterChanged, ControlError> {
        let _pass = self.gate.enter()?;
        self.change(change)
    }

    fn objects(&self, query: &ObjectQuery) -> Vec<ObjectView> {
        let folder = self.applied().folder().to_path_buf();
        let objects: Vec<_> = self
            .engine
            .store()
            .objects()
            .filter(|object| query.matches(&object.id))
            .cloned()
            .collect();
        let in_force = objects.into_iter().map(|object| {
            let (state, reason) = self
                .state_of(&object.id)
                .unwrap_or((ObjectState::Accepted, String::new()));
            let location = &object.location;
            let source = if std::path::Path::new(&*location.file).starts_with(&folder) {
                "applied".to_owned()
            } else {
                format!("{}:{}", location.file, location.line)
            };
            ObjectView {
                key: (*object.id).clone(),
                state,
                reason,
                source,
                manifest: object.text.to_string(),
            }
        });
        in_force.chain(self.not_in_force(query)).collect()
    }

    fn apply(&self, request: ApplyRequest) -> Result<ApplyOutcome, ControlError> {
        let text = Text::read(&request);
        // Before anything else is held: other changes do not wait for modules.
        let _ahead = self.prepare(&text);
        let _pass = self.gate.enter()?;
        let _one = self.one_change();
        self.put_in_force(text)
    }

    fn delete(&self, object: &ObjectRef) -> Result<DeleteOutcome, ControlError> {
        let _pass = self.gate.enter()?;
        let _one = self.one_change();
        let object = self.find(object)?;
        let applied = self.applied();
        let failed = |source: weft_control::SourceError| ControlError::Failed {
            doing: "delete the object",
            source: source.into(),
        };
        match applied.delete(&object).map_err(failed)? {
            Some(path) => self.engine.store().remove_file(&path.to_string_lossy()),
            None => {
                let owner = self.engine.store().object(&object).map(|found| found.location.clone());
                return Err(match owner {
                    Some(owner) => ControlError::Conflict {
                        reason: format!(
                            "{object} was not applied: it is defined by {}:{}; remove it there",
                            owner.file, owner.line
                        ),
                    },
                    None => ControlError::NotFound {
                        what: object.to_string(),
                    },
                });
            }
        }
        drop(applied);
        if let Some(files) = &self.files {
            // The folder may hold a version that had to give way to the applied one.
            files.nudge();
        }
        let generation = self.publish()?;
        if object.kind == "Adapter" {
            self.sweep();
        }
        Ok(DeleteOutcome { generation, object })
    }

    fn flows(&self) -> &FlowStore {
        &self.flows
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        explain::explain(&self.engine.in_force().snapshot, request)
    }

    fn doctor(&self) -> DoctorReport {
        let foreign_proxies = self.engine.dataplane.foreign_proxy_problems();
        let mut report = doctor::examine(&self.cgroup, &self.bpffs, self.engine.problem(), foreign_proxies);
        report
            .problems
            .extend(self.engine.pods.unseen().into_iter().map(doctor::unseen));
        report.problems.extend(unrecorded::degraded(&self.engine));
        report.problems.extend(tables::kept(&self.engine.dataplane));
        report.problems.extend(self.engine.full_tables.lately(Instant::now()));
        report.cuts = self.engine.cuts();
        report.problems.extend(doctor::late(&report.cuts));
        report.features.push(FeatureView {
            name: "sockets in a sockmap as good as others".to_owned(),
            present: self.engine.dataplane.unfit_for_short_circuit().is_none(),
            used_for: "short-circuit (self-test)".to_owned(),
        });
        let default = self.engine.dataplane.default_acceleration();
        report.features.push(FeatureView {
            name: "short-circuit by default".to_owned(),
            present: default.acceleration != Acceleration::Off,
            used_for: format!("services whose policy does not say: {}", default.why),
        });
        report
    }

    fn snapshot(&self) -> serde_json::Value {
        let in_force = self.engine.in_force();
        let snapshot = &in_force.snapshot;
        serde_json::json!({
            "generation": snapshot.generation,
            "services": snapshot.services.values().collect::<Vec<_>>(),
            "workloads": snapshot.workloads,
            "identities": snapshot.accounts.iter().map(|(identity, account)| (identity.0.to_string(), account)).collect::<std::collections::BTreeMap<_, _>>(),
            "rules": snapshot.rules.iter().map(|(rule, object)| (rule.0.to_string(), object)).collect::<std::collections::BTreeMap<_, _>>(),
            "statuses": snapshot.statuses,
        })
    }

    fn hand_over(&self, connection: UnixStream) {
        if self.successors.try_send(connection).is_err() {
            tracing::warn!("two daemons want to take over at once; the second one is hung up on");
        }
    }

    fn shutdown(&self) {
        self.stop.cancel();
    }
}

impl DaemonControl {
    /// Applied objects of which no version is in force.
    fn not_in_force(&self, query: &ObjectQuery) -> Vec<ObjectView> {
        let applied = self.applied();
        let stored = applied.list().unwrap_or_else(|error| {
            tracing::error!(%error, "which objects were applied is not known");
            Vec::new()
        });
        let store = self.engine.store();
        let others = stored
            .into_iter()
            .filter(|stored| query.matches(&stored.object) && store.object(&stored.object).is_none());
        let views = others.map(|stored| {
            let (state, reason) = self.state_of(&stored.object).unwrap_or_else(|| {
                let diagnostics = store.file_diagnostics(&stored.path.to_string_lossy());
                let error = diagnostics.iter().find(|diagnostic| diagnostic.is_error());
                let reason = error.map_or_else(|| "it cannot be read".to_owned(), ToString::to_string);
                (ObjectState::Rejected, reason)
            });
            let text = applied.get(&stored.object).ok().flatten().unwrap_or_default();
            ObjectView {
                key: stored.object,
                state,
                reason,
                source: "applied".to_owned(),
                manifest: String::from_utf8_lossy(&text).into_owned(),
            }
        });
        views.collect()
    }

    /// The object that is meant, in force or applied: kind in any case; without a namespace the mesh-wide one, else
    /// that of `default`.
    fn find(&self, asked: &ObjectRef) -> Result<ObjectRef, ControlError> {
        let is_meant = |id: &ObjectRef| {
            crate::admin::api::kind_matches(&asked.kind, &id.kind)
                && id.name == asked.name
                && match &asked.namespace {
                    Some(_) => id.namespace == asked.namespace,
                    None => id
                        .namespace
                        .as_deref()
                        .is_none_or(|namespace| namespace == explain::DEFAULT_NAMESPACE),
                }
        };
        let mut found: Vec<ObjectRef> = {
            let store = self.engine.store();
            let meant = store.objects().filter(|object| is_meant(&object.id));
            meant.map(|object| (*object.id).clone()).collect()
        };
        let applied = self.applied().list().map_err(|source| ControlError::Failed {
            doing: "find the object",
            source: source.into(),
        })?;
        found.extend(applied.into_iter().map(|applied| applied.object).filter(is_meant));
        found.sort_by_key(|id| id.namespace.is_some());
        found.into_iter().next().ok_or_else(|| ControlError::NotFound {
            what: asked.to_string(),
        })
    }
}
