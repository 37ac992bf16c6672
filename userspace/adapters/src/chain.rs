//! Which adapters look at the requests of which service: what the proxy asks for each request.
//!
//! [`Chains`] is made anew when a snapshot is, published with it, and never changed: a request that has taken its
//! [`Chain`] keeps it to its end.

use std::{collections::HashMap, sync::Arc};

use weft_policy::ServiceName;

use crate::{pipeline::Pipeline, stream::FilterFactory};

/// The adapters that look at a request, in order: checks, filters (with its head), quotas.
#[derive(Clone, Default)]
pub struct Chain {
    pub pipeline: Pipeline,
    pub filters: Vec<Arc<dyn FilterFactory>>,
    /// Checks that use something up: of what all others let pass.
    pub quotas: Pipeline,
}

/// The chains of all services. Services that nobody looks at have none.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    services: HashMap<ServiceName, Arc<Chain>>,
    /// Of requests that a split of the first service sends to the second: those of both, none twice.
    splits: HashMap<ServiceName, HashMap<ServiceName, Arc<Chain>>>,
    /// Of everything that is not named.
    others: Option<Arc<Chain>>,
    filters: Filters,
}

/// All filters of some chains, by address: services by the thousand have the same.
#[derive(Clone, Default)]
struct Filters(HashMap<usize, Arc<dyn FilterFactory>>);

// === impl Chain ===

impl Chain {
    pub fn is_empty(&self) -> bool {
        self.pipeline.is_empty() && self.filters.is_empty() && self.quotas.is_empty()
    }

    /// Whether the very same adapters look, in the same order. Those that stay when a snapshot is made stay the same, while
    /// the chains are made anew.
    pub fn is_same(&self, other: &Self) -> bool {
        fn same<T: ?Sized>(all: &[Arc<T>], others: &[Arc<T>]) -> bool {
            all.len() == others.len() && all.iter().zip(others).all(|(one, other)| Arc::ptr_eq(one, other))
        }
        same(&self.pipeline.checks, &other.pipeline.checks)
            && same(&self.filters, &other.filters)
            && same(&self.quotas.checks, &other.quotas.checks)
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let filters: Vec<&str> = self.filters.iter().map(|filter| filter.name()).collect();
        f.debug_struct("Chain")
            .field("pipeline", &self.pipeline)
            .field("filters", &filters)
            .field("quotas", &self.quotas)
            .finish()
    }
}

// === impl Chains ===

impl Chains {
    /// The same for every destination, also for those that are no service.
    pub fn everywhere(chain: Chain) -> Self {
        let mut filters = Filters::default();
        filters.add(&chain);
        Self {
            others: Some(Arc::new(chain)).filter(|chain| !chain.is_empty()),
            filters,
            ..Self::default()
        }
    }

    /// Requests to `service` go through `chain`. An empty one is not kept.
    pub fn insert(&mut self, service: ServiceName, chain: Arc<Chain>) {
        if !chain.is_empty() {
            self.filters.add(&chain);
            self.services.insert(service, chain);
        }
    }

    /// Requests that the split of `root` sends to `backend` go through `chain`. An empty one is not kept.
    pub fn insert_split(&mut self, root: ServiceName, backend: ServiceName, chain: Arc<Chain>) {
        if !chain.is_empty() {
            self.filters.add(&chain);
            self.splits.entry(root).or_default().insert(backend, chain);
        }
    }

    /// [`FilterFactory::warm`] of all filters.
    pub fn warm(&self) {
        self.filters.0.values().for_each(|filter| filter.warm());
    }

    /// Nobody looks at anything.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.splits.is_empty() && self.others.is_none()
    }

    /// Of a request that was sent to `called` and goes to an endpoint of `backend` (mostly the same); `None`, `None`: to a
    /// destination that is no service. Costs one or two look-ups, and none where nobody looks at anything.
    pub fn of(&self, called: Option<&ServiceName>, backend: Option<&ServiceName>) -> Option<&Arc<Chain>> {
        if self.is_empty() {
            return None;
        }
        let named = match (called, backend) {
            (Some(called), Some(backend)) if called != backend => {
                self.splits.get(called).and_then(|split| split.get(backend))
            }
            (Some(service), _) | (None, Some(service)) => self.services.get(service),
            (None, None) => None,
        };
        named.or(self.others.as_ref())
    }
}

// === impl Filters ===

impl Filters {
    fn add(&mut self, chain: &Chain) {
        let by_address = |filter: &Arc<dyn FilterFactory>| (Arc::as_ptr(filter).addr(), Arc::clone(filter));
        self.0.extend(chain.filters.iter().map(by_address));
    }
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.0.values().map(|filter| filter.name()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        attribute::Bag,
        pipeline::{Check, Checking},
        stream::{StreamFilter, StreamInfo},
    };

    struct Named(&'static str);

    impl Check for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn check<'a>(&'a self, _bag: &'a Bag<'_>) -> Checking<'a> {
            Checking::ALLOW
        }
    }

    fn chain(name: &'static str) -> Arc<Chain> {
        Arc::new(Chain {
            pipeline: Pipeline::new(vec![Arc::new(Named(name))]),
            ..Chain::default()
        })
    }

    fn service(name: &str) -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn found(chains: &Chains, called: Option<&str>, backend: Option<&str>) -> Option<String> {
        let (called, backend) = (called.map(service), backend.map(service));
        let chain = chains.of(called.as_ref(), backend.as_ref())?;
        Some(chain.pipeline.checks[0].name().to_owned())
    }

    #[test]
    fn chains_of_the_same_adapters_are_the_same() {
        let web = chain("web");
        let again = Chain::clone(&web);
        assert!(web.is_same(&again));
        assert!(Chain::default().is_same(&Chain::default()));
        for other in [(*chain("web")).clone(), Chain::default()] {
            assert!(!web.is_same(&other) && !other.is_same(&web));
        }
    }

    /// Counts how often it is warmed.
    #[derive(Default)]
    struct Warmed(AtomicUsize);

    impl FilterFactory for Warmed {
        fn name(&self) -> &str {
            "warmed"
        }

        fn warm(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn stream(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
            None
        }
    }

    #[test]
    fn each_filter_is_warmed_once_however_many_services_have_it() {
        let [often, split] = [(); 2].map(|()| Arc::new(Warmed::default()));
        let of = |filters: &[&Arc<Warmed>]| {
            Arc::new(Chain {
                filters: filters.iter().map(|filter| Arc::clone(filter) as _).collect(),
                ..Chain::default()
            })
        };
        let mut chains = Chains::default();
        chains.insert(service("web"), of(&[&often]));
        chains.insert(service("api"), of(&[&often]));
        chains.insert_split(service("web"), service("api"), of(&[&often, &split]));
        chains.warm();
        assert_eq!([often, split].map(|filter| filter.0.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn a_split_has_a_chain_of_its_own_and_the_unnamed_have_the_others() {
        let mut chains = Chains::default();
        assert!(chains.is_empty());
        chains.insert(service("empty"), Arc::default());
        assert!(chains.is_empty());
        chains.insert(service("web"), chain("web"));
        chains.insert_split(service("web"), service("v1"), chain("web and v1"));
        for (called, backend, expect) in [
            (Some("web"), Some("web"), Some("web")),
            (Some("web"), Some("v1"), Some("web and v1")),
            (Some("web"), Some("v2"), None),
            (Some("v1"), Some("v1"), None),
            (None, Some("web"), Some("web")),
            (None, None, None),
        ] {
            assert_eq!(
                found(&chains, called, backend).as_deref(),
                expect,
                "{called:?} {backend:?}"
            );
        }
        let chains = Chains::everywhere((*chain("all")).clone());
        for called in [Some("web"), None] {
            assert_eq!(found(&chains, called, called).as_deref(), Some("all"));
        }
    }
}
