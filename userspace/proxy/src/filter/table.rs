//! Which filters a request or a connection meets: by the service that was called, and the one a split chose for it.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use weft_adapters::FilterFactory;
use weft_policy::{Service, ServiceName};

/// All filters, in order: everyone's first, then those of the service that was called, then those of its backend where a
/// split chose another one.
#[derive(Clone, Default)]
pub struct FilterTable {
    /// Of every request and connection, also of those to no service.
    pub everywhere: Vec<Arc<dyn FilterFactory>>,
    pub services: HashMap<ServiceName, Vec<Arc<dyn FilterFactory>>>,
}

/// The table in force. Clones share it: whoever keeps one may [`Filters::publish`] while workers read.
#[derive(Clone, Default)]
pub struct Filters(Arc<ArcSwap<FilterTable>>);

// === impl FilterTable ===

impl FilterTable {
    /// Nobody looks at anything.
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.services.values().all(Vec::is_empty)
    }

    pub(crate) fn of<'a>(
        &'a self,
        called: Option<&'a Service>,
        backend: Option<&'a Service>,
    ) -> impl Iterator<Item = &'a Arc<dyn FilterFactory>> {
        let backend = backend.filter(|backend| called.is_none_or(|called| called.name != backend.name));
        let own = |service: &Service| self.services.get(&service.name).into_iter().flatten();
        self.everywhere
            .iter()
            .chain(called.into_iter().flat_map(own))
            .chain(backend.into_iter().flat_map(own))
    }
}

impl fmt::Debug for FilterTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |list: &[Arc<dyn FilterFactory>]| -> Vec<String> {
            list.iter().map(|factory| factory.name().to_owned()).collect()
        };
        let services: HashMap<_, _> = self
            .services
            .iter()
            .map(|(service, list)| (service, names(list)))
            .collect();
        f.debug_struct("FilterTable")
            .field("everywhere", &names(&self.everywhere))
            .field("services", &services)
            .finish()
    }
}

// === impl Filters ===

impl Filters {
    pub fn new(table: FilterTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }

    /// Puts `table` in force: the next request of every connection meets it, those under way keep their filters.
    pub fn publish(&self, table: FilterTable) {
        self.0.store(Arc::new(table));
    }

    /// No lock, no reference count.
    pub(crate) fn load(&self) -> Guard<Arc<FilterTable>> {
        self.0.load()
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}
