//! Of all that is reported, what concerns the services of one report adapter.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use arc_swap::ArcSwapOption;
use weft_policy::AdapterTarget;

use crate::{
    record::{Destination, Record},
    reporter::Report,
};

/// Service names by namespace.
type Services = HashMap<Arc<str>, HashSet<Arc<str>>>;

/// `None`: everything. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Audience(Arc<ArcSwapOption<Services>>);

/// Whether a report adapter has panicked, and is told nothing any more. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Panicked(Arc<AtomicBool>);

/// An adapter that is told of its services only.
pub(super) struct Targeted {
    report: Box<dyn Report>,
    audience: Audience,
    panicked: Panicked,
    /// Of the batch at hand.
    chosen: Vec<Record>,
}

// === impl Audience ===

impl Audience {
    pub fn new(target: &AdapterTarget) -> Self {
        let audience = Self(Arc::default());
        audience.set(target);
        audience
    }

    /// From the next batch on.
    pub fn set(&self, target: &AdapterTarget) {
        if target.all {
            return self.0.store(None);
        }
        let mut names = Services::new();
        for service in &target.services {
            let of_namespace = names.entry(service.namespace.clone()).or_default();
            of_namespace.insert(service.name.clone());
        }
        self.0.store(Some(Arc::new(names)));
    }
}

// === impl Panicked ===

impl Panicked {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is dropped by a panic tells of it.
struct Watch<'a>(&'a Panicked);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.0.store(true, Ordering::Relaxed);
        }
    }
}

// === impl Targeted ===

impl Targeted {
    pub fn new(report: Box<dyn Report>, audience: Audience, panicked: Panicked) -> Self {
        Self {
            report,
            audience,
            panicked,
            chosen: Vec::new(),
        }
    }
}

impl Report for Targeted {
    fn name(&self) -> &str {
        self.report.name()
    }

    fn report(&mut self, batch: &[Record]) {
        let _watch = Watch(&self.panicked);
        let names = self.audience.0.load();
        let Some(names) = names.as_deref() else {
            return self.report.report(batch);
        };
        let concerns = |destination: &Destination| {
            destination.service.as_ref().is_some_and(|service| {
                let of_namespace = names.get(&*destination.namespace);
                of_namespace.is_some_and(|services| services.contains(&**service))
            })
        };
        let chosen = batch.iter().filter(|record| match record {
            Record::Flow(flow) => concerns(&flow.destination),
            Record::Edge(edge) => concerns(&edge.destination),
            Record::EdgesRead(_) => true,
        });
        self.chosen.extend(chosen.cloned());
        if !self.chosen.is_empty() {
            self.report.report(&self.chosen);
            self.chosen.clear();
        }
    }

    fn flush(&mut self) {
        self.report.flush();
    }

    fn wait(&mut self, deadline: Instant) {
        self.report.wait(deadline);
    }
}
