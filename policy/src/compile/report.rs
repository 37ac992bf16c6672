//! What is said about objects: a status each, and diagnostics about objects together.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::sources::Sources;
use crate::{
    decode::Located,
    diagnostic::{Diagnostic, Severity},
    resource::Object,
    snapshot::{ObjectRef, ObjectState, ObjectStatus, Service, ServiceName},
    store::Store,
};

#[derive(Default)]
pub(super) struct Report {
    pub diagnostics: Vec<Diagnostic>,
    statuses: BTreeMap<Arc<ObjectRef>, (ObjectState, Cow<'static, str>)>,
}

impl Report {
    pub fn status(&mut self, object: &Arc<ObjectRef>, state: ObjectState, reason: impl Into<Cow<'static, str>>) {
        self.statuses.insert(object.clone(), (state, reason.into()));
    }

    /// A warning at a field of the object.
    pub fn warn<T>(&mut self, object: &Object, at: &Located<T>, reason: impl Into<String>, instead: impl Into<String>) {
        self.diagnostics
            .push(object.diagnostic(Severity::Warning, at, reason.into(), Some(instead.into())));
    }

    /// Statuses of services, and of all objects that nobody has said anything about.
    pub fn services(&mut self, sources: &Sources<'_>, services: &BTreeMap<ServiceName, Arc<Service>>) {
        for (name, (object, _)) in &sources.services {
            let Some(service) = services.get(name) else { continue };
            let ready = service.ports.iter().filter(|port| !port.endpoints.is_empty()).count();
            let reason = format!(
                "{} and {}, {ready} of {} ports ready",
                service.vip4,
                service.vip6,
                service.ports.len()
            );
            self.status(&object.id, ObjectState::Accepted, reason);
        }
        for object in &sources.all {
            self.statuses
                .entry(object.id.clone())
                .or_insert((ObjectState::Accepted, "in force".into()));
        }
    }

    /// Objects whose present version is not in force.
    pub fn refusals(&mut self, store: &Store) {
        for refusal in store.refusals() {
            let kept = match &refusal.in_force {
                Some(place) => {
                    format!(
                        "; the version of {}:{}:{} stays in force",
                        place.file, place.line, place.column
                    )
                }
                None => String::new(),
            };
            self.status(&refusal.object, ObjectState::Rejected, refusal.reason + &kept);
        }
    }

    pub fn statuses(&self) -> Vec<ObjectStatus> {
        self.statuses
            .iter()
            .map(|(object, (state, reason))| ObjectStatus {
                object: object.clone(),
                state: *state,
                reason: reason.clone(),
            })
            .collect()
    }
}
